"""What torch.utils.flop_counter counts for the ops: what it counts in torch's own layer."""

from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from batchformer.ops.arguments import unpack


@register_flop_formula(torch.ops.batchformer.encoder_layer)
def _forward(x: torch.Size, *arguments: Any, **_out_shape: Any) -> int:
    shapes, _seed, config, _needs = unpack(arguments)
    weights = (shapes.in_proj_weight, shapes.out_proj_weight, shapes.linear1_weight, shapes.linear2_weight)
    first, second, channels = x
    products = first * second * sum(map(prod, weights))
    # Without dropout torch's attention on the CPU is one kernel that torch's table does not have.
    if config.dropout[0] > 0:
        samples = second if config.batch_first else first
        products += 2 * first * second * samples * channels  # q kᵀ and the probabilities times v
    return 2 * products


@register_flop_formula(torch.ops.batchformer.encoder_layer_backward)
def _backward(_grad_y: torch.Size, x: torch.Size, *arguments: Any, **_out_shape: Any) -> int:
    flops: int = 2 * _forward(x, *arguments)  # each product gives the gradients of both its factors
    return flops
