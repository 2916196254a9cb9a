"""SigLIP2 of transformers for image classification, whose images differ in size and have masks of patches."""

from typing import ClassVar

from torch import nn

from batchformer.swap_in.doubled_at_input import DoubledAtInput, Parts
from batchformer.swap_in.options import Options
from batchformer.swap_in.places import Place, find_blocks, path_of_class


class Siglip2(DoubledAtInput):
    """A vision transformer whose blocks and pooling also take the mask of the patches."""

    names: ClassVar[tuple[str, ...]] = ("vit", "deit")
    expects = "a Siglip2ForImageClassification (transformers)"
    place = "after block 8"
    takes = ("after", "shared", "outputs", "wrapped")
    batch_axes: ClassVar = {"hidden_states": 0, "attention_mask": 0, "kwargs": None}

    @classmethod
    def parts(cls, model: nn.Module) -> Parts | None:
        """The embeddings see every image once, and the blocks follow them."""
        path = path_of_class(model, "Siglip2ForImageClassification")
        if path is None:
            return None
        return Parts(f"{path}vision_model.embeddings", f"{path}vision_model.encoder.layers")

    @classmethod
    def find_places(cls, model: nn.Module, options: Options) -> list[Place]:
        """Blocks, the ninth if none is named, as in other vision transformers."""
        return find_blocks(model, cls._parts(model).blocks, options.after, default=8)
