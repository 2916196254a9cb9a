"""DETRs without an encoder, in Hugging Face transformers: LW-DETR, RF-DETR, and DEIMv2's lite models.

A vision transformer or a convolutional network is their encoder, and what DETR does in encoder layer 0 is
done inside of it, in windows or at other widths. What the decoder attends to, of its width, at the positions
of the map, is what their projections give, so BatchFormerV2 goes in there: on the maps of every level, which
are related level by level. Up to there the batch is not doubled; masks are, at the door.
"""

from typing import Any

from torch import nn

from batchformer.swap_in.at_the_door import DoubledAtTheDoor, Parts
from batchformer.swap_in.options import Options
from batchformer.swap_in.places import Place, path_of_class

_PROJECTIONS = {
    "LwDetrModel": ("backbone.backbone", "backbone.projector.scale_layers"),
    "RfDetrModel": ("backbone.backbone", "backbone.projector"),
    "Deimv2Model": ("conv_encoder", "encoder.input_proj"),
}


class ProjectedDetr(DoubledAtTheDoor):
    """transformers' LwDetr, RfDetr with either head, and Deimv2 with a lite encoder.

    A batch without any box has twice the stock loss, which then divides by one.
    """

    names = ("lw_detr", "rf_detr", "deimv2_lite")
    expects = "an LwDetr or RfDetr model, or a Deimv2 with a lite encoder (transformers)"
    place = "behind the projections of the backbone's maps"
    takes = ("shared", "wrapped")

    @classmethod
    def parts(cls, model: nn.Module) -> Parts | None:
        """The backbone, and the projections behind it."""
        path = path_of_class(model, *_PROJECTIONS)
        if path is None:
            return None
        inner = model.get_submodule(path.removesuffix("."))
        backbone, projections = _PROJECTIONS[type(inner).__name__]
        modules: dict[str, Any] = dict(inner.named_modules())
        has_any = projections in modules and len([*modules[projections].children()]) > 0
        return Parts(path + backbone, path + projections, "NCHW") if has_any else None

    @classmethod
    def find_places(cls, model: nn.Module, options: Options) -> list[Place]:
        """All projections, side by side."""
        del options
        path = cls._parts(model).blocks
        projections = model.get_submodule(path)
        if not isinstance(projections, nn.ModuleList):
            return [Place(path, projections)]
        return [Place(f"{path}.{name}", level) for name, level in projections.named_children()]

    def install(self, model: nn.Module, places: list[Place], options: Options) -> None:
        """At the door, before the backbone, and at the outputs of the projections."""
        del options
        self.double_at_the_door(model)
        self.double_tokens_after(places)
