"""Builds the CUDA kernels for the emulator, the checker or a device, and launches them by one call.

    kernels = build("norm", {"STREAM": "bf16", ...}, mode="check")
    kernels.launch("residual_norm_forward", grid, block, shared, [x, branch, ..., y], outputs=[y])

mode "fast" runs on the CPU, "check" as well and looks at every access (emulator/checker.h says for what),
"device" runs what NVRTC makes on torch's current stream. Needs torch alone, the first two also g++ on x86-64.
"""

import ctypes
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from arguments import KernelError, Memory, SourceError, f32, i32, i64, u32
from emulated import Emulated, emulated, emulator_missing
from masks import dropout_arguments, multiplier, scale, threshold, words
from on_device import OnDevice, on_device
from runtime_compiler import Cubins, Figures, cubin_name, nvrtc, nvrtc_missing

__all__ = [
    "ELEMENTS",
    "SOURCES",
    "Cubins",
    "Emulated",
    "Figures",
    "Heads",
    "KernelError",
    "Memory",
    "OnDevice",
    "Rows",
    "SourceError",
    "build",
    "changed",
    "compiled",
    "dropout_arguments",
    "emulator_missing",
    "f32",
    "home",
    "i32",
    "i64",
    "multiplier",
    "nvrtc",
    "nvrtc_missing",
    "precompile",
    "scale",
    "source_text",
    "threshold",
    "u32",
    "words",
]

KERNELS = Path(__file__).resolve().parents[2] / "src" / "cuda" / "kernels"
SOURCES = {
    "norm": ("prelude", "norm"),
    "activation": ("prelude", "activation"),
    "reduce": ("prelude", "reduce"),
    "attention_small": ("prelude", "tiles", "attention_small"),
    "attention_long": ("prelude", "tiles", "attention_long"),
    "softmax": ("prelude", "softmax"),
    "primitives": ("prelude", "primitives"),
}
ELEMENTS = {torch.bfloat16: "bf16", torch.float16: "f16", torch.float32: "float"}

Change = Callable[[str, str], str]  # of a file's name and text; a mutant's
_change: Change | None = None


class Rows(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int) for name in ("rows", "channels", "positions", "samples", "by_position")]


class Heads(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_int) for name in ("samples", "keys", "counted", "positions", "heads", "by_position")
    ]


def home(mode: str) -> str:
    """Where the tensors of a launch lie."""
    return "cuda" if mode == "device" else "cpu"


@contextmanager
def changed(change: Change) -> Iterator[None]:
    """Inside, every source is built from files that `change` has gone over."""
    global _change
    _change, before = change, _change
    try:
        yield
    finally:
        _change = before


def source_text(source: str) -> str:
    """The text of a source, as the Rust core compiles it: whole files, each behind a line that names it.

    A source that has no entry in SOURCES is CUDA C++ itself and stands behind the prelude.
    """
    if source in SOURCES:
        files = [(f"{name}.cu", (KERNELS / f"{name}.cu").read_text()) for name in SOURCES[source]]
    else:
        files = [("prelude.cu", (KERNELS / "prelude.cu").read_text()), ("given.cu", source)]
    return "".join(f'#line 1 "{name}"\n{_change(name, text) if _change else text}' for name, text in files)


def build(
    source: str,
    defines: Mapping[str, object] | None = None,
    mode: str = "fast",
    cubins: Cubins | None = None,
) -> Emulated | OnDevice:
    """The kernels of a source; for a device made by torch's own NVRTC, or from a folder of cubins."""
    text, given = source_text(source), tuple(sorted((defines or {}).items()))
    if mode == "device":
        return on_device(text, given, cubins)
    return emulated(text, given, mode)


def compiled(
    source: str, defines: Mapping[str, object] | None = None, arch: str = "sm_90", path: str | None = None
) -> dict[str, Figures]:
    """The figures of a source's kernels, compiled for `arch` by torch's NVRTC or the one at `path`."""
    return nvrtc(path).compiled(source_text(source), defines or {}, arch).kernels


def precompile(
    kernels: Iterable[tuple[str, Mapping[str, object]]], path: str | None, arch: str, folder: Path
) -> Cubins:
    """Compiles (source, defines) pairs by the NVRTC at `path` for machines that have another one."""
    compiler = nvrtc(path)
    folder.mkdir(parents=True, exist_ok=True)
    for source, defines in kernels:
        text = source_text(source)
        cubin = folder / cubin_name(text, defines, compiler.version, arch)
        if not cubin.exists():
            cubin.write_bytes(compiler.compiled(text, defines, arch).cubin)
    return Cubins(folder, compiler.version)
