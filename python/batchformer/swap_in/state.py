"""The state of a criterion that is called several times in a step: the state after the first call is kept."""

import copy
from collections import deque
from collections.abc import MutableMapping
from types import FunctionType
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor, nn

Holder: TypeAlias = dict[str, Any]

_OF_TORCH = frozenset(vars(nn.Module())) - {"training"}  # hooks and parts, which no call changes
_VALUES = (int, float, complex, str, bytes, type(None))


class State:
    """What a criterion remembers: a memory bank and its pointer, a centre, running statistics, a history.

    Every call begins with the state before the first, and the step ends with the state after the first, as
    with the stock criterion. Numbers, tensors, and lists, dicts and deques of them are covered, in the
    criterion, in the modules in it, and in an object whose method or instance it is; not what a function has
    in its closure.
    """

    def __init__(self, criterion: Any) -> None:
        owner = getattr(criterion, "__self__", criterion)  # of a bound method
        attributes = {} if isinstance(owner, FunctionType) else getattr(owner, "__dict__", {})
        roots = [owner, *attributes.values()]
        modules = {
            id(module): module for root in roots if isinstance(root, nn.Module) for module in root.modules()
        }
        holders = [holder for module in modules.values() for holder in (module._buffers, vars(module))]
        self._holders: list[Holder] = holders if isinstance(owner, nn.Module) else [attributes, *holders]
        self._before = [_copies(holder) for holder in self._holders]
        self._first: list[Holder] | None = None

    def keep(self) -> None:
        """Keep the state after the first call, and reset."""
        if self._first is None:
            self._first = [_state_in(holder) for holder in self._holders]
        self.reset()

    def reset(self) -> None:
        """Restore the state before the first call."""
        for holder, before in zip(self._holders, self._before, strict=True):
            holder.update({name: _copy(value) for name, value in before.items()})

    def end(self) -> None:
        """Restore the state after the first call."""
        for holder, first in zip(self._holders, self._first or [], strict=False):
            holder.update(first)


def _state_in(holder: Holder) -> Holder:
    return {name: value for name, value in holder.items() if name not in _OF_TORCH and _is_state(value)}


def _copies(holder: Holder) -> Holder:
    return {name: _copy(value) for name, value in _state_in(holder).items()}


def _is_state(value: Any) -> bool:
    if isinstance(value, (list, tuple, deque)):
        return all(map(_is_state, value))
    if isinstance(value, MutableMapping):
        return all(map(_is_state, value.values()))
    return isinstance(value, (*_VALUES, Tensor, np.ndarray))


def _copy(value: Any) -> Any:
    """A copy that later changes of the value do not reach; nothing changes a tensor with a history."""
    if isinstance(value, Tensor):
        return value if value.requires_grad else value.detach().clone()
    if isinstance(value, deque):
        return deque(map(_copy, value), value.maxlen)
    if isinstance(value, list):
        return [_copy(each) for each in value]
    if isinstance(value, MutableMapping):
        copied = copy.copy(value)
        copied.update({name: _copy(each) for name, each in value.items()})
        return copied
    return value.copy() if isinstance(value, np.ndarray) else value
