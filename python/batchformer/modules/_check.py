"""Checks of arguments; an error names argument, rule and fact."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def tensor(name: str, value: Any) -> None:
    """Raise TypeError unless `value` is a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")


def dense(name: str, value: Any) -> None:
    """Raise TypeError unless `value` is a tensor with strides and without names.

    Others fail in torch's layer, too, but with messages about reshape and memory formats.
    """
    tensor(name, value)
    if value.layout is not torch.strided:
        raise TypeError(f"{name}: expected a dense tensor (torch.strided), got layout {value.layout}")
    # The compiler takes no tensor with names, and torch has none from 2.13 on.
    if not torch.compiler.is_compiling() and hasattr(value, "has_names") and value.has_names():
        raise TypeError(f"{name}: expected a tensor without names, got names {value.names}")


def not_a_replica(name: str, module: nn.Module, why: str) -> None:
    """Raise RuntimeError if `module` is one of the replicas that nn.DataParallel makes for a step."""
    if getattr(module, "_is_replica", False):
        raise RuntimeError(
            f"{name}: expected no replica of nn.DataParallel{why}, got one; use DistributedDataParallel"
        )


def one_of(name: str, value: Any, legal: Sequence[Any]) -> None:
    """Raise ValueError unless `value` is one of `legal`."""
    if value not in legal:
        names = " or ".join(repr(each) for each in legal)
        raise ValueError(f"{name}: expected {names}, got {value!r}")


def probability(name: str, p: float) -> None:
    """Raise ValueError unless p is from 0 to 1."""
    if not 0 <= p <= 1:
        raise ValueError(f"{name}: expected a probability from 0 to 1, got {p}")


def heads(nhead: int, channels: int, name: str) -> None:
    """Raise ValueError unless nhead heads share the channels evenly."""
    if channels < 1:
        raise ValueError(f"{name}: expected a width of at least 1, got {channels}")
    if nhead < 1 or channels % nhead:
        raise ValueError(f"nhead: expected a divisor of {name}={channels}, got {nhead}")
