"""What a bug report needs to say: versions, processor, threads, CUDA, environment, which kernels run.

Optional packages are not imported. If a fact cannot be found, a sentence in its place says why.
"""

import os
import platform
import re
import textwrap
from collections.abc import Callable, Mapping
from functools import partial
from importlib import metadata, util
from typing import Any, TypeAlias

import torch

from batchformer import ops
from batchformer._extension import BUILT_FOR, core
from batchformer.hardware import cuda_device, processor
from batchformer.modules.encoder_layer import TransformerEncoderLayer
from batchformer.ops.on_cuda import Signature
from batchformer.swap_in.known import names

Facts: TypeAlias = dict[str, Any]
"""Values by name: what JSON can hold, None for what is absent."""

OPTIONAL = (
    "transformers",
    "timm",
    "torchvision",
    "lightly",
    "peft",
    "accelerate",
    "lightning",
    "pytorch-lightning",
)
"""Distributions whose models or trainers attach() is used with."""
VARIABLES = re.compile(r"(BATCHFORMER|OMP|MKL|KMP|GOMP)_.*|CUDA_VISIBLE_DEVICES")
"""Environment variables that this package reads, or that decide on threads and visible devices."""
_CHANNELS, _HEADS = 64, 4  # of the small training step
_WIDTH = 80


def facts() -> Facts:
    """All facts: a dictionary for each section, but a list of names for the families."""
    return {section: known(find) for section, find in _SECTIONS.items()}


def known(fact: Callable[[], object]) -> object:
    """The fact, or a sentence that says why it is not known."""
    try:
        return fact()
    except Exception as error:
        return f"not known ({type(error).__name__}: {error})"


def as_text(found: Mapping[str, Any]) -> str:
    """The facts in two columns of 80 characters, in ASCII, as they will be pasted somewhere."""
    rows = [name for section in found.values() if isinstance(section, dict) for name in section]
    column = max(map(len, rows), default=0)
    lines = []
    for title, section in found.items():
        lines.append(title)
        if isinstance(section, dict) and section:
            lines += [_wrapped(f"  {name:{column}}  ", value) for name, value in section.items()]
        else:
            lines.append(_wrapped("  ", section))
    return "\n".join(lines)


def _wrapped(start: str, value: object) -> str:
    words = " ".join(_shown(value).split()).encode("ascii", "backslashreplace").decode()
    return textwrap.fill(
        words, _WIDTH, initial_indent=start, subsequent_indent=" " * len(start), break_on_hyphens=False
    )


def _shown(value: object) -> str:
    if value is None or value in ({}, []):
        return "-"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(each)}" for name, each in value.items())
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    return str(value) or "(empty)"


def _each(sources: Mapping[str, Callable[[], object]]) -> Facts:
    return {name: known(source) for name, source in sources.items()}


def _versions() -> Facts:
    return _each(
        {
            "batchformer": lambda: core.__version__,
            "torch": lambda: str(torch.__version__),
            "built for torch": lambda: BUILT_FOR,
            "Python": lambda: f"{platform.python_implementation()} {platform.python_version()}",
            "system": platform.platform,
            **{name: partial(_version_of, name) for name in ("numpy", *OPTIONAL)},
        }
    )


def _version_of(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        is_there = util.find_spec(distribution.replace("-", "_")) is not None  # a checkout on the path
        return "installed, version not known" if is_there else "not installed"


def _processor() -> Facts:
    return _each(
        {
            "model": processor,
            "cores": os.cpu_count,
            "for this process": lambda: len(os.sched_getaffinity(0)),
            "kernels run": ops.instruction_set,
            "torch runs": torch.backends.cpu.get_cpu_capability,
        }
    )


def _threads() -> Facts:
    return _each(
        {
            "intra-op": torch.get_num_threads,
            "inter-op": torch.get_num_interop_threads,
            "backend": lambda: _told_by_torch(r"^ATen parallel backend: (.*)$"),
            "OpenMP": lambda: _told_by_torch(r"^OpenMP (.*)$"),
            "MKL": lambda: _told_by_torch(r"Math Kernel Library Version (\S+)"),
        }
    )


def _told_by_torch(pattern: str) -> str | None:
    found = re.search(pattern, torch.__config__.parallel_info(), re.MULTILINE)
    return None if found is None else found[1]


def _cuda() -> Facts:
    status = known(core.cuda_status)
    return {
        **_each({"CUDA of torch": lambda: torch.version.cuda, "BATCHFORMER_CUDA": core.cuda_switch}),
        **_each({f"cuda:{index}": partial(cuda_device, index) for index in _cuda_devices()}),
        **_each({f"cuda:{kind.device} {kind.x}": partial(_verdict, kind) for kind in _kinds()}),
        **(status if isinstance(status, dict) else {"error": status}),
    }


def _cuda_devices() -> range:
    count = known(torch.cuda.device_count)
    return range(count if isinstance(count, int) else 0)


def _kinds() -> list[Signature]:
    """Signatures of the small training step, one for each dtype that the kernels have."""
    return [
        Signature(index, dtype, dtype, dtype, _CHANNELS, _HEADS, _CHANNELS, gelu=False, norm_first=False)
        for index in _cuda_devices()
        for dtype in ("float32", "bfloat16", "float16")
    ]


def _verdict(kind: Signature) -> str:
    declined = core.cuda_reason(kind, True)
    return "verified" if declined is None else f"declined: {declined[0]}"


def _environment() -> Facts:
    return {name: value for name, value in sorted(os.environ.items()) if VARIABLES.fullmatch(name)}


def _training_steps() -> Facts:
    devices = ["cpu", *(f"cuda:{index}" for index in _cuda_devices())]
    return _each({f"on {device}": partial(_training_step, device) for device in devices})


def _training_step(device: str) -> Facts:
    """How often each path ran in forward and backward of a small layer; if none of ours ran, why."""
    layer = TransformerEncoderLayer(_CHANNELS, _HEADS, _CHANNELS, device=device)
    x = torch.rand(16, 1, _CHANNELS, device=device)
    before = ops.path_counts()
    layer(x).sum().backward()
    ran = {path: calls - before[path] for path, calls in ops.path_counts().items()}
    return {**ran, "declined": layer.declined(x)}


_SECTIONS: dict[str, Callable[[], object]] = {
    "versions": _versions,
    "processor": _processor,
    "threads": _threads,
    "CUDA": _cuda,
    "environment": _environment,
    "calls by path in a small training step": _training_steps,
    "families of attach()": names,
}
