"""A forward that leaves no trace: what it may change of a model and of the random state is put back."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Run what is inside without gradient, and put back what it changes.

    These are the attributes of all modules, training flags among them; the values of buffers, as running
    statistics and queues, and of parameters that no optimizer moves, as those of a momentum encoder, which
    moves in the forward; and the random states of torch, NumPy and Python.
    """
    attributes = [(module, dict(module.__dict__), dict(module._buffers)) for module in model.modules()]
    values = [(tensor, tensor.data, tensor.data.clone()) for tensor in _changeable(model)]
    python, numpy = random.getstate(), np.random.get_state()
    cuda = {each.device.index for each in model.parameters() if each.is_cuda}
    try:
        with torch.no_grad(), torch.random.fork_rng(sorted(cuda)):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        for module, before, buffers in attributes:
            for name in module.__dict__.keys() - before.keys():
                del module.__dict__[name]
            module.__dict__.update(before)
            module._buffers.clear()
            module._buffers.update(buffers)
        for tensor, memory, copy in values:
            if tensor.data_ptr() != memory.data_ptr():  # tensor.data = ...
                tensor.data = memory
            if not torch.equal(memory, copy):
                memory.copy_(copy)  # by .data: no new version, of which a backward would complain


def _changeable(model: nn.Module) -> list[Tensor]:
    found: list[Any] = [*model.buffers(), *(each for each in model.parameters() if not each.requires_grad)]
    for module in model.modules():
        found += [value for value in vars(module).values() if isinstance(value, Tensor)]
    return [tensor for tensor in {id(tensor): tensor for tensor in found}.values() if not tensor.is_meta]
