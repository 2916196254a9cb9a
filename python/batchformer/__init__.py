"""BatchFormer and BatchFormerV2 for PyTorch: samples of a batch learn from one another, in training only."""

from batchformer import _extension as _extension  # before anything else that needs the extension
from batchformer import ops as ops
from batchformer.modules.accelerate import accelerate as accelerate
from batchformer.modules.batchformer import BatchFormer as BatchFormer
from batchformer.modules.batchformer import batchformer as batchformer
from batchformer.modules.batchformer_v2 import BatchFormerV2 as BatchFormerV2
from batchformer.modules.encoder_layer import TransformerEncoderLayer as TransformerEncoderLayer
from batchformer.plots import plot_relations as plot_relations
from batchformer.swap_in.attach import attach as attach
from batchformer.swap_in.attachment import Attachment as Attachment
from batchformer.swap_in.known import KnownFamily as KnownFamily
from batchformer.swap_in.known import families as families
from batchformer.swap_in.official import load_official as load_official
from batchformer.swap_in.relations import relations as relations
from batchformer.targets import duplicate as duplicate
from batchformer.targets import original as original
from batchformer.targets import related as related

__version__: str = _extension.core.__version__
