"""Builds kernels for the emulator by g++, tells the checker of their arguments, and runs them."""

import atexit
import ctypes
import functools
import os
import platform
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from arguments import KernelError, Memory, SourceError, rows_of, short_hash, three, value_of
from torch import Tensor

EMULATOR = Path(__file__).resolve().parent / "emulator"
# Built objects stay in this folder, under the hash of all that they are made of; by default for one process.
OBJECTS = os.environ.get("BATCHFORMER_EMULATOR_OBJECTS", "")
LETTERS = {torch.bfloat16: "b", torch.float16: "h", torch.float32: "f", torch.int64: "q"}  # of entry.h


class Emulated:
    """The kernels of one source in a library for the CPU."""

    _one_at_a_time = threading.Lock()  # autograd launches from a thread of its own

    def __init__(self, path: Path, parameters: Mapping[str, list[str]], mode: str):
        self.path, self.parameters, self.mode = path, parameters, mode
        self._library, self._emulator = ctypes.CDLL(str(path)), _emulator()

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
        """Runs a kernel; KernelError says what it did wrong.

        arguments: tensors, None for a null pointer, Memory, ctypes values and structures, or a value's bytes
        outputs, updates: which of the tensors are written, and which are read before that as well
        seed: an order of the threads, 0 the plain one
        """
        if kernel not in self.parameters:
            raise KernelError(f"{kernel}: no such kernel, there are {', '.join(self.parameters)}")
        values = [value_of(argument) for argument in arguments]
        self._refuse_unfit(kernel, block, arguments, values)
        run = getattr(self._library, f"emulator_call_{kernel}")
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        with self._one_at_a_time:
            self._emulator.emulator_clear()
            if self.mode == "check":
                self._tell_of_buffers(kernel, arguments, outputs, updates)
            error = self._emulator.emulator_run(
                run,
                pointers,
                (ctypes.c_void_p * 2).in_dll(self._library, "emulator_library"),
                (ctypes.c_uint * 3)(*three(grid)),
                ctypes.c_uint(block),
                ctypes.c_size_t(shared),
                ctypes.c_uint64(seed),
                int(self.mode == "check"),
            )
        if error:
            raise KernelError(f"{kernel}: {self._placed(error.decode())}")

    def _tell_of_buffers(self, kernel, arguments, outputs, updates):
        written = {each.data_ptr() for each in (*outputs, *updates)}
        unread = written - {each.data_ptr() for each in updates}
        buffers: dict[tuple[int, int, int, int], tuple[str, bool, bool]] = {}
        for name, argument in zip(self.parameters[kernel], arguments, strict=True):
            if isinstance(argument, Tensor) and argument.numel():
                pointer, shape = argument.data_ptr(), rows_of(argument)
                readable, writable = pointer not in unread, pointer in written
            elif isinstance(argument, Memory) and argument.bytes:
                pointer, shape = argument.pointer, (1, argument.bytes, argument.bytes)
                readable, writable = argument.readable, argument.writable
            else:
                continue
            # In place, one memory is two arguments.
            names, could_read, could_write = buffers.get((pointer, *shape), ("", False, False))
            buffers[(pointer, *shape)] = (
                f"{names} = {name}" if names else name,
                could_read or readable,
                could_write or writable,
            )
        for (pointer, rows, width, stride), (name, readable, writable) in buffers.items():
            sizes = (ctypes.c_size_t(each) for each in (rows, width, stride))
            self._emulator.emulator_buffer(
                name.encode(), ctypes.c_void_p(pointer), *sizes, int(readable), int(writable)
            )

    def _refuse_unfit(self, kernel, block, arguments, values):
        """What a device would take in silence: arguments of another number, size, type or right."""
        names = self.parameters[kernel]
        if len(names) != len(arguments):
            raise KernelError(f"{kernel}: expected {len(names)} arguments, got {len(arguments)}")
        most = getattr(self._library, f"emulator_most_{kernel}")()
        if not 1 <= block <= most:
            raise KernelError(f"{kernel}: expected a block of 1 to {most} threads, got {block}")
        expected = (_Parameter * (len(names) + 1))()
        getattr(self._library, f"emulator_parameters_{kernel}")(expected)
        for name, parameter, argument, value in zip(names, expected, arguments, values, strict=False):
            element = parameter.element.decode()
            if ctypes.sizeof(value) != parameter.bytes:
                raise KernelError(
                    f"{kernel}, {name}: expected {parameter.bytes} bytes, got {ctypes.sizeof(value)}"
                )
            if isinstance(argument, Tensor):
                letter = LETTERS.get(argument.dtype, "?")
                if element == " " or (element not in "?!" and element.lower() != letter):
                    raise KernelError(f"{kernel}, {name}: a tensor of {argument.dtype} does not fit")

    def _placed(self, sentence: str) -> str:
        """The sentence with file and line for the place in the machine's code."""
        found = re.search(r"\{code (0x[0-9a-f]+)\}", sentence)
        if not found:
            return sentence
        command = ["addr2line", "-i", "-e", str(self.path), found[1]]
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        places = [Path(line).name for line in lines if ".cu:" in line]
        return sentence.replace(found[0], ", called at ".join(places) or "an unknown place")


class _Parameter(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_int), ("element", ctypes.c_char)]


def emulator_missing() -> str | None:
    """Why this machine cannot emulate kernels, if so."""
    if platform.machine() != "x86_64" or platform.system() != "Linux":
        return f"the emulator knows Linux on x86-64, this is {platform.system()} on {platform.machine()}"
    return None if shutil.which("g++") else "the emulator needs g++"


@functools.cache
def objects() -> Path:
    """The folder of what was built."""
    if OBJECTS:
        Path(OBJECTS).mkdir(parents=True, exist_ok=True)
        return Path(OBJECTS)
    folder = tempfile.mkdtemp(prefix="batchformer-kernels-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


# A struct is read whole, as a device does; no loop becomes a memset, which would not be looked at. What no
# access shows, an index beyond an array of a thread's own, say, g++ looks at. (Overflows, too, would take it
# half as long again.)
_CHECKED = [
    *("-g1", "-gdwarf-4", "-fsanitize=thread", "-fno-tree-sra", "-fno-tree-loop-distribute-patterns"),
    "-fsanitize=bounds,shift,integer-divide-by-zero",
]
_KERNEL = re.compile(
    r'extern\s+"C"\s+__global__\s+void\s+(?:__launch_bounds__\(((?:[^()]|\([^()]*\))*)\)\s*)?(\w+)\s*\(([^)]*)\)'
)


def _compile(arguments: Sequence[str], to: Path) -> None:
    """Runs g++ to a name of this process's, then renames: two processes may build the same at once."""
    unfinished = to.with_name(f"{to.name}.{os.getpid()}")
    done = subprocess.run(
        ["g++", "-fPIC", "-march=native", *arguments, "-o", str(unfinished)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SourceError(done.stderr)
    unfinished.replace(to)


@functools.cache
def _emulator() -> ctypes.CDLL:
    """The emulator itself: one for all kernels, as it has two pages to guard for each thread of a block."""
    library = ctypes.CDLL(str(_emulator_path()))
    library.emulator_run.restype = ctypes.c_char_p
    return library


@functools.cache
def _emulator_path() -> Path:
    text = "".join((EMULATOR / name).read_text() for name in ("emulator.cpp", "emulator.h", "checker.h"))
    path = objects() / f"emulator-{short_hash(text)}.so"
    if not path.exists():
        _compile(["-std=c++17", "-O2", "-shared", "-Wl,-Bsymbolic", str(EMULATOR / "emulator.cpp")], path)
    return path


@functools.cache
def emulated(text: str, defines: tuple[tuple[str, object], ...], mode: str) -> Emulated:
    if missing := emulator_missing():
        raise KernelError(missing)
    if mode not in ("fast", "check"):
        raise ValueError(f"mode: expected fast, check or device, got {mode!r}")
    flags = ["-std=c++20", "-O1", "-w", "-fno-strict-aliasing", "-ffp-contract=off"]
    macros = [f"-D{name}={value}" for name, value in defines]
    preprocess = ["g++", "-E", "-x", "c++", *flags, *macros, "-include", str(EMULATOR / "emulator.h"), "-"]
    done = subprocess.run(preprocess, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SourceError(done.stderr)
    kernels = {
        name: (bounds, [each.split()[-1].lstrip("*") for each in parameters.split(",")])
        for bounds, name, parameters in _KERNEL.findall(re.sub(r"(?m)^#.*$", "", done.stdout))
    }
    entries = "\n".join(f"KERNEL({name}, {bounds})" for name, (bounds, _) in kernels.items())
    whole = f'{done.stdout}\n#line 1 "entry.h"\n{(EMULATOR / "entry.h").read_text()}\n{entries}\n'
    key = short_hash(whole + _emulator_path().name + mode)
    path = objects() / f"{key}.so"
    if not path.exists():
        unit, compiled = objects() / f"{key}.{os.getpid()}.cpp", objects() / f"{key}.{os.getpid()}.o"
        unit.write_text(whole)
        gone = ["-D__global__=", "-D__launch_bounds__(...)="]
        _compile([*flags, *gone, *(_CHECKED if mode == "check" else []), "-c", str(unit)], compiled)
        beside = [f"-L{path.parent}", f"-l:{_emulator_path().name}", "-Wl,-rpath,$ORIGIN"]
        _compile(["-shared", "-Wl,-Bsymbolic", str(compiled), *beside], path)
        unit.unlink()
        compiled.unlink()
    return Emulated(path, {name: names for name, (_, names) in kernels.items()}, mode)
