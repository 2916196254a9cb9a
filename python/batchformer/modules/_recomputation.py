"""What a forward saw, found again by the recomputations of checkpoints.

Which recomputation belongs to which forward is told by what runs it, never by its numbers, which kernels may
round otherwise the second time:

- With use_reentrant=False a part of the model has a frame of torch's, in its forward as in its recomputation;
  the calls in it come in the same order. What they saw goes when the frame goes, with the graph.
- With use_reentrant=True the forward has no gradients, and no frame. A node of the graph runs it again, which
  was made just before it: of all calls without gradients, those that came next are its own. A call does not
  tell whether a checkpoint makes it, so the latest are kept, and no older node is answered.

Whatever does not fit is refused: it would give finite gradients of something else.
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

_THREAD = threading.local()  # torch numbers nodes by thread, and Python uses a thread's number again
_MOST_CALLS = 256
_MOST_SNAPSHOTS = 3  # each may be as large as the bank


class Snapshot(NamedTuple):
    """The state of a bank; it is replaced and never written."""

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
    """A pair of hooks on saved tensors that the thread is under."""

    pack: Any
    frame: _CheckpointFrame | None  # None: not of torch's checkpoint
    again: bool


class Forwards:
    """The forwards of one bank that may run again."""

    def __init__(self) -> None:
        self._of_frames: weakref.WeakKeyDictionary[_CheckpointFrame, list[Forward]]
        self._of_frames = weakref.WeakKeyDictionary()
        self._found: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()  # by the recomputation
        self._calls: deque[_Call] = deque()
        self._calls_of_backward: list[_Call] = []  # of checkpoints inside of one that runs again
        self._forgotten = -1  # the latest moment of a call that is not kept any more

    def call(self, shape: torch.Size, snapshot: Snapshot) -> tuple[Forward, bool]:
        """The forward that this call is, or runs again, and whether its samples enter the bank now.

        Raises:
            RuntimeError: it runs again what is not known, or with another shape.
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
                    "checkpoint: expected to run a forward again that the memory bank has seen, and not long "
                    "ago, got another (inside of a hook on gradients, by the checkpoint of another package, "
                    "of a module that was copied before its backward, or before hundreds of others); use "
                    "torch.utils.checkpoint, or leave memory_bank_size out"
                )
            if found.shape != shape:
                raise RuntimeError(
                    f"checkpoint: expected to run a forward with x of shape {list(found.shape)} again, got "
                    f"{list(shape)}, so that the part of the model does not do what it did"
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
        """The call that comes next after the node was made that runs now."""
        node = torch._C._current_autograd_node()
        if not isinstance(node, BackwardCFunction):
            return None  # no function of Python's, which alone can run a forward
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
    """What the thread is under, outermost first.

    Torch tells the innermost alone, so all are taken off and put back.
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
