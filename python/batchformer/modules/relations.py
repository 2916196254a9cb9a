"""The attention probabilities of an encoder layer, at one position or averaged over all."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from batchformer._extension import core
from batchformer.modules import _check

_MOST_ELEMENTS = 2**24  # of the largest tensor that the mean takes at once: 64 MiB in float32


def relations(encoder: nn.Module, x: Tensor, *, uniform: bool = False) -> NDArray[np.floating[Any]]:
    """Attention probabilities `[heads, N, N]` between the samples of x `[N, C]`; see batchformer.relations.

    If uniform, all are 1 / N, as those of a module with attend="uniform".

    Raises:
        TypeError: encoder holds no single layer; x is not a floating point tensor.
        ValueError: a shape, dtype or device of x that does not fit the encoder, or tensors without values.
    """
    layer = _layer(encoder)
    _check.dense("x", x)
    attention = layer.self_attn
    weight = attention.in_proj_weight
    if weight is None:
        raise TypeError("encoder: expected self_attn with one in_proj_weight, got one with kdim or vdim")
    for name, tensor in (("x", x), ("in_proj_weight", weight)):
        if tensor.is_meta:  # the core would take it for another device
            raise ValueError(f"{name}: expected a tensor with values, got one on meta")
    # The core refuses an x that does not fit, with our message; norm1 would raise first, with torch's.
    fits = x.shape[1:] == weight.shape[1:] and x.dtype == weight.dtype and x.device == weight.device
    with torch.no_grad():
        attended = layer.norm1(x) if layer.norm_first and fits else x
        found = core.relations(attended.detach(), weight, attention.in_proj_bias, attention.num_heads)
    return np.full_like(found, 1 / len(x)) if uniform else found


def mean_relations(encoder: nn.Module, x: Tensor, *, uniform: bool = False) -> NDArray[np.floating[Any]]:
    """The mean `[heads, N, N]` of :func:`relations` over the positions of x `[N, L, C]`.

    Raises:
        TypeError: as :func:`relations`.
        ValueError: as :func:`relations`.
    """
    mean = relations(encoder, x[:, 0], uniform=uniform)  # which checks x
    samples, positions, channels = x.shape
    if positions == 1 or uniform:
        return mean
    layer, heads = _layer(encoder), len(mean)
    at_once = max(1, _MOST_ELEMENTS // (samples * max(2 * channels, heads * samples)))
    with torch.no_grad():
        sums = [_probabilities(layer, part).sum(0) for part in x.split(at_once, dim=1)]  # each [H, N, N]
        total: NDArray[np.floating[Any]] = torch.stack(sums).sum(0).cpu().numpy()
    return total / positions


def _layer(encoder: nn.Module) -> nn.TransformerEncoderLayer:
    layer = encoder if isinstance(encoder, nn.TransformerEncoderLayer) else getattr(encoder, "encoder", None)
    if not isinstance(layer, nn.TransformerEncoderLayer):
        raise TypeError(
            f"encoder: expected a TransformerEncoderLayer or a module whose .encoder is one, got "
            f"{type(encoder).__name__}; of a stack, pass one of its layers"
        )
    return layer


def _probabilities(layer: nn.TransformerEncoderLayer, x: Tensor) -> Tensor:
    """Probabilities `[L, H, N, N]` at each position of x `[N, L, C]`."""
    attention = layer.self_attn
    samples, positions, channels = x.shape
    bias = attention.in_proj_bias
    query_and_key = F.linear(
        layer.norm1(x) if layer.norm_first else x,
        attention.in_proj_weight[: 2 * channels],
        None if bias is None else bias[: 2 * channels],
    )  # [N, L, 2C]
    if query_and_key.dtype in (torch.float16, torch.bfloat16):  # as the core does
        query_and_key = query_and_key.float()
    heads = query_and_key.view(samples, positions, 2, attention.num_heads, -1)  # [N, L, 2, H, D]
    query, key = heads.permute(2, 1, 3, 0, 4)  # each [L, H, N, D]
    scores: Tensor = query * query.shape[-1] ** -0.5 @ key.transpose(-1, -2)  # [L, H, N, N]
    return scores.softmax(-1)
