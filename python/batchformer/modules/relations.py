"""Who attends to whom in a batch, for pictures."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from batchformer._extension import core
from batchformer.modules import _check


def relations(encoder: nn.Module, x: Tensor) -> NDArray[np.floating[Any]]:
    """Attention probabilities `[heads, N, N]` between the samples of x; row i is what sample i attends to.

    Without dropout, whatever the mode of the encoder; no gradient, and nothing of the encoder changes.

    Args:
        encoder: a torch.nn.TransformerEncoderLayer or ours, or a module with one as its ``encoder``, like
            BatchFormer and BatchFormerV2.
        x (Tensor[N, C]): what would go into the encoder; of a token map, one position.

    Raises:
        TypeError: encoder holds no single layer; x is not a floating point tensor.
        ValueError: a shape, dtype or device of x that does not fit the encoder, or tensors without values.

    Example:
        >>> relations(BatchFormer(64, nhead=4), torch.rand(32, 64)).shape
        (4, 32, 32)
    """
    layer = encoder if isinstance(encoder, nn.TransformerEncoderLayer) else getattr(encoder, "encoder", None)
    if not isinstance(layer, nn.TransformerEncoderLayer):
        raise TypeError(
            f"encoder: expected a TransformerEncoderLayer or a module whose .encoder is one, got "
            f"{type(encoder).__name__}; of a stack, pass one of its layers"
        )
    _check.dense("x", x)
    attention = layer.self_attn
    weight = attention.in_proj_weight
    if weight is None:
        raise TypeError("encoder: expected self_attn with one in_proj_weight, got one with kdim or vdim")
    for name, tensor in (("x", x), ("in_proj_weight", weight)):
        if tensor.is_meta:  # the core would take it for another device
            raise ValueError(f"{name}: expected a tensor with values, got one on meta")
    # The core refuses an x that does not fit, with a sentence; norm1 would be first, with torch's.
    fits = x.shape[1:] == weight.shape[1:] and x.dtype == weight.dtype and x.device == weight.device
    with torch.no_grad():
        attended = layer.norm1(x) if layer.norm_first and fits else x
        return core.relations(attended.detach(), weight, attention.in_proj_bias, attention.num_heads)
