"""Loads cubins and launches their kernels by the driver, by ctypes, on torch's current stream."""

import ctypes
import functools
from collections.abc import Iterable, Sequence
from ctypes import byref
from typing import Any

import torch
from arguments import KernelError, three, value_of
from runtime_compiler import Cubins, Figures, cubin_name, nvrtc
from torch import Tensor


@functools.cache
def _driver() -> ctypes.CDLL:
    torch.cuda.init()
    torch.empty(1, device="cuda")  # torch's own context is this thread's from here on
    return ctypes.CDLL("libcuda.so.1")


def _drive(name: str, *arguments: Any) -> None:
    code = getattr(_driver(), name)(*arguments)
    if code:
        text = ctypes.c_char_p()
        _driver().cuGetErrorString(code, byref(text))
        raise KernelError(f"{name}: {(text.value or b'unknown error').decode()} ({code})")


@functools.cache
def on_device(text: str, defines: tuple[tuple[str, object], ...], cubins: Cubins | None) -> "OnDevice":
    arch = "sm_{}{}".format(*torch.cuda.get_device_capability())
    if cubins is None:
        return OnDevice(nvrtc().compiled(text, dict(defines), arch).cubin)
    return OnDevice((cubins.folder / cubin_name(text, dict(defines), cubins.version, arch)).read_bytes())


class OnDevice:
    """The kernels of one cubin, loaded into torch's current context."""

    _SHARED, _LOCAL, _REGISTERS, _DYNAMIC = 1, 3, 4, 8  # CUfunction_attribute

    def __init__(self, cubin: bytes):
        self._module = ctypes.c_void_p()
        _drive("cuModuleLoadData", byref(self._module), cubin)
        self._cubin = len(cubin)
        self._functions: dict[str, ctypes.c_void_p] = {}

    def _function(self, kernel: str) -> ctypes.c_void_p:
        if kernel not in self._functions:
            function = ctypes.c_void_p()
            _drive("cuModuleGetFunction", byref(function), self._module, kernel.encode())
            self._functions[kernel] = function
        return self._functions[kernel]

    def figures(self, kernel: str) -> Figures:
        """What the driver knows; local memory is stack and spills in one, so spills are left 0."""

        def attribute(which: int) -> int:
            value = ctypes.c_int()
            _drive("cuFuncGetAttribute", byref(value), which, self._function(kernel))
            return value.value

        return Figures(
            attribute(self._REGISTERS),
            (0, 0),
            attribute(self._LOCAL),
            attribute(self._SHARED),
            self._cubin,
            0.0,
        )

    def launch(
        self,
        kernel: str,
        grid: Sequence[int],
        block: int,
        shared: int,
        arguments: Sequence[Any],
        outputs: Iterable[Tensor] = (),
        seed: int = 0,
        updates: Iterable[Tensor] = (),
    ) -> None:
        """Launches on torch's current stream, and does not wait. Outputs and seed are for the emulator."""
        function, values = self._function(kernel), [value_of(argument) for argument in arguments]
        self._refuse_unfit(kernel, function, values)
        if shared > 48 * 1024:
            _drive("cuFuncSetAttribute", function, self._DYNAMIC, shared)
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        sizes = (ctypes.c_uint(each) for each in (*three(grid), block, 1, 1, shared))
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        _drive("cuLaunchKernel", function, *sizes, stream, pointers, None)

    def _refuse_unfit(self, kernel: str, function: ctypes.c_void_p, values: Sequence[Any]) -> None:
        """A driver older than CUDA 12.4 cannot say what a kernel takes."""
        if not hasattr(_driver(), "cuFuncGetParamInfo"):
            return
        offset, size = ctypes.c_size_t(), ctypes.c_size_t()
        for place, value in enumerate(values):
            _drive("cuFuncGetParamInfo", function, ctypes.c_size_t(place), byref(offset), byref(size))
            if size.value != ctypes.sizeof(value):
                raise KernelError(
                    f"{kernel}, argument {place}: expected {size.value} bytes, got {ctypes.sizeof(value)}"
                )
        if not _driver().cuFuncGetParamInfo(
            function, ctypes.c_size_t(len(values)), byref(offset), byref(size)
        ):
            raise KernelError(f"{kernel}: expected more than {len(values)} arguments")
