"""Deformable DETR, in its authors' code."""

from typing import Any, ClassVar

from torch import nn

from batchformer.swap_in.families.detr import Detr, is_detr
from batchformer.swap_in.options import Options
from batchformer.swap_in.places import Place
from batchformer.swap_in.signature import Call, by_name, parameters

_OF_DEFORMABLE = ("srcs", "masks", "pos_embeds", "query_embed")  # what its transformer takes


class DeformableDetr(Detr):
    """fundamentalvision/Deformable-DETR: any number of levels, box refinement, two stages."""

    names = ("deformable_detr",)
    expects = "backbone, input_proj and a transformer with level_embed (fundamentalvision/Deformable-DETR)"
    place = "after encoder layer 0"
    layout = "NLC"
    batch_axes: ClassVar = {
        "src": 0,
        "pos": 0,
        "reference_points": 0,
        "spatial_shapes": None,
        "level_start_index": None,
        "padding_mask": 0,
    }

    @classmethod
    def fits(cls, model: nn.Module) -> bool:
        """A stock Deformable DETR; DINO and others that are built on it take more arguments."""
        if not (is_detr(model) and hasattr(model.transformer, "level_embed")):
            return False
        return tuple(parameters(model.get_submodule("transformer").forward)) == _OF_DEFORMABLE

    def install(self, model: nn.Module, places: list[Place], options: Options) -> None:
        """At the inputs of the transformer, and at the outputs of the encoder layers.

        Not at the backbone: further levels are made from the images' masks, which have one stream.
        """
        del options
        self.hooks.inputs(model.get_submodule("transformer"), self._double_levels)
        layers = model.get_submodule("transformer.encoder.layers")
        self.overwrite_tokens_after(places, layers, self.batch_axes)

    def _double_levels(
        self, transformer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Call | None:
        """The levels' maps, masks and positions of twice the batch; the queries have no batch."""
        del transformer
        if not self.active:
            return None
        given = by_name(_OF_DEFORMABLE, args, kwargs)
        sources = given["srcs"]
        double = self.double_early(len(sources[0]), sources[0])
        return (), given | {name: [double(level) for level in given[name]] for name in _OF_DEFORMABLE[:3]}
