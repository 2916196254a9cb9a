"""MaskFormer of Hugging Face transformers, with or without its head."""

from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from batchformer.swap_in.family import Family
from batchformer.swap_in.make import token_modules
from batchformer.swap_in.options import Options
from batchformer.swap_in.places import Place, path_of_class
from batchformer.swap_in.rules import has_rows, map_tensors


class MaskFormer(Family):
    """transformers' MaskFormer, with any backbone.

    It has no encoder: the transformer decoder takes the coarsest map of the backbone as it is, and so does
    the pixel decoder, where that map is merged into the finer ones. The module goes after the backbone, on
    that map, before its two paths split. Inside the pixel decoder it would not reach the queries, and thus
    classes; before the transformer decoder alone, not the maps that masks are made of. It is as wide as that
    map, 2048 for a ResNet-50: ``dim_feedforward`` makes it smaller.
    """

    names = ("maskformer",)
    expects = "a MaskFormer model (transformers)"
    place = "on the coarsest map of the backbone"
    takes = ("wrapped",)
    takes_labels = True

    @classmethod
    def fits(cls, model: nn.Module) -> bool:
        """MaskFormer, with or without its head."""
        return path_of_class(model, "MaskFormerModel") is not None

    @classmethod
    def find_places(cls, model: nn.Module, options: Options) -> list[Place]:
        """The backbone."""
        del options
        path = f"{path_of_class(model, 'MaskFormerModel')}pixel_level_module.encoder"
        return [Place(path, model.get_submodule(path))]

    @classmethod
    def make_modules(cls, model: nn.Module, places: list[Place], options: Options) -> list[nn.Module]:
        """BatchFormerV2, as wide as the coarsest map."""
        width = options.dim or int(places[0].module.channels[-1])  # type: ignore[index]
        return token_modules(model, places, "NCHW", replace(options, dim=width))

    def install(self, model: nn.Module, places: list[Place], options: Options) -> None:
        """At the output of the backbone."""
        del model, options
        self.hooks.output(places[0].module, self._double_maps)

    def _double_maps(self, backbone: nn.Module, args: Any, output: Any) -> Any:
        """All maps twice, and of the coarsest the related one as the second."""
        del args
        if not self.trains(backbone):
            return None
        coarsest = output.feature_maps[-1]
        samples = len(coarsest)
        double = self.double_early(samples, coarsest) if self.active else None
        related = self.streams.relate(0, backbone, coarsest)

        def both(each: Tensor) -> Tensor:
            if each is coarsest:
                return related
            return double(each) if double and has_rows(each, samples) else each

        return map_tensors(output, both)
