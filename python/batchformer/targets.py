"""Targets and rows of the two streams: doubling, and taking the first or the second half."""

import copy
from collections.abc import Callable, Iterator, MutableMapping
from numbers import Number
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from batchformer import marks, one_stream

Targets = TypeVar("Targets")

_ABOUT_THE_BATCH = (Number, str, bytes, Tensor, np.ndarray, np.generic)


def duplicate(targets: Targets) -> Targets:
    """Targets for both streams: every entry twice, originals first.

    Args:
        targets: one entry a sample: a Tensor[N, ...] or array (class indices, soft labels), or a list (one
            dict an image, as in detection). A tuple or dict holds several such targets and keeps its
            type; numbers, strings and 0-d tensors in it are about the whole batch and stay as they are
            (mixup's lambda). None stays None.

    The dicts and lists of single samples are copied, so that a change in one stream is none in the other;
    the tensors in them are shared: change none in place.

    Raises:
        TypeError: anything else. A list is never taken for several targets: pass a tuple.

    Source: Hou et al., "BatchFormer" (CVPR 2022), section 3.2.

    Example:
        >>> duplicate(torch.tensor([3, 1]))
        tensor([3, 1, 3, 1])
    """
    doubled: Targets = _map_leaves(targets, twice)
    return doubled


def original(x: Targets) -> Targets:
    """First half of doubled rows: the stream without BatchFormer. Takes what :func:`duplicate` gives.

    In evaluation, and with ``outputs="originals"``, a model returns the originals: take them as they are.

    Raises:
        ValueError: an odd number of rows, which cannot be two streams, or what such a model returned.

    Example:
        >>> original(torch.tensor([3, 1, 3, 1]))
        tensor([3, 1])
    """
    first: Targets = _map_leaves(x, lambda rows: _stream(rows[: _half(rows)]))
    return first


def related(x: Targets) -> Targets:
    """Second half of doubled rows: the stream with BatchFormer. Takes what :func:`duplicate` gives.

    Raises:
        ValueError: an odd number of rows, which cannot be two streams, or what a model returned in evaluation
            or with ``outputs="originals"``: the originals alone.

    Example:
        >>> related(torch.tensor([3, 1, 3, 1]))
        tensor([3, 1])
    """
    second: Targets = _map_leaves(x, lambda rows: _stream(rows[_half(rows) :], of=rows))
    return second


def check_batch_size(targets: Any, samples: int) -> None:
    """Raise ValueError unless every target in `targets` has one entry for each sample."""
    for leaf in _leaves(targets):
        if _count(leaf) != samples:
            raise ValueError(f"y: expected {samples} targets, one for each sample of x, got {_count(leaf)}")


def twice(entries: Any, axis: int = 0) -> Any:
    """A tensor or an array with everything twice along an axis, a list or a tuple with its entries twice."""
    if isinstance(entries, Tensor):
        return torch.cat([entries, entries], dim=axis)
    if isinstance(entries, np.ndarray):
        return np.concatenate([entries, entries], axis=axis)
    return type(entries)([*entries, *map(_copied, entries)])


def _copied(entry: Any) -> Any:
    return copy.copy(entry) if isinstance(entry, (MutableMapping, list)) else entry


def _count(rows: Any) -> int:
    # len() of a tensor is a plain int, which would fix the batch size of an exported program
    return len(rows) if isinstance(rows, list) else rows.shape[0]


def _stream(rows: Any, of: Any = None) -> Any:
    """Half of the rows, which a wrapped criterion then takes as they are.

    Code that takes the related rows computes their loss: no criterion has to be wrapped for them.
    """
    if isinstance(rows, Tensor) and not torch.compiler.is_compiling():
        mark = marks.find(of) if isinstance(of, Tensor) else None
        if isinstance(mark, marks.Doubled):
            mark.forward.answered = True
        marks.put_by_history(rows, marks.Stream())
    return rows


def _half(rows: Any) -> int:
    one_stream.check_has_both(rows)
    if isinstance(rows, Tensor) and not torch.compiler.is_compiling():
        _check_doubled(rows)
    count = _count(rows)
    if count % 2:
        raise ValueError(f"x: expected an even number of rows, two streams, got {count}")
    return count // 2


def _check_doubled(rows: Tensor) -> None:
    """Raise ValueError for outputs with one row for each sample, or with the streams along another axis."""
    mark = marks.of_itself(rows)
    if type(mark) is marks.Doubled and not _has_streams_first(rows, mark):
        raise ValueError(
            f"x: expected both streams along the first axis, got shape {list(rows.shape)} with "
            f"{2 * mark.samples} rows of both along another; move that axis to the front, or take them apart "
            f"in a wrapped criterion"
        )
    if isinstance(mark, (marks.Single, marks.Split)):
        raise ValueError(
            f"x: expected rows of both streams, got the {len(rows)} originals that a model returned, in "
            f'evaluation or with outputs="originals"; take them as they are'
        )


def _has_streams_first(rows: Tensor, mark: marks.Doubled) -> bool:
    if mark.axis_of(rows) == 0:
        return True
    # Flattened with axes after them.
    return mark.shown and not mark.before and rows.shape[0] % (2 * mark.samples) == 0


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) or (isinstance(value, (Tensor, np.ndarray)) and value.ndim > 0)


def _map_leaves(targets: Any, function: Callable[[Any], Any], *, inside: bool = False) -> Any:
    if targets is None:
        return None
    if _is_rows(targets):
        return function(targets)
    if isinstance(targets, tuple):
        values = [_map_leaves(value, function, inside=True) for value in targets]
        return type(targets)(*values) if hasattr(targets, "_fields") else tuple(values)
    if isinstance(targets, MutableMapping):
        mapped = {key: _map_leaves(value, function, inside=True) for key, value in targets.items()}
        return with_values(targets, mapped)
    if inside and isinstance(targets, _ABOUT_THE_BATCH):
        return targets
    raise TypeError(
        f"targets: expected a tensor, array or list with one entry a sample, a tuple or dict of those, or "
        f"None, got {_describe(targets)}"
    )


def with_values(targets: MutableMapping[Any, Any], values: dict[Any, Any]) -> MutableMapping[Any, Any]:
    """A copy of the mapping with other values."""
    copied = copy.copy(targets)
    for key, value in values.items():
        before = targets[key]
        copied[key] = value
        if value is not before and targets[key] is value:  # the copy and the original share what they hold
            targets[key] = before
            raise TypeError(
                f"targets: expected a mapping that copy.copy copies, got a {type(targets).__name__}, whose "
                f"copy changes with it; give it a __copy__, or pass a dict"
            )
    return copied


def _leaves(targets: Any) -> Iterator[Any]:
    found: list[Any] = []
    _map_leaves(targets, found.append)
    yield from found


def _describe(value: Any) -> str:
    return "a 0-d tensor" if isinstance(value, Tensor) else type(value).__name__
