"""What torch.utils.flop_counter counts for the ops: as much as for torch's own layer."""

from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry, register_flop_formula

from batchformer._extension import core
from batchformer.ops.arguments import unpack


@register_flop_formula(torch.ops.batchformer.encoder_layer)
def _forward(x: torch.Size, *arguments: Any, **_out_shape: Any) -> int:
    products, _ = _attention_products(arguments)
    return 2 * (sum(_linears(x, arguments)) + products * _scores(x, arguments))


@register_flop_formula(torch.ops.batchformer.encoder_layer_backward)
def _backward(_grad_y: torch.Size, x: torch.Size, *arguments: Any, **_out_shape: Any) -> int:
    """Each product gives the gradients of both its factors, as far as they are needed."""
    unpacked = unpack(arguments)
    config, (_, needs) = unpacked.config, unpacked.rest
    _, *of_parameters = needs
    passed, attention = core.passed(config, needs)
    linears = sum(
        linear * (bool(of_weight) + of_input)
        for linear, of_weight, of_input in zip(
            _linears(x, arguments), of_parameters[:8:2], passed, strict=True
        )
    )
    _, products = _attention_products(arguments)
    return 2 * (linears + (products * _scores(x, arguments) if attention else 0))


def _linears(x: torch.Size, arguments: tuple[Any, ...]) -> list[int]:
    shapes = unpack(arguments).parameters
    weights = (shapes.in_proj_weight, shapes.out_proj_weight, shapes.linear1_weight, shapes.linear2_weight)
    return [x[0] * x[1] * prod(weight) for weight in weights]


def _scores(x: torch.Size, arguments: tuple[Any, ...]) -> int:
    """FLOPs of q kᵀ, and of each other product of attention."""
    first, second, channels = x
    unpacked = unpack(arguments)
    brought: Any = unpacked.keys_values  # a shape, as are all tensors here
    axis = 1 if unpacked.config.batch_first else 0
    keys = x[axis] if brought is None else brought[axis]
    return first * second * int(keys) * channels


def _attention_products(arguments: tuple[Any, ...]) -> tuple[int, int]:
    """How many are counted in torch's layer, forward and backward.

    Without dropout torch runs a fused kernel, whose backward computes the scores again; torch counts the
    fused kernel of the CPU in later releases only.
    """
    if unpack(arguments).config.dropout[0] > 0:
        return 2, 4
    return (2, 5) if torch.ops.aten._scaled_dot_product_flash_attention_for_cpu in flop_registry else (0, 0)
