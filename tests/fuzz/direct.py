"""The ops themselves as Python: the only lines that know the order of their arguments."""

from functools import cache

import torch

import batchformer  # noqa: F401 - registers the ops

_NEEDS = "[True] * 13"  # x and the twelve parameters
_SAVING = {"save": "True", "needs": _NEEDS}
_GROUPS = {"in_proj_weight": "*parameters", "nhead": "*config", "qkv": "*saved"}


@cache
def forward() -> str:
    """The forward op of `x`, `parameters`, `seed` and `config`, saving all that the backward needs."""
    return _expression("encoder_layer", torch.ops.batchformer.encoder_layer.default)


@cache
def backward() -> str:
    """Its backward of `grad_y` too, and `saved`."""
    return _expression("encoder_layer_backward", torch.ops.batchformer.encoder_layer_backward.default)


@cache
def saved_names() -> tuple[str, ...]:
    return tuple(value.name for value in torch.ops.batchformer.encoder_layer.default._schema.returns[1:])


def _expression(name: str, op: torch._ops.OpOverload) -> str:
    words = []
    for argument in op._schema.arguments:
        if argument.name in ("x", "grad_y", "seed"):
            words.append(argument.name)
        elif argument.name in _SAVING:
            words.append(_SAVING[argument.name])
        elif argument.name in _GROUPS:
            words.append(_GROUPS[argument.name])
    return f"torch.ops.batchformer.{name}({', '.join(words)})"
