"""Mask2Former of Hugging Face transformers, with or without its head."""

from typing import ClassVar

from torch import nn

from batchformer.swap_in.doubled_at_input import DoubledAtInput, Parts
from batchformer.swap_in.make import initialised_as_detr
from batchformer.swap_in.options import Options
from batchformer.swap_in.places import Place, path_of_class


class Mask2Former(DoubledAtInput):
    """transformers' Mask2Former.

    Its pixel decoder has the encoder of Deformable DETR, so the place is Deformable DETR's. Queries and masks
    are computed after it; the finest map comes from the backbone, too, and is doubled there. The loss samples
    its points at random, different ones for each stream.
    """

    names: ClassVar[tuple[str, ...]] = ("mask2former",)
    expects: ClassVar[str] = "a Mask2Former model (transformers)"
    place = "after layer 0 of the pixel decoder's encoder"
    model_class: ClassVar[str] = "Mask2FormerModel"
    batch_axes: ClassVar = {
        "hidden_states": 0,
        "attention_mask": 0,
        "position_embeddings": 0,
        "reference_points": 0,
        "spatial_shapes": None,
        "spatial_shapes_list": None,
        "level_start_index": None,
        "output_attentions": None,
    }

    @classmethod
    def parts(cls, model: nn.Module) -> Parts | None:
        """The model inside of its head has a backbone, and a pixel decoder with an encoder."""
        path = path_of_class(model, cls.model_class)
        if path is None:
            return None
        return Parts(f"{path}pixel_level_module.encoder", f"{path}pixel_level_module.decoder.encoder.layers")

    @classmethod
    def make_modules(cls, model: nn.Module, places: list[Place], options: Options) -> list[nn.Module]:
        """BatchFormerV2, initialised as the official one of Deformable DETR."""
        return initialised_as_detr(super().make_modules(model, places, options))
