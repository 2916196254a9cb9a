"""What the tracer of torch.compile is told of functions, without its import, which takes longer than torch's.

The decorators of torch.compiler do the same, but import torch._dynamo at once.
"""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

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
