"""RT-DETR and what is built on it, in Hugging Face transformers: RT-DETRv2, D-FINE, DEIMv2.

Their hybrid encoder runs DETR's encoder layers on the map of one level (AIFI), mostly the smallest, and then
convolutions over all levels. So BatchFormerV2 goes in after these layers, as in DETR; the other levels of
the related stream are those of the originals, until they are fused with it. Denoising queries are made from
the labels, which have both streams; each draws noise of its own.
"""

from typing import ClassVar

from torch import nn

from batchformer.swap_in.doubled_at_input import DoubledAtInput, Parts
from batchformer.swap_in.places import path_of_class

_BACKBONES = {
    "RTDetrModel": "backbone",
    "RTDetrV2Model": "backbone",
    "DFineModel": "backbone",
    "Deimv2Model": "conv_encoder",
}


class RTDetr(DoubledAtInput):
    """transformers' RTDetr, RTDetrV2, DFine and Deimv2 with a hybrid encoder.

    ``after=1`` is layer 1 of every level that has layers. Each stream gets denoising queries of its own, with
    noise of its own. What the loss divides by is counted over both, so that terms of matched queries are the
    mean over the matches of both; a batch without any box has twice the stock loss.
    """

    names = ("rt_detr", "rt_detr_v2", "d_fine", "deimv2")
    expects = "an RTDetr, RTDetrV2, DFine or Deimv2 model with a hybrid encoder (transformers)"
    place = "after encoder layer 0 of each level that has one"
    batch_axes: ClassVar = {
        "hidden_states": 0,
        "attention_mask": 0,
        "spatial_position_embeddings": 0,  # of one row, which is for all images
        "kwargs": None,
    }

    @classmethod
    def parts(cls, model: nn.Module) -> Parts | None:
        """The encoder has a list of layers for each level; Deimv2's lite encoder has none."""
        path = path_of_class(model, *_BACKBONES)
        if path is None:
            return None
        inner = model.get_submodule(path.removesuffix("."))
        levels = getattr(inner.encoder, "aifi", ())
        lists = [f"{path}encoder.aifi.{level}.layers" for level in range(len(levels))]
        backbone = path + _BACKBONES[type(inner).__name__]
        return Parts(backbone, lists[0], further=tuple(lists[1:])) if lists else None
