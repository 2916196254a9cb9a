"""Hooks and replaced methods of a model and its criteria, and how they are removed."""

import functools
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle


class Hooks:
    """Hooks and replaced methods, each of which :meth:`remove` takes out again.

    They are bound methods, so that a copy of the model has hooks of its own, which belong to the copy.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._handles: list[RemovableHandle] = []
        # With what the module itself had there, and what it has instead.
        self._replaced: list[tuple[nn.Module, str, Any, Callable[..., Any]]] = []

    def inputs(self, module: nn.Module, hook: Callable[..., Any], *, first: bool = False) -> None:
        """Register a forward pre-hook (module, args, kwargs)."""
        self._handles.append(module.register_forward_pre_hook(hook, prepend=first, with_kwargs=True))

    def output(
        self, module: nn.Module, hook: Callable[..., Any], *, first: bool = False, always: bool = False
    ) -> None:
        """Register a forward hook (module, args, output); `always` also where the forward raises."""
        self._handles.append(module.register_forward_hook(hook, prepend=first, always_call=always))

    def replace(self, name: str, method: Callable[..., Any], module: nn.Module | None = None) -> None:
        """Replace a method of a module, or the model's of that name or path; see :meth:`stock`."""
        owner, method_name = self._method(name) if module is None else (module, name)
        self._replaced.append((owner, method_name, vars(owner).get(method_name), method))
        setattr(owner, method_name, method)

    def stock(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """The result of the model's own method of that name, or path in the model."""
        module, method_name = self._method(name)
        own = next(
            (had for owner, each, had, _ in self._replaced if (owner, each) == (module, method_name)), None
        )
        return stock_method(module, method_name, own)(*args, **kwargs)

    def remove(self) -> None:
        """Take out everything. A second call does nothing."""
        for handle in self._handles:
            handle.remove()
        for owner, name, had, ours in reversed(self._replaced):
            if vars(owner).get(name, ours) != ours:
                continue  # somebody put a wrapper of it there
            vars(owner).pop(name, None)  # unless somebody took it out
            if had is not None:
                setattr(owner, name, had)
        self._handles.clear()
        self._replaced.clear()

    def _method(self, path: str) -> tuple[nn.Module, str]:
        module, _, name = path.rpartition(".")
        return self._model.get_submodule(module), name

    def __len__(self) -> int:
        return len(self._handles)


def stock_method(module: nn.Module, name: str, own: Any) -> Callable[..., Any]:
    """The method that a module has without ours: its `own`, if it had one, else that of its class."""
    method: Callable[..., Any] = (
        functools.partial(getattr(type(module), name), module) if own is None else own
    )
    return method
