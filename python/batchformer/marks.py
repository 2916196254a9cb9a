"""Which tensors come from a doubled batch: marks on nodes of the autograd graph; without one, on storages.

A mark is held by the node or the storage that it is on and freed with it, so that nothing has to be cleared
after a step, and any number of models, batches and threads may run at once. It says what doubled the batch,
and how many samples the batch had.
"""

import itertools
import math
import threading
import weakref
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.weak import WeakTensorKeyDictionary

from batchformer.axes import TURNS, Node, Output, followed, followed_part, is_turned, shape_of

_KEY = "batchformer"
_PRODUCTS = ("MmBackward0",)
_DISTANCES = ("CdistBackward0", "EuclideanDistBackward0")
_BIASED = ("AddmmBackward0", "AddmvBackward0", "BaddbmmBackward0", "AddbmmBackward0")
_COMPILED = "CompiledFunctionBackward"  # one node for a whole graph, whose inside does not show
_OP = "_EncoderLayerBackward"  # of the autograd function in ops/op.py


class Mark:
    """What is known of a tensor."""


class Origin:
    """A place that doubled N samples: what is computed from its output has both streams."""

    def __init__(self, forward: Any, samples: Any) -> None:
        self.forward = forward
        self.samples = samples


# Of a matrix of similarities between samples: the origins of its rows and of its columns; else None.
Pairs: TypeAlias = tuple[Origin | None, Origin | None] | None


@dataclass(eq=False)
class Doubled(Mark):
    """Both streams of `samples` samples, made in `forward`."""

    forward: Any  # of swap_in
    samples: int
    origin: Origin | None = field(default=None, kw_only=True)
    pairs: Pairs = field(default=None, kw_only=True)
    before: tuple[int, ...] = field(default=(), kw_only=True)  # sizes of the axes before that of the batch
    # Whether it is known where the batch is in what has the mark: along an axis, or outermost in the first.
    shown: bool = field(default=True, kw_only=True)

    def batch_at_end_of(self, way: Sequence[Output]) -> tuple[int, int]:
        """What :func:`followed` gives for an axis of the samples, on a way that ends where the mark is."""
        return math.prod(shape_of(way[-1])[: len(self.before)]), 2 * self.samples

    def axis_of(self, tensor: Tensor, *, other: int | None = None) -> int | None:
        """The axis of both streams in a tensor, not the `other`; None if no axis can be.

        Raises:
            ValueError: several can, and the history does not show which comes from that of the batch.
        """
        usual, rows = len(self.before), 2 * self.samples
        axes = [axis for axis, size in enumerate(tensor.shape) if size == rows and axis != other]
        if not axes or not self.shown:
            return None
        way = _way(tensor)
        if way:
            batch, ends = self.batch_at_end_of(way), {axis: followed(way, axis) for axis in axes}
            found = [axis for axis in axes if ends[axis] == batch]
            if len(found) == 1:
                return found[0]
            if _KEY in way[-1][0].metadata:  # what is as long by chance comes from another axis
                axes = [axis for axis in axes if ends[axis] in (None, batch)]
        if len(axes) < 2:
            return axes[0] if axes else None
        if any(is_turned(node) for node, _ in way[:-1]):
            raise ValueError(
                f"model: expected one axis with the {rows} entries of both streams in an output of shape "
                f"{list(tensor.shape)}, got {len(axes)}, and the way from the place does not show which it "
                "is; take batches of another size"
            )
        return usual if usual in axes and tuple(tensor.shape[:usual]) == self.before else axes[0]

    def is_outermost_in(self, tensor: Tensor) -> bool:
        """Whether the batch can be the outermost of what the first axis of a tensor was joined from.

        Not if the history shows another order, or does not show it; a compiled graph has no history.
        """
        way = _way(tensor)
        if not way or _KEY not in way[-1][0].metadata:
            return self.shown
        return self.shown and followed_part(way, 1, 2 * self.samples) == self.batch_at_end_of(way)


@dataclass(eq=False)
class AtInput(Doubled):
    """Twice the batch, before the first place: the second half is no stream yet."""


@dataclass(eq=False)
class Split(Doubled):
    """The originals' rows of an output, and the related rows that were split off.

    `original` has no history, as its node must not hold a reference to itself.
    """

    original: Tensor
    rows: Tensor  # the originals' rows with their history
    related: Tensor
    version: int
    axis: int = 0
    zero: Tensor | None = None  # the gradient of the originals from a wrapped criterion; see split.py


@dataclass(eq=False)
class OfPairing(Doubled):
    """One stream of an output, with which a criterion is called for a pairing."""


@dataclass(eq=False)
class Stream(Mark):
    """One stream alone, taken out by hand with original() or related()."""


@dataclass(eq=False)
class Single(Mark):
    """An output with one entry for each sample, from before the first place or in evaluation."""


@dataclass(eq=False)
class Twice(Mark):
    """Images that were doubled for a criterion: both halves are the same."""


@dataclass(eq=False)
class Hidden(Mark):
    """The output of a compiled graph: its history does not show what the graph computes."""


@dataclass(eq=False)
class Unmarked(Hidden):
    """That of a graph which ran op by op: its history shows all, but no marks."""


# Weak on both sides: an entry keeps neither the memory nor the mark alive, which may hold related rows.
_STORAGES: dict[int, tuple[StorageWeakRef, "weakref.ref[Mark]"]] = {}
_KEPT = WeakTensorKeyDictionary()  # marks kept alive by a tensor without history; attributes are pickled
_LOCK = threading.Lock()
_LEAST_FULL = 64
_FULL = _LEAST_FULL  # number of entries at which expired ones are dropped


def put(tensor: Tensor, mark: Mark) -> bool:
    """Mark a tensor, so that :func:`find` finds it in all that is computed from it or shares its storage.

    The mark is kept by the node that made the tensor, or by the tensor, if it has no history.

    Returns:
        Whether there is anything that keeps it: a tensor of torch.vmap has neither a history nor a storage.
    """
    put_by_history(tensor, mark)
    reference = _storage(tensor)
    if reference is not None:
        with _LOCK:
            if tensor.grad_fn is None:
                _KEPT[tensor] = mark
            _forget_expired()
            _STORAGES[reference.cdata] = (reference, weakref.ref(mark))
    return reference is not None or tensor.grad_fn is not None


def _forget_expired() -> None:
    """Drop the entries whose storage or mark is gone, whenever the number of entries has doubled."""
    global _FULL
    if len(_STORAGES) < _FULL:
        return
    for key in [key for key, entry in _STORAGES.items() if entry[0].expired() or not entry[1]()]:
        del _STORAGES[key]
    _FULL = max(_LEAST_FULL, 2 * len(_STORAGES))


def put_by_history(tensor: Tensor, mark: Mark) -> None:
    """Mark a tensor for what is computed from it, by its node; a tensor without history gets no mark."""
    if tensor.grad_fn is not None:
        metadata: Any = tensor.grad_fn.metadata  # a dict, which torch's stub has as a method
        metadata[_KEY] = mark


def find(tensor: Tensor) -> Mark | None:
    """The nearest mark: in the history of a tensor, else on its storage."""
    found = None if tensor.grad_fn is None else _nearest(tensor.grad_fn)
    if found is not None:
        return found
    return find_by_storage(tensor)


def of_itself(tensor: Tensor) -> Mark | None:
    """The mark that was put on this tensor, or on its storage; not on what it was computed from."""
    metadata: Any = {} if tensor.grad_fn is None else tensor.grad_fn.metadata
    mark: Mark | None = metadata.get(_KEY)
    return find_by_storage(tensor) if mark is None else mark


def find_by_storage(tensor: Tensor) -> Mark | None:
    """The mark on the storage of a tensor."""
    reference = _storage(tensor)
    entry = None if reference is None else _STORAGES.get(reference.cdata)
    return None if entry is None else entry[1]()


def _nearest(node: Node) -> Mark | None:
    hidden = None
    for each in _history(node):
        mark: Mark | None = each.metadata.get(_KEY)
        if mark is not None:
            return mark
        if hidden is None and _COMPILED in each.name():
            hidden = Hidden()
    return hidden


def _history(node: Node, ends: Callable[[Node], bool] | None = None) -> Iterator[Node]:
    """A node and all that it was computed from, at 0.1 microseconds each; none behind `ends`.

    Depth first along the first inputs, which lead to the activations.
    """
    seen, waiting = {node}, [node]
    while waiting:
        node = waiting.pop()
        yield node
        if ends is not None and ends(node):
            continue
        for following, _ in reversed(_inputs(node)):
            if following not in seen:
                seen.add(following)
                waiting.append(following)


def _inputs(node: Node) -> list[Output]:
    """What a node was computed from, the activations first; a bias may have a history of its own."""
    inputs = list(node.next_functions)
    if node.name() in _BIASED:
        inputs = [*inputs[1:], inputs[0]]
    return [each for each in inputs if each[0] is not None]


def _storage(tensor: Tensor) -> StorageWeakRef | None:
    try:
        return StorageWeakRef(tensor.untyped_storage())
    except (RuntimeError, NotImplementedError):  # a subclass that wraps other tensors has none
        return None


def _way(tensor: Tensor) -> list[Output]:
    """From a tensor to its nearest mark, else to a compiled graph; empty, if it leads to neither.

    Of several inputs of a node, the first that leads there.
    """
    return [] if tensor.grad_fn is None else _way_from(tensor.grad_fn, tensor.output_nr)


def _way_from(node: Node, number: int) -> list[Output]:
    """As :func:`_way`, from what a node gave."""
    came_from: dict[Node, tuple[int, Node]] = {}
    waiting: list[tuple[Node, int, Node]] = [(node, number, None)]
    end = None
    while waiting:
        node, number, after = waiting.pop()
        if node in came_from:
            continue
        came_from[node] = number, after
        if _KEY in node.metadata:
            end = node
            break
        if end is None and _COMPILED in node.name():
            end = node
        waiting += [(each, number, node) for each, number in reversed(_inputs(node))]
    way: list[Output] = []
    while end is not None:
        number, after = came_from[end]
        way.append((end, number))
        end = after
    return way[::-1]


def path_of(tensor: Tensor) -> list[Node]:
    """The nodes from a tensor to its nearest mark, without the one that has it."""
    nodes = [node for node, _ in _way(tensor)] or [tensor.grad_fn]
    return [node for node in nodes if node is not None and _KEY not in node.metadata]


def names_on_path(tensor: Tensor) -> list[str]:
    """The names of :func:`path_of`."""
    return [node.name() for node in path_of(tensor)]


def all_doubled(tensor: Tensor, cuts: Container[str]) -> Iterator[Doubled]:
    """The nearest marks in all that a tensor was computed from, but not behind nodes of the names `cuts`."""

    def ends(node: Node) -> bool:
        return _KEY in node.metadata or node.name() in cuts

    for node in () if tensor.grad_fn is None else _history(tensor.grad_fn, ends):
        mark = cast("dict[str, Any]", node.metadata).get(_KEY)
        if isinstance(mark, Doubled):
            yield mark


def pairs_of(tensor: Tensor) -> Pairs:
    """Where rows and columns of a matrix come from, if both are samples of doubled batches; else None.

    A matrix is one of pairs if on the way to its nearest mark two marked tensors were combined, as by a
    product or a difference, so that their samples are along two axes. None in the result stands for an
    unknown origin, as from a compiled graph.
    """
    if tensor.dim() != 2 or tensor.grad_fn is None:
        return None
    sizes = {2 * each.samples for each in all_doubled(tensor, ())}
    may_be, turned, way = sizes.issuperset(tensor.shape), False, _way(tensor)
    for place, (node, number) in enumerate(way):
        mark = node.metadata.get(_KEY)
        found = mark.pairs if isinstance(mark, Doubled) else None
        if mark is None and node.name() in _PRODUCTS:
            factors = [_nearest(each) for each, _ in node.next_functions if each is not None]
            of_samples = len(factors) == 2 and all(isinstance(each, (Doubled, Hidden)) for each in factors)
            if of_samples and all(
                _may_be_of_samples((node, number), source, axis)
                for axis, source in enumerate(node.next_functions)
            ):
                found = (getattr(factors[0], "origin", None), getattr(factors[1], "origin", None))
        if mark is None and found is None and may_be:
            combined = _combined(node, number, way[: place + 1])
            if combined is not None:
                return combined
        if found is not None:
            return found[::-1] if turned else found
        turned ^= node.name() in TURNS
    return None


def _may_be_of_samples(product: Output, factor: Output, axis: int) -> bool:
    """Whether an axis of a product, which comes from a factor, may be joined from the batch of that."""
    behind = _way_from(*factor)
    mark = cast("dict[str, Any]", behind[-1][0].metadata).get(_KEY) if behind else None
    if not isinstance(mark, Doubled):  # a compiled graph does not show it
        return True
    end, (before, rows) = followed([product, *behind], axis), mark.batch_at_end_of(behind)
    return end is None or (end[0] == before and end[1] % rows == 0)


def _combined(node: Node, number: int, way: Sequence[Output]) -> Pairs:
    """The pairs of a matrix that a way leads from, if its last node combined the samples of two tensors."""
    inputs = _inputs(node)
    if len(inputs) < 2:
        return None
    shape = shape_of((node, number))
    samples: list[tuple[set[tuple[int, int]], Origin | None]] = []  # the axes that they are along
    for position, source in enumerate(inputs):
        behind = _way_from(*source)
        mark = cast("dict[str, Any]", behind[-1][0].metadata).get(_KEY) if behind else None
        if not isinstance(mark, Doubled):
            continue
        of_batch = mark.batch_at_end_of(behind)
        if position == 1 and node.name() in _DISTANCES:
            axes = {len(shape) - 1} if followed(behind, len(shape) - 2) == of_batch else set()
        else:
            whole = [(node, number), *behind]
            axes = {axis for axis in range(len(shape)) if followed(whole, axis) == of_batch}
        samples.append(({(math.prod(shape[:axis]), shape[axis]) for axis in axes}, mark.origin))
    for (one, of_one), (other, of_other) in itertools.combinations(samples, 2):
        if one and other and not one & other:
            return (
                (of_one, of_other)
                if followed(way, 0) in one or followed(way, 1) in other
                else (of_other, of_one)
            )
    return None


def leaves_of(tensor: Tensor) -> Iterator[Tensor]:
    """The parameters and other leaves that a tensor was computed from."""
    for node in () if tensor.grad_fn is None else _history(tensor.grad_fn):
        if hasattr(node, "variable"):
            yield node.variable


def is_computed_by_the_op(tensor: Tensor) -> bool:
    """Whether the op of the layer is in the history of a tensor."""
    return tensor.grad_fn is not None and any(node.name() == _OP for node in _history(tensor.grad_fn))


def in_backward() -> bool:
    """Whether this thread runs a backward, in which a checkpoint runs its part of the forward again."""
    return bool(torch._C._current_graph_task_id() != -1)
