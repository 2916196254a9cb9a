"""Which path a call takes on the device at hand, whatever BATCHFORMER_CUDA says there."""

import pytest
from torch import Tensor

import batchformer as bf
from batchformer._extension import core
from batchformer.ops.on_cuda import Signature


def path_of(layer: bf.TransformerEncoderLayer, x: Tensor) -> str | None:
    """The path of the layer's calls on x; None where torch's own layer runs."""
    skip_what_is_refused(layer, x)
    if layer.declined(x) is not None:
        return None
    return "cuda" if x.is_cuda else "cpu"


def skip_what_is_refused(layer: bf.TransformerEncoderLayer, x: Tensor) -> None:
    """Skips a call on CUDA that has to run in kernels, and is none that they were made for."""
    if not x.is_cuda or core.cuda_switch() != "kernels":
        return
    dtypes = (x.dtype, layer.self_attn.in_proj_weight.dtype, layer.norm1.weight.dtype)
    refused = core.cuda_reason(
        Signature(
            x.device.index,
            *(str(dtype).removeprefix("torch.") for dtype in dtypes),
            layer.self_attn.embed_dim,
            layer.self_attn.num_heads,
            layer.linear1.out_features,
            layer._config().activation == "gelu",
            layer.norm_first,
        ),
        True,
    )
    if refused is not None:
        sentence, is_fault = refused
        assert not is_fault, sentence
        pytest.skip(f"BATCHFORMER_CUDA=kernels: {sentence}")
