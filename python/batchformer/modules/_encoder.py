"""The encoder inside BatchFormer and BatchFormerV2, and how it is applied across the batch."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from batchformer.modules import _check, _declined
from batchformer.modules._others import Others
from batchformer.modules.encoder_layer import TransformerEncoderLayer


class _Layers(nn.TransformerEncoder):
    """torch.nn.TransformerEncoder whose layers may also attend to others, each to those of its own layer."""

    def forward(self, src: Tensor, *arguments: Any, others: Others | None = None, **named: Any) -> Tensor:
        """Output of all layers, in the shape of `src`."""
        if others is None:
            return super().forward(src, *arguments, **named)
        for number, layer in enumerate(self.layers):
            src = others.through(layer, number, src)
        return src if self.norm is None else self.norm(src)


def make_encoder(
    dim: int,
    nhead: int,
    dim_feedforward: int | None,
    dropout: float,
    activation: str | Callable[[Tensor], Tensor],
    *,
    num_layers: int,
    **layer_arguments: Any,
) -> nn.Module:
    """One layer, or `num_layers` equally initialised ones, as torch.nn.TransformerEncoder makes them."""
    _check.heads(nhead, dim, "dim")
    if num_layers < 1:
        raise ValueError(f"num_layers: expected at least 1, got {num_layers}")
    width = dim if dim_feedforward is None else dim_feedforward
    layer = TransformerEncoderLayer(dim, nhead, width, dropout, activation, **layer_arguments)
    return layer if num_layers == 1 else _Layers(layer, num_layers, enable_nested_tensor=False)


def across_samples(
    encoder: nn.Module, x: Tensor, attend: str = "batch", others: Others | None = None
) -> Tensor:
    """Samples of x `[N, L, C]` after attending to each other at every position: `[N, L, C]`.

    With attend="alone" every token is a batch of one: the same layer, nothing to relate to.
    """
    samples, positions, channels = x.shape
    if samples == 0 and (others is None or others.alone):  # else other ranks have some
        raise ValueError("x: expected at least 1 sample in training, got an empty batch")
    if others is not None:
        return _attend(encoder, x, others)
    if attend == "alone":
        x = x.reshape(1, samples * positions, channels)
    at_once = _declined.positions_at_once(x, x.shape[1])
    if x.shape[1] <= at_once:
        y = _attend(encoder, x)
    else:
        y = torch.cat([_attend(encoder, part) for part in x.split(at_once, dim=1)], dim=1)
    return y.reshape(samples, positions, channels) if attend == "alone" else y


def which_attend(attend: str) -> str:
    """The value of `attend`, which had another name in 0.1.

    Raises:
        ValueError: one that does not exist.
    """
    if attend == "self":  # which reads as self-attention
        warnings.warn('attend="self" is called "alone" from 0.2 on', DeprecationWarning, stacklevel=4)
        attend = "alone"
    _check.one_of("attend", attend, ("batch", "alone", "uniform"))
    return attend


def _attend(encoder: nn.Module, x: Tensor, others: Others | None = None) -> Tensor:
    second = _attends_over_second_axis(encoder)
    x = x.transpose(0, 1) if second else x
    if others is None:
        y: Tensor = encoder(x)
    elif isinstance(encoder, nn.TransformerEncoder):
        y = encoder(x, others=others)
    else:
        y = others.through(encoder, 0, x)
    return y.transpose(0, 1) if second else y


def _attends_over_second_axis(encoder: nn.Module) -> bool:
    """Whether the encoder was made with batch_first; its batch axis is our axis of positions."""
    layer = encoder.layers[0] if isinstance(encoder, nn.TransformerEncoder) else encoder
    attention = getattr(layer, "self_attn", None)
    if attention is None:  # inside of a wrapper, such as DistributedDataParallel
        attention = next((m for m in encoder.modules() if isinstance(m, nn.MultiheadAttention)), None)
    return bool(getattr(attention, "batch_first", False))
