"""DETRs without an encoder, in Hugging Face transformers: LW-DETR, RF-DETR, and DEIMv2's lite models.

Their encoder is a vision transformer or a convolutional network, which does inside, in windows or at other
widths, what DETR does in encoder layer 0. The decoder attends to the outputs of their projections, so
BatchFormerV2 goes in there: on the maps of every level, each level by itself. Before that the batch is not
doubled; masks are, at the model's input.
"""

from typing import Any

from torch import nn

from batchformer.swap_in.doubled_at_input import DoubledAtInput, Parts
from batchformer.swap_in.options import Options
from batchformer.swap_in.places import Place, path_of_class

_PROJECTIONS = {
    "LwDetrModel": ("backbone.backbone", "backbone.projector.scale_layers"),
    "RfDetrModel": ("backbone.backbone", "backbone.projector"),
    "Deimv2Model": ("conv_encoder", "encoder.input_proj"),
}


class ProjectedDetr(DoubledAtInput):
    """transformers' LwDetr, RfDetr with either head, and Deimv2 with a lite encoder.

    A batch without any box has twice the stock loss, which then divides by one.
    """

    names = ("lw_detr", "rf_detr", "deimv2_lite")
    expects = "an LwDetr or RfDetr model, or a Deimv2 with a lite encoder (transformers)"
    place = "after the projections of the backbone's maps"
    takes = ("shared", "wrapped")

    @classmethod
    def parts(cls, model: nn.Module) -> Parts | None:
        """The backbone, and the projections after it."""
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
        """All projections, in parallel."""
        del options
        path = cls._parts(model).blocks
        projections = model.get_submodule(path)
        if not isinstance(projections, nn.ModuleList):
            return [Place(path, projections)]
        return [Place(f"{path}.{name}", level) for name, level in projections.named_children()]

    def install(self, model: nn.Module, places: list[Place], options: Options) -> None:
        """At the model's input, before the backbone, and at the outputs of the projections."""
        del options
        self.double_at_input(model)
        self.double_tokens_after(places)
