"""BatchFormer and BatchFormerV2 for PyTorch: samples of a batch learn from one another, in training only."""

from batchformer import (
    _extension,  # before anything else that needs the extension
    ops,
)
from batchformer.modules.accelerate import accelerate
from batchformer.modules.batchformer import BatchFormer, batchformer
from batchformer.modules.batchformer_v2 import BatchFormerV2
from batchformer.modules.encoder_layer import TransformerEncoderLayer
from batchformer.plots import plot_relations
from batchformer.swap_in.attach import attach
from batchformer.swap_in.attachment import Attachment
from batchformer.swap_in.known import KnownFamily, families
from batchformer.swap_in.official import load_official
from batchformer.swap_in.relations import relations
from batchformer.targets import duplicate, original, related

__all__ = [
    "Attachment",
    "BatchFormer",
    "BatchFormerV2",
    "KnownFamily",
    "TransformerEncoderLayer",
    "accelerate",
    "attach",
    "batchformer",
    "duplicate",
    "families",
    "load_official",
    "ops",
    "original",
    "plot_relations",
    "related",
    "relations",
]

__version__: str = _extension.core.__version__


def __dir__() -> list[str]:
    """The public names; other names in this module may change at any time."""
    return [*__all__, "__doc__", "__version__"]
