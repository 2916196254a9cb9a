"""What a launch is given, for the emulator and for a device alike."""

import ctypes
import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor


class KernelError(RuntimeError):
    """What the emulator, the checker, NVRTC or the driver has to say."""


class SourceError(KernelError):
    """A source that does not compile."""


class Memory(NamedTuple):
    """An argument that is a pointer to memory of somebody else's."""

    pointer: int
    bytes: int
    readable: bool
    writable: bool


i32, i64, u32, f32 = ctypes.c_int, ctypes.c_int64, ctypes.c_uint32, ctypes.c_float


def value_of(argument: Any) -> Any:
    """A ctypes object that holds what the kernel gets."""
    if argument is None:
        return ctypes.c_void_p(0)
    if isinstance(argument, Tensor):
        return ctypes.c_void_p(argument.data_ptr())
    if isinstance(argument, Memory):
        return ctypes.c_void_p(argument.pointer)
    if isinstance(argument, bytes):
        return ctypes.create_string_buffer(argument, len(argument))
    if isinstance(argument, bool | int | float):
        raise TypeError(f"{argument!r}: say how wide it is: i32, u32, f32")
    return argument


def three(grid: Sequence[int]) -> tuple[int, ...]:
    return (*grid, 1, 1, 1)[:3]


def rows_of(tensor: Tensor) -> tuple[int, int, int]:
    """Rows, bytes of a row and from one to the next: of a view of columns exactly, of others their hull."""
    size = tensor.element_size()
    if tensor.is_contiguous():
        return 1, tensor.numel() * size, tensor.numel() * size
    flat = tensor.flatten(0, -2) if tensor.dim() > 2 and tensor.stride(-1) == 1 else tensor
    if flat.dim() == 2 and flat.stride(1) == 1 and flat.data_ptr() == tensor.data_ptr():
        return flat.shape[0], flat.shape[1] * size, flat.stride(0) * size
    hull = (
        sum((length - 1) * stride for length, stride in zip(tensor.shape, tensor.stride(), strict=True)) + 1
    )
    return 1, hull * size, hull * size


def short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
