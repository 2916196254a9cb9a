"""The layer as torch ops, `torch.ops.batchformer.*`, and the function that calls them."""

from batchformer.ops import autocast as _autocast  # noqa: F401 - registers the kernels
from batchformer.ops import flops as _flops  # noqa: F401 - registers the formulas
from batchformer.ops import vmap as _vmap  # noqa: F401 - registers the rules
from batchformer.ops.arguments import Config as Config
from batchformer.ops.arguments import Parameters as Parameters
from batchformer.ops.on_cuda import declined as declined
from batchformer.ops.op import empty_cache as empty_cache
from batchformer.ops.op import encoder_layer as encoder_layer
from batchformer.ops.op import instruction_set as instruction_set
from batchformer.ops.op import path_counts as path_counts
