"""What the tracer of torch.compile is told, without its import, which takes longer than torch's.

The functions of torch.compiler do the same, but import torch._dynamo at once.
"""

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ParamSpec, TypeVar

import torch
from torch._compile import _disable_dynamo

_P = ParamSpec("_P")
_R = TypeVar("_R")


def constant(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """As :func:`torch.compiler.assume_constant_result`."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def outside(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """As :func:`torch.compiler.disable`, by the decorator that torch has for its own functions."""
    return _disable_dynamo(function)


def eager() -> AbstractContextManager[Any]:
    """A context in which graphs of torch.compile are not used; without its tracer there are none."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
