"""Rows of a batch in what modules take and give: doubling targets, finding and replacing tensors."""

import copy
from collections.abc import Callable, MutableMapping, Sequence
from typing import Any, TypeAlias

from torch import Tensor

from batchformer.targets import duplicate, has_samples

Key: TypeAlias = str | int  # of an argument; torch 2.9 compiles no function that makes a union
Call: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]  # args and kwargs


def double_targets(
    args: tuple[Any, ...], kwargs: dict[str, Any], samples: int, targets: Sequence[Key] | None
) -> Call:
    """Arguments of a criterion with the targets doubled.

    Targets are those named, and if none are, everything with one row for each of the `samples`, but the first
    by position: the outputs, or the images that DeiT's criteria take before them. A tuple of one dict a
    sample, as collate functions of detection give it, is as good as a list.
    """

    def doubled(key: Key, value: Any) -> Any:
        if (key == 0) if targets is None else (key not in targets):
            return value
        if (
            isinstance(value, tuple)
            and len(value) == samples
            and all(isinstance(each, dict) for each in value)
        ):
            return value + value
        return duplicate(value) if has_samples(value, samples) else value

    return (
        tuple(doubled(position, value) for position, value in enumerate(args)),
        {name: doubled(name, value) for name, value in kwargs.items()},
    )


def by_name(names: Sequence[str], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a call by the names of the parameters, in their order."""
    return dict(zip(names, args, strict=False)) | kwargs


def first(output: Any) -> Tensor:
    """The tensor that a block gives: the output itself, or the first of a tuple."""
    tensor = output[0] if isinstance(output, (tuple, list)) and output else output
    if not isinstance(tensor, Tensor):
        raise TypeError(f"x: expected a block that returns a torch.Tensor, got {type(tensor).__name__}")
    return tensor


def with_first(output: Any, tensor: Tensor) -> Any:
    """The output of a block with another tensor in place of :func:`first`."""
    return tensor if isinstance(output, Tensor) else type(output)([tensor, *output[1:]])


def map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """`value` with `function` of every tensor in it; tuples, lists and mappings are copied, never changed."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, tuple):
        values = [map_tensors(each, function) for each in value]
        return type(value)(*values) if hasattr(value, "_fields") else tuple(values)
    if isinstance(value, list):
        return [map_tensors(each, function) for each in value]
    if isinstance(value, MutableMapping):
        mapped = copy.copy(value)
        for key, each in value.items():
            mapped[key] = map_tensors(each, function)
        return mapped
    return value


def tensors(value: Any) -> list[Tensor]:
    """Every tensor that :func:`map_tensors` would meet."""
    found: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    map_tensors(value, keep)
    return found
