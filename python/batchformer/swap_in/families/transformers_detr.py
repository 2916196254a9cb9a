"""The DETR family of Hugging Face transformers, with any head: all that have DETR's encoder layers."""

from typing import ClassVar

from torch import nn

from batchformer.swap_in.doubled_at_input import DoubledAtInput, Parts
from batchformer.swap_in.make import initialised_as_detr
from batchformer.swap_in.options import Options
from batchformer.swap_in.places import Place, path_of_class

_MODELS = (
    "DetrModel",
    "ConditionalDetrModel",
    "DeformableDetrModel",
    "DabDetrModel",
    "TableTransformerModel",
)


class TransformersDetr(DoubledAtInput):
    """transformers' Detr, ConditionalDetr, DeformableDetr, DabDetr and TableTransformer.

    The boxes of both streams are counted, so that the loss is the mean over both; a batch without any box
    has twice the stock loss, which then divides by one.
    """

    names = ("detr", "conditional_detr", "dab_detr", "table_transformer")
    expects = "a Detr, ConditionalDetr, DeformableDetr, DabDetr or TableTransformer model (transformers)"
    place = "after encoder layer 0"
    batch_axes: ClassVar = {
        "hidden_states": 0,
        "attention_mask": 0,
        "spatial_position_embeddings": 0,
        "object_queries": 0,  # positions, in DabDetr and TableTransformer
        "reference_points": 0,
        "spatial_shapes": None,
        "spatial_shapes_list": None,
        "level_start_index": None,
        "output_attentions": None,
        "kwargs": None,
    }

    @classmethod
    def parts(cls, model: nn.Module) -> Parts | None:
        """The model inside of its heads has a backbone and an encoder."""
        path = path_of_class(model, *_MODELS)
        return None if path is None else Parts(f"{path}backbone", f"{path}encoder.layers")

    @classmethod
    def make_modules(cls, model: nn.Module, places: list[Place], options: Options) -> list[nn.Module]:
        """BatchFormerV2, initialised as the official one."""
        return initialised_as_detr(super().make_modules(model, places, options))
