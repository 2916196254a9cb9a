"""What is known of a forward in a compiled graph, which hides the history of its outputs and so all marks."""

from typing import Any

import torch
from torch import Tensor

from batchformer.marks import Doubled, Mark, Split
from batchformer.swap_in import split
from batchformer.swap_in.forward import Forward


class Compiled:
    """The forward that is under way in a graph, N of the last one, and what was split off its outputs."""

    def __init__(self) -> None:
        self.forward: Forward | None = None
        self.samples: Any = None  # of the last forward outside of graphs, too, for a criterion in one
        self.was_eager = False  # whether the last forward ended outside of graphs
        self.unanswered = False  # whether a forward in a graph has ended that no criterion has seen
        self._split: list[tuple[Tensor, Tensor, int]] = []  # originals, related rows, along which axis

    def __getstate__(self) -> dict[str, Any]:
        """Without rows: they have a history, which cannot be copied or saved."""
        return self.__dict__ | {"forward": None, "_split": []}

    def enter(self, forward: Forward) -> None:
        """Begin a forward."""
        self.forward, self._split = forward, []

    def leave(self) -> Forward | None:
        """End it."""
        forward, self.forward = self.forward, None
        return forward

    def forget(self) -> None:
        """End it without what is for a criterion."""
        self.forward, self._split = None, []

    def take_originals(self, axis: int, tensor: Tensor) -> Tensor:
        """The originals of an output with 2N entries along the axis of the batch at the places, or its first.

        Any other output is returned as it is.
        """
        rows = None if self.samples is None else 2 * self.samples
        axes = [each for each in (axis, 0) if each < tensor.dim() and tensor.shape[each] == rows]
        if not axes:
            return tensor
        original, related = tensor.chunk(2, dim=axes[0])
        self._split.append((original, related, axes[0]))
        return original

    def mark(self, owner: object, tensor: Tensor) -> Mark | None:
        """The mark that a tensor would have: by identity, else by the number of its rows."""
        if self.samples is None or not (tensor.is_floating_point() and tensor.requires_grad):
            return None
        forward = Forward(owner, answered=True)
        for original, related, axis in self._split:
            if tensor is original or (not torch.compiler.is_compiling() and split.shows(tensor, original)):
                return self._split_mark(forward, original, related, axis)
        if any(size == 2 * self.samples for size in tensor.shape):
            return Doubled(forward, self.samples)
        if self._split and tensor.dim() > 0 and tensor.shape[0] == self.samples:
            return self._split_mark(forward, *self._split[0])  # which says that it is no view
        return None

    def _split_mark(self, forward: Forward, original: Tensor, related: Tensor, axis: int) -> Split:
        return Split(forward, self.samples, original, original, related, split.version_of(original), axis)
