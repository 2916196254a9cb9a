"""What a block gives: its tensor, alone or as the first of a tuple."""

from typing import Any

from torch import Tensor


def first(output: Any, place: object) -> Tensor:
    """The tensor that a block gives: the output itself, or the first of a tuple."""
    tensor = output[0] if isinstance(output, (tuple, list)) and output else output
    if not isinstance(tensor, Tensor):
        raise TypeError(
            f"x: expected a block at {place} that returns a torch.Tensor, got {type(tensor).__name__}"
        )
    return tensor


def with_first(output: Any, tensor: Tensor) -> Any:
    """The output of a block with another tensor in place of :func:`first`."""
    if isinstance(output, Tensor):
        return tensor
    values = [tensor, *output[1:]]
    return type(output)(*values) if hasattr(output, "_fields") else type(output)(values)
