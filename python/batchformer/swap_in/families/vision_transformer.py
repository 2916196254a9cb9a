"""Vision transformers of timm, facebookresearch/deit and torchvision, and all plain ones of transformers.

A plain one has one list of equal blocks: ViT, DeiT, DINOv2, BEiT, CLIP, SigLIP, VideoMAE and others.
"""

from typing import Any, ClassVar

from torch import nn

from batchformer.swap_in import tasks
from batchformer.swap_in.family import Family
from batchformer.swap_in.make import token_modules
from batchformer.swap_in.options import Options
from batchformer.swap_in.places import Place, find_blocks

_BLOCKS_AND_PATCHES = {
    "blocks": "patch_embed",
    "encoder.layers": "conv_proj",
    "timm_model.blocks": "timm_model.patch_embed",  # timm's in transformers
    "vit.layers": "vit.embeddings",
    "deit.layers": "deit.embeddings",
    "vit.encoder.layer": "vit.embeddings",  # transformers before 5
    "deit.encoder.layer": "deit.embeddings",
}

_MASKED = ("MaskedImageModeling", "MAE", "PreTraining")  # their targets are the images
_TASKS = ("ForImageClassification", "ForVideoClassification")
_OTHER_BLOCKS = (
    *("CrossVit", "Hiera", "HieraDet", "VisionTransformerSAM"),  # of lists of tokens, windows, or maps
    "Xcit",  # with batch norms, which would take the related rows into the statistics of evaluation
)


class VisionTransformer(Family):
    """A stack of blocks over `[N, L, C]` tokens; what comes after the insertion sees both streams."""

    names: ClassVar[tuple[str, ...]] = ("vit", "deit")
    expects = "blocks after patch embeddings (timm, facebookresearch/deit, transformers, torchvision)"
    place = "after block 8"
    takes = ("after", "shared", "outputs", "wrapped")
    takes_labels = True

    @classmethod
    def fits(cls, model: nn.Module) -> bool:
        """A vision transformer of one of the four, that is not trained on masked images."""
        masked = any(word in type(model).__name__ for word in _MASKED)
        others = any(each.__name__ in _OTHER_BLOCKS for each in type(model).__mro__)
        served = not others and (not masked or tasks.is_for(model, *_TASKS))
        return served and _path_of_blocks(model) is not None

    @classmethod
    def find_places(cls, model: nn.Module, options: Options) -> list[Place]:
        """Blocks, the ninth if none is named, as in the paper.

        Raises:
            ValueError: no such block, or patches that are dropped where each sample has its own positions.
        """
        dropped = getattr(getattr(model, "patch_drop", None), "prob", 0)
        if dropped and getattr(model, "rope", None) is not None:
            raise ValueError(
                "model: expected no patch_drop_rate with rotary positions, which then differ between "
                f"samples and have one stream, got a {type(model).__name__} with {dropped}"
            )
        return find_blocks(model, _path_of_blocks(model) or "", options.after, default=8)

    @classmethod
    def make_modules(cls, model: nn.Module, places: list[Place], options: Options) -> list[nn.Module]:
        """BatchFormerV2."""
        return token_modules(model, places, "NLC", options)

    def install(self, model: nn.Module, places: list[Place], options: Options) -> None:
        """At the outputs of the blocks."""
        del options
        self.double_tokens_after(places)
        if hasattr(model, "forward_intermediates"):
            self.hooks.replace("forward_intermediates", self._forward_intermediates)

    def _forward_intermediates(self, *args: Any, **kwargs: Any) -> Any:
        """timm's, which reshapes the tokens of blocks into maps of as many images as came in."""
        if self.active:
            raise RuntimeError(
                "model: expected no forward_intermediates() in training, as it takes both streams for one "
                "batch, got a call; model.eval() before it"
            )
        return self.hooks.stock("forward_intermediates", *args, **kwargs)


def _path_of_blocks(model: nn.Module) -> str | None:
    modules = dict(model.named_modules())
    for blocks, patches in _BLOCKS_AND_PATCHES.items():
        if patches in modules and isinstance(modules.get(blocks), nn.ModuleList | nn.Sequential):
            return blocks
    return _path_of_only_blocks(model) if tasks.is_for(model, *_TASKS) and tasks.takes_images(model) else None


def _path_of_only_blocks(model: nn.Module) -> str | None:
    """The list of blocks that attend, if all are equal and there is no other such list, nor one of stages."""
    lists = {path: module for path, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    outer = {
        path: [*module]
        for path, module in lists.items()
        if not any(path.startswith(f"{other}.") for other in lists)
    }
    found = [path for path, blocks in outer.items() if any(map(_attends, blocks))]
    if len(found) != 1:
        return None
    blocks = outer[found[0]]
    return found[0] if len({type(block) for block in blocks}) == 1 else None


def _attends(block: nn.Module) -> bool:
    return any("attn" in name or "attention" in name for name, _ in block.named_children())
