"""Keys and values that samples attend to in addition to their own: of other ranks and earlier steps."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from batchformer.ops import Parameters
from batchformer.ranks import Ranks, gather


class Keys(NamedTuple):
    """What the samples of one layer attend to."""

    ranks: Ranks | None = None
    """The ranks whose samples are attended to, too; None if this process is alone."""
    samples: Sequence[int] = ()
    """How many samples each rank has."""
    facts: Mapping[str, int | str] | None = None
    """What has to be the same on all ranks, for a compiled graph to check when it runs."""
    rows: Tensor | None = None
    """Remembered inputs of the layer, [M, L, C]."""
    row_count: Tensor | None = None
    """How many of these rows are samples; None: all."""
    uniform: bool = False
    """Whether all keys get equal attention."""


def are_of_own_samples_alone(keys: Keys) -> bool:
    """Whether the samples attend to each other alone.

    Not a property, as the compiler of torch 2.10 does not see properties of tuples.
    """
    return keys.ranks is None and (keys.rows is None or keys.rows.shape[0] == 0)


class InProjection(NamedTuple):
    """in_proj of an attention, split into the part for queries and the part for keys and values."""

    query_weight: Tensor  # [C, C]
    query_bias: Tensor | None  # [C]
    weight: Tensor  # [2C, C]
    bias: Tensor | None  # [2C]


def of_queries(parameters: Parameters, projection: InProjection) -> Parameters:
    """The op's parameters for a call with given keys and values."""
    return parameters._replace(in_proj_weight=projection.query_weight, in_proj_bias=projection.query_bias)


def in_proj(attention: nn.MultiheadAttention, *, uniform: bool) -> tuple[Tensor, Tensor | None]:
    """in_proj_weight `[3C, C]` and in_proj_bias `[3C]`; if uniform, with zeros for queries and keys.

    All scores are zero then, and every softmax is uniform: through the same arithmetic, with the same noise.
    """
    weight, bias = attention.in_proj_weight, attention.in_proj_bias
    if not uniform:
        return weight, bias
    return _values_alone(weight), None if bias is None else _values_alone(bias)


def _values_alone(tensor: Tensor) -> Tensor:
    query_and_key = 2 * tensor.shape[0] // 3
    return torch.cat([torch.zeros_like(tensor[:query_and_key]), tensor[query_and_key:]])


def split_in_proj(attention: nn.MultiheadAttention, *, uniform: bool) -> InProjection:
    """The parts of :func:`in_proj`, made by split, so that the backward makes one gradient of theirs."""
    weight, bias = in_proj(attention, uniform=uniform)
    channels = weight.shape[1]
    query_weight, key_weight = weight.split([channels, 2 * channels])
    query_bias, key_bias = (None, None) if bias is None else bias.split([channels, 2 * channels])
    return InProjection(query_weight, query_bias, key_weight, key_bias)


def keys_and_values(
    layer: nn.TransformerEncoderLayer, x: Tensor, keys: Keys, projection: InProjection
) -> tuple[Tensor, Tensor | None]:
    """Keys and values `[K, L, 2C]` of all samples attended to, and how many of the K count (None: all).

    Own samples are among them once. Remembered ones are projected with the current norm1 and weights, which
    get gradients from them. With batch_first the first is `[L, K, 2C]`.

    Args:
        layer: whose norm1 and attention are taken.
        x (Tensor[N, L, C]): or Tensor[L, N, C] with batch_first.
        keys: which samples are attended to.
        projection: of the layer's attention.
    """

    def project(inputs: Tensor) -> Tensor:
        normed = layer.norm1(inputs) if layer.norm_first else inputs
        return F.linear(normed, projection.weight, projection.bias)

    batch_first = layer.self_attn.batch_first
    found = project(x)
    found = found.transpose(0, 1) if batch_first else found  # [N, L, 2C]
    if keys.ranks is not None:
        found = gather(found, keys.samples, keys.ranks, keys.facts)  # [samples of all ranks, L, 2C]
    count = None if keys.row_count is None else keys.row_count + found.shape[0]
    if keys.rows is not None and keys.rows.shape[0] > 0:
        found = torch.cat([found, project(keys.rows)])  # [K, L, 2C]
    return found.transpose(0, 1) if batch_first else found, count
