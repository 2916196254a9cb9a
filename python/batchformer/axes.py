"""Which axis of what a tensor was computed from an axis of it is, by the nodes of the autograd graph."""

import itertools
import math
from collections.abc import Sequence
from typing import Any, TypeAlias

Node: TypeAlias = Any  # torch.autograd.graph.Node
Output: TypeAlias = tuple[Node, int]  # which of the tensors that a node gave

TURNS = ("TBackward0", "TransposeBackward0")
_OF_TWO_FACTORS = ("MmBackward0", "BmmBackward0")
_ELSEWHERE = (0, 0)
_LEAVE_OUT = ("SelectBackward0", "UnbindBackward0")
_ANYHOW = ("AsStridedBackward0", "UnfoldBackward0", "RepeatBackward0", "Rot90Backward0")
_ALIGNED = ("Add", "Sub", "Mul", "Div", "Pow", "Maximum", "Minimum", "Where", "Expand")  # at the last axes
_VIEWS = ("View", "Reshape", "Squeeze", "Unsqueeze")


def shape_of(output: Output) -> tuple[int, ...]:
    """The shape of a tensor that a node gave."""
    node, number = output
    return tuple(node._input_metadata[number].shape)


def followed(way: Sequence[Output], axis: int) -> tuple[int, int] | None:
    """Where an axis of the tensor that a way begins at comes from, at its end; None if that is unknown.

    What is equal to no axis there, if it comes from another input of a product.

    An axis is the number of entries along those before it, and its size, as a view may join and part axes.
    """
    shape = shape_of(way[0])
    return followed_part(way, math.prod(shape[:axis]), shape[axis])


def followed_part(way: Sequence[Output], before: int, size: int) -> tuple[int, int] | None:
    """As :func:`followed`, of an axis that may be joined with others in the tensor that a way begins at."""
    if before * size == 0:  # every axis has all of no entries
        return None
    for (node, number), source in itertools.pairwise(way):
        given, taken = shape_of((node, number)), shape_of(source)
        sources = _axes_of_input(node, given, taken)
        if sources is None:
            continue
        if not sources:
            return None
        found = _axis_that_has(given, before, size)
        if found is not None and _is_of_other_factor(node, source, found[0] - len(given)):
            return _ELSEWHERE
        axis_of_input = None if found is None else sources[found[0]]
        if found is not None and axis_of_input is not None and taken[axis_of_input] == given[found[0]]:
            before = math.prod(taken[:axis_of_input]) * found[1]
        elif is_turned(node) or not _begin_alike(given, taken, before * size):
            return None
    return before, size


def _is_of_other_factor(node: Node, source: Output, axis: int) -> bool:
    """Whether an axis, counted from behind, of a product of matrices comes from its other factor."""
    if node.name() not in _OF_TWO_FACTORS:
        return False
    return axis == (-1 if node.next_functions[0][0] == source[0] else -2)


def _axis_that_has(shape: Sequence[int], before: int, size: int) -> tuple[int, int] | None:
    """The axis that is, or was joined from, one of that size with so many entries along those before it.

    Returns:
        The axis, and how many entries are along those before in what it was joined from.
    """
    for axis, length in enumerate(shape):
        inside, rest = divmod(before, max(1, math.prod(shape[:axis])))
        if rest == 0 and length % (inside * size) == 0:
            return axis, inside
    return None


def _begin_alike(given: Sequence[int], taken: Sequence[int], entries: int) -> bool:
    """Whether two shapes of as many axes have the same first axes, which make up so many entries."""
    alike = itertools.takewhile(lambda sizes: sizes[0] == sizes[1], zip(given, taken, strict=False))
    return len(given) == len(taken) and math.prod(each for each, _ in alike) % entries == 0


def _axes_of_input(node: Node, given: Sequence[int], taken: Sequence[int]) -> list[int | None] | None:
    """For each axis of what a node gives that of what it got.

    Returns:
        None, if axes are joined or parted and stay in their order; an empty list, if nothing is known.
    """
    name, dims = node.name(), len(given)
    if name == "PermuteBackward0":
        return [_signed(axis) % dims for axis in node._saved_dims]
    order: list[int | None] = list(range(dims))
    if name == "TransposeBackward0":
        one, other = (_signed(axis) % dims for axis in (node._saved_dim0, node._saved_dim1))
        order[one], order[other] = other, one
        return order
    if name == "TBackward0":
        return order[::-1]
    if name == "StackBackward0":
        made = _signed(node._saved_dim) % dims
        return [None if axis == made else axis - (axis > made) for axis in range(dims)]
    if name in _LEAVE_OUT or (hasattr(node, "_saved_keepdim") and dims < len(taken)):  # as a mean
        saved = node._saved_dim
        left_out = [_signed(axis) % len(taken) for axis in ([saved] if isinstance(saved, int) else saved)]
        return [axis for axis in range(len(taken)) if axis not in left_out]
    if any(view in name for view in _VIEWS):
        return None
    if name in _ANYHOW:
        return []
    if dims >= len(taken) and name.split("Backward")[0] in _ALIGNED:
        return [*[None] * (dims - len(taken)), *range(len(taken))]
    # Of an unknown function, as attention written in CUDA, the first axis is that of the batch.
    return order if dims == len(taken) else [0, *[None] * (dims - 1)] if taken else []


def is_turned(node: Node) -> bool:
    """Whether a node gives the axes of what it got in another order."""
    return node.name() in ("PermuteBackward0", *TURNS)


def _signed(number: int) -> int:
    return number - 2**64 if number >= 2**63 else number  # -1 is saved as 2**64 - 1
