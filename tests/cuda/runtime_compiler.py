"""NVRTC, the compiler that torch brings, by ctypes: cubins, and what ptxas says of them."""

import ctypes
import functools
import importlib.util
import re
import time
from collections.abc import Mapping
from ctypes import byref
from pathlib import Path
from typing import NamedTuple

import torch
from arguments import KernelError, SourceError, short_hash


class Figures(NamedTuple):
    """What ptxas says of a kernel; bytes of spills are those written, then those read."""

    registers: int
    spills: tuple[int, int]
    stack: int
    shared: int
    cubin: int
    seconds: float


class Compiled(NamedTuple):
    cubin: bytes
    kernels: dict[str, Figures]
    log: str


class Nvrtc:
    """The runtime compiler of CUDA: the one that torch has mapped, or a library by its path."""

    def __init__(self, path: str | None = None):
        if path is None:
            major = (torch.version.cuda or "13").split(".")[0]
            self._library = ctypes.CDLL(_nvrtc_of_torch(major))
        else:
            # By a full path it does not find its builtins, unless they are loaded.
            for builtins in sorted(Path(path).parent.glob("libnvrtc-builtins.so.*")):
                ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)
            self._library = ctypes.CDLL(path)
        major_and_minor = ctypes.c_int(), ctypes.c_int()
        self._ask("nvrtcVersion", *map(byref, major_and_minor))
        self.version = ".".join(str(part.value) for part in major_and_minor)

    def _ask(self, name, *arguments):
        code = getattr(self._library, name)(*arguments)
        if code:
            self._library.nvrtcGetErrorString.restype = ctypes.c_char_p
            raise KernelError(f"{name}: {self._library.nvrtcGetErrorString(code).decode()}")

    def _text(self, size, get, program):
        count = ctypes.c_size_t()
        self._ask(size, program, byref(count))
        text = ctypes.create_string_buffer(count.value)
        self._ask(get, program, text)
        return text.raw

    def compiled(self, text: str, defines: Mapping[str, object], arch: str) -> Compiled:
        given, program = options(defines, arch), ctypes.c_void_p()
        self._ask("nvrtcCreateProgram", byref(program), text.encode(), b"kernels.cu", 0, None, None)
        start = time.perf_counter()
        try:
            self._ask(
                "nvrtcCompileProgram",
                program,
                len(given),
                (ctypes.c_char_p * len(given))(*(option.encode() for option in given)),
            )
        except KernelError as error:
            log = self._text("nvrtcGetProgramLogSize", "nvrtcGetProgramLog", program).rstrip(b"\0").decode()
            raise SourceError(f"{error}\n{log}") from None
        seconds = time.perf_counter() - start
        log = self._text("nvrtcGetProgramLogSize", "nvrtcGetProgramLog", program).rstrip(b"\0").decode()
        cubin = self._text("nvrtcGetCUBINSize", "nvrtcGetCUBIN", program)
        self._ask("nvrtcDestroyProgram", byref(program))
        return Compiled(cubin, _figures(log, len(cubin), seconds), log)


def options(defines: Mapping[str, object], arch: str) -> list[str]:
    """What NVRTC is given; the Rust core gives the same, but for the figures of ptxas."""
    given = [f"--gpu-architecture={arch}", "--std=c++17", "--ptxas-options=-v", "-default-device"]
    return given + [f"-D{name}={value}" for name, value in sorted(defines.items())]


def _nvrtc_of_torch(major: str) -> str:
    name = f"libnvrtc.so.{major}"
    try:
        ctypes.CDLL(name)  # found if `import torch` has mapped it
    except OSError:
        packages = importlib.util.find_spec("nvidia")
        for folder in packages.submodule_search_locations or [] if packages else []:
            for path in sorted(Path(folder).glob(f"*/lib/{name}")):
                for builtins in sorted(path.parent.glob("libnvrtc-builtins.so.*")):
                    ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)
                return str(path)
        raise
    return name


@functools.cache
def nvrtc(path: str | None = None) -> Nvrtc:
    return Nvrtc(path)


def nvrtc_missing() -> str | None:
    """Why this machine cannot compile for a device, if so."""
    try:
        nvrtc()
    except OSError as error:
        return str(error)
    return None


def _figures(log: str, size: int, seconds: float) -> dict[str, Figures]:
    figures = {}
    for part in re.split(r"Compiling entry function '", log)[1:]:
        stack, stores, loads = map(
            int,
            re.search(
                r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", part
            ).groups(),
        )
        shared = re.search(r"(\d+) bytes smem", part)
        figures[part.split("'")[0]] = Figures(
            int(re.search(r"Used (\d+) registers", part)[1]),
            (stores, loads),
            stack,
            int(shared[1]) if shared else 0,
            size,
            seconds,
        )
    return figures


class Cubins(NamedTuple):
    """A folder that `precompile` has filled, and by which version of NVRTC."""

    folder: Path
    version: str


def cubin_name(text: str, defines: Mapping[str, object], version: str, arch: str) -> str:
    return f"{arch}-nvrtc-{version}-{short_hash(chr(10).join([text, *options(defines, arch)]))}.cubin"
