"""DETR, its panoptic head and Conditional DETR, in their authors' code.

These networks pass tensors of the batch's size along: masks, positions, queries, reference points. So the
batch is doubled at the input of the transformer, and all sizes inside fit. The encoder layers up to the
insertion get the first half alone; the module makes the second.
"""

from typing import Any, ClassVar

from torch import nn

from batchformer.swap_in.family import Family
from batchformer.swap_in.make import initialised_as_detr, token_modules
from batchformer.swap_in.options import Options
from batchformer.swap_in.places import Place, find_blocks


class Detr(Family):
    """facebookresearch/detr with or without DETRsegm, and Atten4Vis/ConditionalDETR."""

    names: ClassVar[tuple[str, ...]] = ("detr", "conditional_detr")
    expects = "backbone, input_proj and transformer.encoder.layers (facebookresearch/detr)"
    place = "after encoder layer 0"
    takes = ("after", "shared", "wrapped")
    carries_along = True
    layout = "LNC"
    batch_axes: ClassVar = {"src": 1, "src_mask": None, "src_key_padding_mask": 0, "pos": 1}

    @classmethod
    def fits(cls, model: nn.Module) -> bool:
        """A stock DETR, itself or in its panoptic head."""
        detr = getattr(model, "detr", model)
        return is_detr(detr) and not hasattr(detr.transformer, "level_embed")

    @classmethod
    def find_places(cls, model: nn.Module, options: Options) -> list[Place]:
        """Encoder layers, the first if none is named."""
        return find_blocks(model, f"{_prefix(model)}transformer.encoder.layers", options.after, default=0)

    @classmethod
    def make_modules(cls, model: nn.Module, places: list[Place], options: Options) -> list[nn.Module]:
        """BatchFormerV2, initialised as the transformer."""
        return initialised_as_detr(token_modules(model, places, cls.layout, options))

    def install(self, model: nn.Module, places: list[Place], options: Options) -> None:
        """After the backbone, and at the outputs of the encoder layers."""
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
        double = self.double_early(len(features[-1].tensors), features[-1].tensors)
        doubled = [type(each)(double(each.tensors), double(each.mask)) for each in features]
        return doubled, [double(each) for each in positions]


def is_detr(model: Any) -> bool:
    """Whether a model is built as DETR is."""
    transformer = getattr(model, "transformer", None)
    return (
        isinstance(getattr(getattr(transformer, "encoder", None), "layers", None), nn.ModuleList)
        and isinstance(getattr(model, "backbone", None), nn.Module)
        and isinstance(getattr(model, "input_proj", None), nn.Module)
    )


def _prefix(model: nn.Module) -> str:
    return "detr." if hasattr(model, "detr") else ""
