"""The rows of the table, case by case: first steps, times, memory, and what a step launches on a device."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress

from batchformer import ops
from batchformer.benchmark.competitors import (
    EAGER,
    GRAPHED,
    MODES,
    OURS,
    OWN_KEYS,
    PRODUCTS,
    Case,
    Competitor,
    Setting,
    make_competitors,
)
from batchformer.benchmark.flops import layer_flops
from batchformer.benchmark.launches import Launches, profile_step
from batchformer.benchmark.memory import peak_floats, peak_on_device, saved_floats
from batchformer.benchmark.prepare import compile_beforehand
from batchformer.benchmark.report import Row
from batchformer.benchmark.shapes import Shape
from batchformer.benchmark.timing import WARM_UP, measure_calls, time_interleaved


def measure_rows(
    cases: Sequence[Case],
    names: list[str],
    rounds: int,
    fma_peak: float | None,
    console: Console,
    jobs: int,
    after_case: Callable[[list[Row]], None] = lambda _: None,
) -> list[Row]:
    """A row for each case; a layer that would not fit into memory is left out of its row."""
    rows: list[Row] = []
    compiled: Sequence[dict[str, float]] = [{} for _ in cases]
    if any(setting.device.type == "cuda" for _, setting in cases):
        compiled = compile_beforehand(cases, names, jobs)
    dtypes = {setting.dtype for _, setting in cases}
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("", total=len(cases) * (rounds + WARM_UP))
        for (shape, setting), first in zip(cases, compiled, strict=True):
            progress.update(bar, description=str(shape))
            asked = names
            if shape.keys:  # torch's has no compiled layer that takes keys
                own = [OWN_KEYS] if shape.keys == shape.samples else []
                asked = [*(name for name in names if name not in MODES), *own]
            competitors = make_competitors(
                [name for name in asked if _fits(name, shape, setting)], shape, setting
            )
            before = ops.path_counts()
            if setting.device.type == "cuda":
                torch._dynamo.reset()  # each shape has graphs of its own
                competitors, at_first = _run_first_steps(competitors, setting, console)
                first = {**at_first, **first}
            times = time_interleaved(competitors, rounds, setting.device, lambda: progress.advance(bar))
            ran = [path for path, calls in ops.path_counts().items() if calls > before[path]]
            if not ran:
                ran = ["torch's" if OURS in times else "-"]  # the layer declined, or is not there
            flops = layer_flops(shape, frozen=setting.frozen)
            share = {}
            if fma_peak is not None:
                share = {
                    name: flops.step / parts["step"].median / fma_peak
                    for name, parts in times.items()
                    if name != PRODUCTS
                }
            labels = [str(shape), *(["frozen"] if setting.frozen else [])]
            dtype = str(setting.dtype).removeprefix("torch.")
            rows.append(
                Row(
                    shape=" ".join([*labels, *([dtype] if len(dtypes) > 1 else [])]),
                    path=" and ".join(ran),
                    times=times,
                    saved={
                        name: saved_floats(name, shape, setting) for name in (OURS, EAGER) if name in times
                    },
                    peak=_peaks(competitors, shape, setting),
                    flops=flops,
                    fma_share=share,
                    dtype=dtype,
                    first=first,
                    launches=_launches(competitors, setting),
                    declined=ops.declined() if setting.device.type == "cuda" else [],
                )
            )
            after_case(rows)
    return rows


def _run_first_steps(
    competitors: list[Competitor], setting: Setting, console: Console
) -> tuple[list[Competitor], dict[str, float]]:
    """The competitors that can run a step on the device, and the seconds of the first; others are printed."""
    able, seconds = [], {}
    for competitor in competitors:
        try:
            seconds[competitor.name] = measure_calls(competitor.step, setting.device).wall
        except RuntimeError as error:
            console.print(f"{competitor.name} is left out: {str(error).splitlines()[0]}", highlight=False)
        else:
            able.append(competitor)
    return able, seconds


def _peaks(competitors: Sequence[Competitor], shape: Shape, setting: Setting) -> dict[str, float]:
    """Peak memory of the layers; the allocator does not know what a CUDA graph takes."""
    found: dict[str, float] = {}
    for competitor in competitors:
        name = competitor.name
        if setting.device.type == "cuda" and name not in (GRAPHED, PRODUCTS):
            found[name] = peak_on_device(competitor.step, shape, setting)
        elif setting.device.type != "cuda" and name in (OURS, EAGER):
            peak = peak_floats(name, shape, setting, torch.get_num_threads())
            found.update({} if peak is None else {name: peak})
    return found


def _launches(competitors: Sequence[Competitor], setting: Setting) -> dict[str, Launches]:
    """What a step of each layer starts on the device."""
    if setting.device.type != "cuda":
        return {}
    layers = [competitor for competitor in competitors if competitor.name != PRODUCTS]
    found = {layer.name: profile_step(layer.step, setting.device) for layer in layers}
    return {name: profile.summary for name, profile in found.items() if profile is not None}


def _fits(name: str, shape: Shape, setting: Setting) -> bool:
    """Whether the N x N tensors of a step, of which torch's layer holds about six, leave memory free."""
    copies = 1 if name == PRODUCTS else 6
    pairs = shape.samples * (shape.keys or shape.samples)
    needed = copies * shape.positions * shape.heads * pairs * setting.dtype.itemsize
    return needed < free_memory(setting.device)


def free_memory(device: torch.device) -> int:
    """Bytes of free memory."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable"):
            return 1024 * int(line.split()[1])
    return sys.maxsize
