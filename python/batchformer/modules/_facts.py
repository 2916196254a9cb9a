"""What has to be the same on all ranks, of samples and layers, and whether samples fit the layers."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from batchformer.modules import _declined

_ONE_SIZE = "pad or resize all maps to one size"


def facts(x: Tensor, positions: Sequence[int] | None, layers: Sequence[Any]) -> dict[str, int | str]:
    """By name, as :func:`batchformer.ranks.agree` compares them; the error names the first that differs.

    Args:
        x (Tensor[N, L, C]): the samples.
        positions: height and width of the map, if the L positions come from one; else None.
        layers: of the encoder.
    """
    first, device = layers[0], x.device.type
    sizes = {} if positions is None else {"height": positions[0], "width": positions[1]}
    autocast = torch.is_autocast_enabled(device)
    return {
        "x: number of channels": x.shape[2],
        f"x: number of positions; {_ONE_SIZE}": x.shape[1],
        **{f"x: {name}; {_ONE_SIZE}": size for name, size in sizes.items()},
        "torch.compile: use": int(torch.compiler.is_compiling()),
        "autocast": _name(torch.get_autocast_dtype(device)) if autocast else "off",
        "x: dtype": _name(x.dtype),
        "nhead": first.self_attn.num_heads,
        "dim_feedforward": first.linear1.out_features,
        "num_layers": len(layers),
        "norm_first": int(first.norm_first),
        "bias": int(first.self_attn.in_proj_bias is not None),
        "activation": _declined.activation_name(first.activation) or type(first.activation).__name__,
        "gradients: layers whose keys need them": _layers_with_gradients(x, layers),
    }


def layers_of(encoder: nn.Module) -> list[Any]:
    """The layers of a stack, or the one that the encoder is."""
    return list(encoder.layers) if isinstance(encoder, nn.TransformerEncoder) else [encoder]


def check_fits(x: Tensor, weight: Tensor) -> None:
    """Raise unless x has the layer's device and dtype, before other ranks wait for its keys."""
    if x.device != weight.device:
        raise ValueError(f"x: expected device {weight.device} as in_proj_weight has, got {x.device}")
    got = _name(x.dtype)
    if not x.is_floating_point():
        raise TypeError(f"x: expected a dtype of float16, bfloat16, float32 or float64, got {got}")
    # The dtype of a shard says nothing yet: gathering may change it.
    plain = type(weight) in (Tensor, nn.Parameter)
    if plain and x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type):
        raise ValueError(f"x: expected dtype {_name(weight.dtype)} as in_proj_weight has, got {got}")


def _layers_with_gradients(x: Tensor, layers: Sequence[Any]) -> str:
    """Numbers of the layers whose keys and values have a backward, in which all ranks have to take part."""
    found, before = [], x.requires_grad
    for number, layer in enumerate(layers):
        norm = list(layer.norm1.parameters()) if layer.norm_first else []
        projecting = [layer.self_attn.in_proj_weight, layer.self_attn.in_proj_bias, *norm]
        trained = any(each is not None and each.requires_grad for each in projecting)
        if torch.is_grad_enabled() and (before or trained):
            found.append(str(number))
        before = before or any(each.requires_grad for each in layer.parameters())
    return ", ".join(found) or "none"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
