"""What a step keeps for its backward, and the most memory that it takes at once.

On the CPU the latter is measured in a fresh process, on a device by torch's allocator.
"""

import gc
import json
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from batchformer.benchmark.competitors import (
    Setting,
    case_as_json,
    case_from_json,
    layer_competitor,
    make_call,
)
from batchformer.benchmark.shapes import Shape


def saved_floats(name: str, shape: Shape, setting: Setting) -> float:
    """Elements kept for backward by a layer, as a multiple of M C; parameters do not count."""
    layer, x, forward = make_call(name, shape, setting)
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        forward(x)
    for parameter in layer.parameters():
        kept.pop(parameter.untyped_storage().data_ptr(), None)
    return sum(kept.values()) / x.element_size() / (shape.tokens * shape.channels)


def peak_floats(name: str, shape: Shape, setting: Setting, threads: int) -> float | None:
    """Most memory of two steps in a fresh process, as a multiple of M C; with a warning None.

    Input, parameters and their gradients count; what the libraries take does not.
    """
    task = {"name": name, "threads": threads, **case_as_json((shape, setting))}
    command = [sys.executable, "-m", "batchformer.benchmark.memory", json.dumps(task)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = done.stderr.strip().rpartition("\n")[2] or f"exit status {done.returncode}"
        warnings.warn(f"no peak memory of {name} at {shape}: {reason}", stacklevel=2)
        return None
    return float(done.stdout)


def peak_on_device(step: Callable[[], object], shape: Shape, setting: Setting) -> float:
    """Most memory that a step takes above what is in use before it, as a multiple of M C.

    All gradients count; input and parameters do not. The step has to have run before: what is compiled or
    planned for it stays allocated.
    """
    gc.collect()
    before = _resident(setting.device, reset_peak=True)
    step()
    torch.cuda.synchronize(setting.device)
    peak = _resident(setting.device, peak=True)
    return (peak - before) / setting.dtype.itemsize / (shape.tokens * shape.channels)


def _measure_here(task: dict[str, Any]) -> float:
    """The number that :func:`peak_floats` asks a fresh process for."""
    shape, setting = case_from_json(task)
    torch.set_num_threads(task["threads"])
    small = Shape("warm-up", 2, 1, 8)
    layer_competitor(task["name"], small, setting).step()  # loads libraries, starts threads
    before = _resident(setting.device, reset_peak=True)
    competitor = layer_competitor(task["name"], shape, setting)
    competitor.step()
    competitor.step()
    peak = _resident(setting.device, peak=True)
    return (peak - before) / setting.dtype.itemsize / (shape.tokens * shape.channels)


def _resident(device: torch.device, *, peak: bool = False, reset_peak: bool = False) -> int:
    """Bytes in use now, or the most since the last reset."""
    if device.type == "cuda":
        if reset_peak:
            torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.max_memory_allocated(device) if peak else torch.cuda.memory_allocated(device)
    if reset_peak:
        Path("/proc/self/clear_refs").write_text("5")
    field = "VmHWM" if peak else "VmRSS"
    match = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if match is None:
        raise OSError(f"/proc/self/status has no {field}")
    return 1024 * int(match[1])


if __name__ == "__main__":
    sys.stdout.write(str(_measure_here(json.loads(sys.argv[1]))))
