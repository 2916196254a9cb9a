"""DETR, its panoptic head, Conditional DETR and Deformable DETR, in their authors' code.

These networks carry things of the size of the batch along: masks, positions, queries, reference points. So
the batch is doubled where the transformer begins, and everything that is sized by the batch inside is right
by itself. The encoder layers up to the insertion take the first half alone; the module makes the second.
"""

from typing import Any, ClassVar

from torch import nn

from batchformer.swap_in.family import Family
from batchformer.swap_in.make import initialised_as_detr, token_modules
from batchformer.swap_in.options import Options
from batchformer.swap_in.places import Place, find_blocks
from batchformer.swap_in.signature import Call, by_name, parameters

_OF_DEFORMABLE = ("srcs", "masks", "pos_embeds", "query_embed")  # what its transformer takes


class Detr(Family):
    """facebookresearch/detr with or without DETRsegm, and Atten4Vis/ConditionalDETR."""

    name = "detr"
    expects = "backbone, input_proj and transformer.encoder.layers (facebookresearch/detr)"
    takes = ("after", "shared", "wrapped")
    layout = "LNC"
    batch_axes: ClassVar = {"src": 1, "src_mask": None, "src_key_padding_mask": 0, "pos": 1}

    @classmethod
    def fits(cls, model: nn.Module) -> bool:
        """A stock DETR, itself or in its panoptic head."""
        detr = getattr(model, "detr", model)
        return _is_detr(detr) and not hasattr(detr.transformer, "level_embed")

    @classmethod
    def find_places(cls, model: nn.Module, options: Options) -> list[Place]:
        """Encoder layers, the first if none is named."""
        return find_blocks(model, f"{_prefix(model)}transformer.encoder.layers", options.after, default=0)

    @classmethod
    def make_modules(cls, model: nn.Module, places: list[Place], options: Options) -> list[nn.Module]:
        """BatchFormerV2, initialised as the transformer."""
        return initialised_as_detr(token_modules(model, places, cls.layout, options))

    def install(self, model: nn.Module, places: list[Place], options: Options) -> None:
        """Behind the backbone, and at the outputs of the encoder layers."""
        del options
        self.hooks.output(model.get_submodule(f"{_prefix(model)}backbone"), self._double_maps)
        layers = model.get_submodule(f"{_prefix(model)}transformer.encoder.layers")
        self.overwrite_tokens_after(places, layers, self.batch_axes)

    def _double_maps(self, backbone: nn.Module, args: Any, output: Any) -> Any:
        """Feature maps with their masks, and positions, of twice the batch."""
        del backbone, args
        if not self.active:
            return None
        features, positions = output
        at_door = self.double_early(len(features[-1].tensors), features[-1].tensors)
        doubled = [type(each)(at_door(each.tensors), at_door(each.mask)) for each in features]
        return doubled, [at_door(each) for each in positions]


class DeformableDetr(Detr):
    """fundamentalvision/Deformable-DETR: any number of levels, box refinement, two stages."""

    name = "deformable_detr"
    expects = "backbone, input_proj and a transformer with level_embed (fundamentalvision/Deformable-DETR)"
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
        if not (_is_detr(model) and hasattr(model.transformer, "level_embed")):
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
        """The levels' maps, masks and positions of twice the batch; the queries are not the batch's."""
        del transformer
        if not self.active:
            return None
        given = by_name(_OF_DEFORMABLE, args, kwargs)
        sources = given["srcs"]
        at_door = self.double_early(len(sources[0]), sources[0])
        return (), given | {name: [at_door(level) for level in given[name]] for name in _OF_DEFORMABLE[:3]}


def _is_detr(model: Any) -> bool:
    transformer = getattr(model, "transformer", None)
    return (
        isinstance(getattr(getattr(transformer, "encoder", None), "layers", None), nn.ModuleList)
        and isinstance(getattr(model, "backbone", None), nn.Module)
        and isinstance(getattr(model, "input_proj", None), nn.Module)
    )


def _prefix(model: nn.Module) -> str:
    return "detr." if hasattr(model, "detr") else ""
