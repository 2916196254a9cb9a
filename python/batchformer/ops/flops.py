"""What torch.utils.flop_counter counts for the ops: what it counts in torch's own layer."""

from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from batchformer._extension import core
from batchformer.ops.arguments import unpack


@register_flop_formula(torch.ops.batchformer.encoder_layer)
def _forward(x: torch.Size, *arguments: Any, **_out_shape: Any) -> int:
    return 2 * (sum(_linears(x, arguments)) + _attention(x, arguments))


@register_flop_formula(torch.ops.batchformer.encoder_layer_backward)
def _backward(_grad_y: torch.Size, x: torch.Size, *arguments: Any, **_out_shape: Any) -> int:
    """Each product gives the gradients of both its factors, as far as they are needed."""
    _, _, config, (_, needs) = unpack(arguments)
    _, *of_parameters = needs
    passed, attention = core.passed(config, needs)
    products = sum(
        linear * (bool(of_weight) + of_input)
        for linear, of_weight, of_input in zip(
            _linears(x, arguments), of_parameters[:8:2], passed, strict=True
        )
    )
    return 2 * (products + (2 * _attention(x, arguments) if attention else 0))


def _linears(x: torch.Size, arguments: tuple[Any, ...]) -> list[int]:
    shapes = unpack(arguments).parameters
    weights = (shapes.in_proj_weight, shapes.out_proj_weight, shapes.linear1_weight, shapes.linear2_weight)
    return [x[0] * x[1] * prod(weight) for weight in weights]


def _attention(x: torch.Size, arguments: tuple[Any, ...]) -> int:
    """Of q kᵀ and the probabilities times v; without dropout torch's table does not have torch's kernel."""
    config = unpack(arguments).config
    first, second, channels = x
    samples = second if config.batch_first else first
    return 2 * first * second * samples * channels if config.dropout[0] > 0 else 0
