"""The state of a criterion that is called several times in a step: what the first call made of it stays."""

from typing import Any, TypeAlias

from torch import Tensor, nn

Holder: TypeAlias = dict[str, Any]


class State:
    """Buffers and other tensors of a criterion, such as a memory bank, a centre or running statistics.

    Every call begins with those that the first began with, and at the end they are as the first left them:
    what the stock criterion makes of a step.
    """

    def __init__(self, criterion: Any) -> None:
        owner = getattr(criterion, "__self__", criterion)  # of a bound method
        modules = list(owner.modules()) if isinstance(owner, nn.Module) else []
        self._holders: list[Holder] = [
            holder for module in modules for holder in (module._buffers, vars(module))
        ]
        self._before = [_copies(holder) for holder in self._holders]
        self._first: list[Holder] | None = None

    def keep(self) -> None:
        """Remember what a call has left, if it was the first, and begin anew."""
        if self._first is None:
            self._first = [_tensors(holder) for holder in self._holders]
        self.reset()

    def reset(self) -> None:
        """Begin anew."""
        for holder, before in zip(self._holders, self._before, strict=True):
            holder.update({name: tensor.clone() for name, tensor in before.items()})

    def end(self) -> None:
        """What the first call has left."""
        for holder, first in zip(self._holders, self._first or [], strict=False):
            holder.update(first)


def _tensors(holder: Holder) -> Holder:
    return {name: value for name, value in holder.items() if isinstance(value, Tensor)}


def _copies(holder: Holder) -> Holder:
    return {name: tensor.detach().clone() for name, tensor in _tensors(holder).items()}
