"""Tracing, export and torch.fx record the model in one mode, which must not be training."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import fx


def check_not_traced(values: Iterable[Any]) -> None:
    """Raise RuntimeError where values are those of a trace or an export."""
    if torch.compiler.is_compiling():
        # Not is_exporting(), which the compiler of torch 2.9 to 2.11 takes for true.
        traced = torch.compiler._is_exporting_flag
    else:
        proxies = any(isinstance(value, fx.Proxy) for value in values)
        traced = proxies or torch._C._get_tracing_state() is not None
    if traced:
        raise RuntimeError(
            "model: expected one in evaluation for tracing and export, as BatchFormer is for training alone, "
            "got one in training: model.eval(), or attachment.remove() before"
        )
