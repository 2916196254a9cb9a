"""Forward-mode AD, which the ops do not support: a tangent raises, instead of being lost silently."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.autograd import forward_ad


def refuse_tangents(arguments: Iterable[Any]) -> None:
    """Raise NotImplementedError if a tensor among `arguments` is dual."""
    if has_tangent(arguments):
        raise NotImplementedError(
            "batchformer::encoder_layer: forward-mode AD is not supported. "
            "torch.nn.TransformerEncoderLayer, whose state_dict is the same, has torch's support for it."
        )


def has_tangent(arguments: Iterable[Any]) -> bool:
    """Whether a tensor among `arguments` is dual. Cheap when forward-mode AD is not in use."""
    return forward_ad._current_level >= 0 and any(
        isinstance(argument, Tensor) and forward_ad.unpack_dual(argument).tangent is not None
        for argument in arguments
    )
