"""Vision transformers: DeiT and ViT of timm, facebookresearch/deit, transformers and torchvision."""

import inspect
from typing import Any

from torch import nn

from batchformer.swap_in import rows
from batchformer.swap_in.attachment import check_replica
from batchformer.swap_in.family import Family
from batchformer.swap_in.make import token_modules
from batchformer.swap_in.options import Options
from batchformer.swap_in.places import Place, find_blocks
from batchformer.targets import duplicate

_BLOCKS_AND_PATCHES = {
    "blocks": "patch_embed",
    "encoder.layers": "conv_proj",
    "vit.layers": "vit.embeddings",
    "deit.layers": "deit.embeddings",
    "vit.encoder.layer": "vit.embeddings",  # transformers before 5
    "deit.encoder.layer": "deit.embeddings",
}


class VisionTransformer(Family):
    """A stack of blocks over `[N, L, C]` tokens; what is behind the insertion sees both streams."""

    name = "deit"
    expects = "blocks behind patch embeddings (timm, facebookresearch/deit, transformers, torchvision)"
    takes = ("after", "shared", "rejoin")

    @classmethod
    def fits(cls, model: nn.Module) -> bool:
        """A vision transformer of one of the four."""
        return _path_of_blocks(model) is not None

    @classmethod
    def find_places(cls, model: nn.Module, options: Options) -> list[Place]:
        """Blocks, the ninth if none is named, as in the paper."""
        return find_blocks(model, _path_of_blocks(model) or "", options.after, default=8)

    @classmethod
    def make_modules(cls, model: nn.Module, places: list[Place], options: Options) -> list[nn.Module]:
        """BatchFormerV2."""
        return token_modules(model, places, "NLC", options)

    def install(self, model: nn.Module, places: list[Place], options: Options) -> None:
        """At the outputs of the blocks, and at the labels of models that compute their loss."""
        del options
        self.double_tokens_after(places)
        if "labels" in inspect.signature(model.forward).parameters:
            self.hook_inputs(model, self._double_labels)

    def _double_labels(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> rows.Call | None:
        if not self.active or kwargs.get("labels") is None:
            return None
        check_replica(model)
        return args, kwargs | {"labels": duplicate(kwargs["labels"])}


def _path_of_blocks(model: nn.Module) -> str | None:
    modules = dict(model.named_modules())
    for blocks, patches in _BLOCKS_AND_PATCHES.items():
        if patches in modules and isinstance(modules.get(blocks), nn.ModuleList | nn.Sequential):
            return blocks
    return None
