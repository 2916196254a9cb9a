"""The encoder layer run module by module, on given keys and values, where the op does not run."""

import contextlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from batchformer.modules import _declined
from batchformer.modules._keys import InProjection
from batchformer.ops.op import mix


def composed(
    layer: nn.TransformerEncoderLayer,
    x: Tensor,
    keys_values: Tensor,
    key_count: Tensor | None,
    projection: InProjection,
    rank: int | None = None,
) -> Tensor:
    """Output of the layer for the samples of x alone, in its shape.

    Args:
        layer: whose modules are called.
        x (Tensor[N, L, C]): or Tensor[L, N, C] with batch_first.
        keys_values (Tensor[K, L, 2C]): or Tensor[L, K, 2C] with batch_first.
        key_count: how many of the K count; None if all.
        projection: in_proj of the layer's attention, whose query part is applied.
        rank: of this process, if others have keys, too: ranks with equal random states draw different masks.
            In a compiled graph they draw equal ones, as in all of torch's dropout.
    """
    if rank is not None and _drops(layer) and not torch.compiler.is_compiling():
        with _random_state_of(rank, x.device):
            return composed(layer, x, keys_values, key_count, projection)
    if layer.norm_first:
        x = x + _attended(layer, layer.norm1(x), keys_values, key_count, projection)
        y: Tensor = x + layer._ff_block(layer.norm2(x))
    else:
        x = layer.norm1(x + _attended(layer, x, keys_values, key_count, projection))
        y = layer.norm2(x + layer._ff_block(x))
    return y


def check_attention(layer: nn.Module) -> None:
    """Raise TypeError unless the attention of a layer is torch's own, whose parts are called one by one."""
    attention = getattr(layer, "self_attn", None)
    plain = (
        isinstance(attention, nn.MultiheadAttention)
        and type(attention).forward is nn.MultiheadAttention.forward
        and attention.in_proj_weight is not None
        and attention.bias_k is None
        and not attention.add_zero_attn
        and _declined.changed(attention) is None
        and _declined.block_changed(layer, "_sa_block") is None
    )
    if not plain:
        raise TypeError(
            f"encoder: expected torch's attention without hooks in {type(layer).__name__}, as its weights "
            f"are used one by one, got {type(attention).__name__} that was changed or replaced"
        )


def _drops(layer: nn.TransformerEncoderLayer) -> bool:
    """Whether the layer draws dropout masks; if not, the random state is left alone."""
    places = (layer.dropout, layer.dropout1, layer.dropout2)
    return layer.training and (layer.self_attn.dropout > 0 or any(place.p > 0 for place in places))


@contextlib.contextmanager
def _random_state_of(rank: int, device: torch.device) -> Iterator[None]:
    """A random state for this rank, seeded from the current one, which advances equally on all ranks."""
    seed = int(mix(torch.randint(2**63 - 1, (), device="cpu"), rank))
    if device.type == "cpu":
        with torch.random.fork_rng([]):
            torch.default_generator.manual_seed(seed)
            yield
        return
    module = torch.get_device_module(device)
    index = module.current_device() if device.index is None else device.index
    with torch.random.fork_rng([index], device_type=device.type), module.device(index):
        module.manual_seed(seed)
        yield


def _attended(
    layer: nn.TransformerEncoderLayer,
    x: Tensor,
    keys_values: Tensor,
    key_count: Tensor | None,
    projection: InProjection,
) -> Tensor:
    attention = layer.self_attn
    heads, batch_first = attention.num_heads, attention.batch_first
    query = _by_head(F.linear(x, projection.query_weight, projection.query_bias), heads, batch_first)
    key, value = (_by_head(each, heads, batch_first) for each in keys_values.chunk(2, dim=-1))  # [L, H, K, D]
    mask = None
    if key_count is not None:
        counts = torch.arange(key.shape[2], device=key.device) < key_count
        mask = counts.expand(query.shape[2], -1)  # [N, K]
    dropout = attention.dropout if attention.training else 0.0
    at_once = _declined.positions_at_once(x, query.shape[0])
    parts = zip(query.split(at_once), key.split(at_once), value.split(at_once), strict=True)
    attended = [F.scaled_dot_product_attention(*part, mask, dropout) for part in parts]
    y = attended[0] if len(attended) == 1 else torch.cat(attended)  # [L, H, N, D]
    order = (0, 2, 1, 3) if batch_first else (2, 0, 1, 3)
    attended_to: Tensor = layer.dropout1(attention.out_proj(y.permute(order).flatten(2)))
    return attended_to


def _by_head(x: Tensor, heads: int, batch_first: bool) -> Tensor:
    """x, `[N, L, C]` or `[L, N, C]`, as `[L, H, N, D]`."""
    apart: Tensor = x.unflatten(-1, (heads, -1))
    return apart.permute(0, 2, 1, 3) if batch_first else apart.permute(1, 2, 0, 3)
