"""What a block gives: its tensor, alone or as the first of a tuple."""

from typing import Any

from torch import Tensor

from batchformer.swap_in.rules import with_entries


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
    return tensor if isinstance(output, Tensor) else with_entries(output, [tensor, *output[1:]])
