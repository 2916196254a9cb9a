"""A criterion without targets, called once for each pairing of the streams of its outputs.

Outputs of one batch go in with the same stream. Those of two batches, as of two views or of images and their
texts, are paired: each stream of the one with each of the other, or with ``pairings="aligned"`` equal streams
only. So a related row is never in one call with its own original, whose negative it would be.
"""

import copy
import dataclasses
import itertools
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from batchformer import marks, one_stream
from batchformer.marks import Doubled, OfPairing
from batchformer.swap_in.rules import map_tensors, with_entries, with_fields
from batchformer.swap_in.signature import Call
from batchformer.swap_in.state import State

Batch: TypeAlias = Any  # equal for two outputs of the same batch


class Axis(NamedTuple):
    """An axis of an output that has both streams of a batch."""

    number: int
    samples: Any  # N
    batch: Batch


class Both(NamedTuple):
    """An output with both streams."""

    tensor: Tensor
    axes: tuple[Axis, ...]  # one; two of a matrix of similarities
    mark: Doubled | None


def each_pairing(batches: Sequence[Batch], pairings: str) -> Iterator[dict[Batch, int]]:
    """Which stream of each batch to take, for every call; the originals come first.

    Raises:
        ValueError: all pairings of more than two batches.
    """
    count = len(batches)
    if pairings == "all" and count > 2:
        raise ValueError(
            "criterion: expected outputs of at most 2 batches, as all their streams are paired, got some of "
            f'{count}; wrap the term of each pair of batches, or attach(..., pairings="aligned")'
        )
    streams = itertools.product((0, 1), repeat=count) if pairings == "all" else [(0,) * count, (1,) * count]
    for each in streams:
        yield dict(zip(batches, each, strict=True))


def call_for_each(
    criterion: Callable[..., Any],
    function: Callable[..., Any],
    call: Call,
    outputs: list[Both],
    pairings: str,
) -> Any:
    """The mean of what a criterion gives for each pairing.

    A criterion that splits the streams, with original() and related(), is called once, with both.

    Args:
        criterion: what was wrapped; may have a state.
        function: what to call.
        call: its arguments, with both streams of the outputs.
        outputs: those that are in the arguments.
        pairings: "all" or "aligned".
    """
    batches = list(dict.fromkeys(axis.batch for output in outputs for axis in output.axes))
    state = State(criterion)
    results = []
    try:
        for streams in each_pairing(batches, pairings):
            taken = [_stream(output, streams) for output in outputs]

            def take(tensor: Tensor, taken: list[Tensor] = taken) -> Tensor:
                same = (mine for output, mine in zip(outputs, taken, strict=True) if output.tensor is tensor)
                return next(same, tensor)

            # Each by itself, as the compiler does not compare what holds them all.
            args = tuple(map_tensors(each, take) for each in call[0])
            kwargs = {name: map_tensors(each, take) for name, each in call[1].items()}
            with one_stream.calls():
                results.append(function(*args, **kwargs))
            state.keep()
    except one_stream.TakesApart:
        state.reset()
        args, kwargs = call
        return function(*args, **kwargs)
    except BaseException:
        state.end()  # as the stock criterion would be after its call
        raise
    state.end()
    return mean_of(results)


def _stream(output: Both, streams: dict[Batch, int]) -> Tensor:
    tensor = output.tensor
    for axis in output.axes:
        tensor = tensor.narrow(axis.number, streams[axis.batch] * axis.samples, axis.samples)  # [N, ...]
    if output.mark is not None and not torch.compiler.is_compiling():
        marks.put_by_history(tensor, OfPairing(output.mark.forward, output.mark.samples))
    return tensor


def mean_of(results: list[Any]) -> Any:
    """The mean of each tensor and float in the results; anything else is taken from the originals.

    Raises:
        ValueError: tensors of several shapes.
        TypeError: an object of another kind that holds a loss.
    """
    first = results[0]
    if isinstance(first, Tensor) and first.is_floating_point():
        shapes = [list(each.shape) for each in results]
        if any(shape != shapes[0] for shape in shapes):
            raise ValueError(
                f"criterion: expected tensors of one shape for all pairings of streams, whose mean is the "
                f"loss, got {shapes}; reduce them in the criterion"
            )
        return sum(results[1:], first) / len(results)
    if isinstance(first, float):
        return sum(results) / len(results)
    if isinstance(first, (list, tuple)) and all(len(each) == len(first) for each in results):
        means = [mean_of(list(each)) for each in zip(*results, strict=True)]
        return with_entries(first, means)
    if isinstance(first, MutableMapping):
        mean = copy.copy(first)
        for name in first:
            mean[name] = mean_of([each[name] for each in results])
        return mean
    if dataclasses.is_dataclass(first) and not isinstance(first, type):
        names = [field.name for field in dataclasses.fields(first)]
        return with_fields(
            first, {name: mean_of([getattr(each, name) for each in results]) for name in names}
        )
    if any(
        isinstance(each, Tensor) and each.requires_grad for each in getattr(first, "__dict__", {}).values()
    ):
        raise TypeError(
            "criterion: expected a tensor, or a list, tuple, dict or dataclass of them, whose mean over the "
            f"pairings of streams is the loss, got a {type(first).__name__}"
        )
    return first
