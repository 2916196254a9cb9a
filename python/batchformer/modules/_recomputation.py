"""What the memory bank held in a forward, found again when a checkpoint recomputes that forward.

A recomputation is matched to its forward by what runs it, never by its values, which kernels may round
differently the second time:

- With use_reentrant=False torch has a frame for each checkpointed part, the same in forward and
  recomputation; the calls in it come in the same order. What they saw is freed with the frame, as the graph
  is freed.
- With use_reentrant=True the forward has no gradients, and no frame. A node of the graph, made just before
  the forward, runs it again: its calls are the next ones without gradients after the node. A call does not
  show whether a checkpoint makes it, so the latest are kept; for an older node an error is raised.

Whatever does not match raises: it would silently give the gradients of something else.
"""

import inspect
import threading
import weakref
from collections import deque
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.utils.checkpoint import _CheckpointFrame

from batchformer.marks import in_backward

_THREAD = threading.local()  # torch numbers nodes per thread, and Python reuses the ids of threads
_MOST_CALLS = 256
_MOST_SNAPSHOTS = 3  # each may be as large as the bank


class Snapshot(NamedTuple):
    """The state of a bank; it is replaced, never modified."""

    rows: Tensor | None
    samples: Tensor


@dataclass(eq=False)
class Forward:
    """A call, and its recomputations."""

    shape: torch.Size
    snapshot: Snapshot
    entered: bool  # whether its samples are in the bank, by itself or by a recomputation


class _Call(NamedTuple):
    thread: object
    moment: int  # in the order in which the thread makes nodes of the graph
    forward: Forward | None  # None: with gradients; no node runs it again


class _Region(NamedTuple):
    """A pair of hooks on saved tensors that is active in the thread."""

    pack: Any
    frame: _CheckpointFrame | None  # None: not of torch's checkpoint
    again: bool


class Forwards:
    """The forwards of one bank that may run again."""

    def __init__(self) -> None:
        self._of_frames: weakref.WeakKeyDictionary[_CheckpointFrame, list[Forward]]
        self._of_frames = weakref.WeakKeyDictionary()
        self._found: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()  # by recomputation
        self._calls: deque[_Call] = deque()
        self._calls_of_backward: list[_Call] = []  # of checkpoints inside of one that runs again
        self._forgotten = -1  # the latest moment of a call that is no longer kept

    def call(self, shape: torch.Size, snapshot: Snapshot) -> tuple[Forward, bool]:
        """The forward that this call is, or recomputes, and whether its samples enter the bank now.

        Raises:
            RuntimeError: it recomputes an unknown forward, or one with another shape.
        """
        regions, gradients = _regions(), torch.is_grad_enabled()
        last = max((index for index, region in enumerate(regions) if region.again), default=None)
        if last is None and not in_backward():
            forward, enters = Forward(shape, snapshot, gradients), gradients
            self._calls_of_backward.clear()
            self._keep(_call(None if gradients else forward))
        else:
            found = self._by_node(regions) if last is None else self._by_frame(regions[last])
            if found is None:
                raise RuntimeError(
                    "checkpoint: expected to run a forward again that the memory bank has seen recently, got "
                    "another (in a hook on gradients, by another package's checkpoint, of a module copied "
                    "before its backward, or hundreds of forwards later); use torch.utils.checkpoint, or "
                    "leave memory_bank_size out"
                )
            if found.shape != shape:
                raise RuntimeError(
                    f"checkpoint: expected to run a forward with x of shape {list(found.shape)} again, got "
                    f"{list(shape)}: the part of the model did not do the same again"
                )
            forward, enters = found, gradients and not found.entered
            forward.entered |= enters
            if not gradients:
                self._calls_of_backward.append(_call(forward))
            regions = regions if last is None else regions[last + 1 :]
        for region in regions:
            if region.frame is not None:
                self._of_frames.setdefault(region.frame, []).append(forward)
        return forward, enters

    def _keep(self, call: _Call) -> None:
        self._calls.append(call)
        snapshots = 0
        if call.forward is not None:
            snapshots = len(self._snapshots())
        while len(self._calls) > _MOST_CALLS or snapshots > _MOST_SNAPSHOTS:
            gone = self._calls.popleft()
            self._forgotten = max(self._forgotten, gone.moment)
            if snapshots > _MOST_SNAPSHOTS:
                snapshots = len(self._snapshots())

    def _snapshots(self) -> set[int]:
        return {id(call.forward.snapshot.rows) for call in self._calls if call.forward is not None}

    def _by_frame(self, region: _Region) -> Forward | None:
        """The call that comes next in the frame of a recomputation."""
        calls = [] if region.frame is None else self._of_frames.get(region.frame, [])
        index = self._found.get(region.pack, 0)
        self._found[region.pack] = index + 1
        return calls[index] if index < len(calls) else None

    def _by_node(self, regions: list[_Region]) -> Forward | None:
        """The first call after the node that is running was made."""
        node = torch._C._current_autograd_node()
        if not isinstance(node, BackwardCFunction):
            return None  # not a Python function, and only those can run a forward
        if any(region.frame is None for region in regions) and "Checkpoint" not in node.name():
            return None  # another package's checkpoint, which works by hooks on saved tensors
        made = node._sequence_nr()
        calls = [call for call in (*self._calls, *self._calls_of_backward) if call.moment > made]
        if self._forgotten > made or len({call.thread for call in calls}) != 1:
            return None
        task = torch._C._current_graph_task_id()
        of_task, index = node.metadata.get(self, (task, 0))
        index = index if of_task == task else 0  # a second backward of the same graph
        node.metadata[self] = (task, index + 1)
        return calls[index].forward if index < len(calls) else None


def _call(forward: Forward | None) -> _Call:
    thread = _THREAD.__dict__.setdefault("itself", object())
    return _Call(thread, torch._C._autograd._get_sequence_nr(), forward)


def _regions() -> list[_Region]:
    """The hooks on saved tensors that are active in the thread, outermost first.

    Torch shows the innermost alone, so all are taken off and put back.
    """
    autograd, hooks = torch._C._autograd, []
    try:
        while (pair := autograd._top_saved_tensors_default_hooks(True)) is not None:
            hooks.append(pair)
            autograd._pop_saved_tensors_default_hooks()
    finally:
        for pack, unpack in reversed(hooks):
            autograd._push_saved_tensors_default_hooks(pack, unpack)
    return [_region(pack) for pack, _ in reversed(hooks)]


def _region(pack: Any) -> _Region:
    """Torch's hooks see their frame in a forward, and by a weak reference in a recomputation."""
    for cell in getattr(inspect.unwrap(pack), "__closure__", None) or ():
        again = isinstance(cell.cell_contents, weakref.ref)
        frame = cell.cell_contents() if again else cell.cell_contents
        if isinstance(frame, _CheckpointFrame):
            return _Region(pack, frame, again)
    return _Region(pack, None, again=False)
