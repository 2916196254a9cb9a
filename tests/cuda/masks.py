"""The dropout masks, written apart from the kernels: src/call/random.rs says what they are."""

import ctypes
import math
from collections.abc import Sequence

import torch
from torch import Tensor

_GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)  # as a number of int64, whose products wrap around


def _shifted(state: Tensor, by: int) -> Tensor:
    return (state >> by) & ((1 << (64 - by)) - 1)


def _mixed(state: Tensor) -> Tensor:
    state = (state ^ _shifted(state, 30)) * (0xBF58476D1CE4E5B9 - (1 << 64))
    state = (state ^ _shifted(state, 27)) * (0x94D049BB133111EB - (1 << 64))
    return state ^ _shifted(state, 31)


def words(seed: int, site: int, count: int, first: int = 0) -> Tensor:
    """`count` words of a site from the word `first` on, as int64."""
    state = _mixed(_mixed(torch.tensor(seed)) + site * torch.tensor(_GAMMA))
    return _mixed(state + torch.arange(first + 1, first + count + 1) * _GAMMA)


def multiplier(seed: int, site: int, p: float, shape: Sequence[int], first: int = 0) -> Tensor:
    """0 or the scale for each element of a mask from the element `first` on, in float64."""
    count, dropped, skipped = math.prod(shape), threshold(p), first % 4
    bits = words(seed, site, (skipped + count + 3) // 4, first // 4).view(torch.int16).int() & 0xFFFF
    return (bits[skipped : skipped + count] >= dropped).double().mul(scale(dropped)).view(*shape)


def threshold(p: float) -> int:
    return math.floor(65536 * p + 0.5)


def scale(dropped: int) -> float:
    return 65536 / (65536 - dropped) if dropped < 65536 else 0.0


def dropout_arguments(p: float) -> tuple[ctypes.c_uint32, ctypes.c_float]:
    """`threshold` and `scale` of a kernel."""
    return ctypes.c_uint32(threshold(p)), ctypes.c_float(scale(threshold(p)))
