"""NVIDIA's compute-sanitizer over training steps of tiny layers, and racecheck over the tests of the kernels.

Racecheck ends with an error of its own in cuBLAS' products of half precision on Hopper (2025.3.1), and so in
half of the layers; the tests launch our kernels alone.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from device_steps.findings import note
from device_steps.tiny import CASES

OURS = ("residual_norm", "activation_", "attention_", "softmax_forward", "softmax_backward", "column_")
"""In the names of our kernels. Torch's are looked at by initcheck alone, as they write what ours read."""
TOOLS = {"memcheck": OURS, "synccheck": OURS, "initcheck": ()}
KERNELS = (
    "norm_kernels",
    "activation_kernels",
    "attention_small",
    "attention_long",
    "reduce_kernels",
    "softmax_kernels",
)
SECONDS = 110  # of one tool on one layer, or on one file of tests


class Job(NamedTuple):
    """What one process looks at."""

    tool: str
    filters: tuple[str, ...]
    name: str
    command: list[str]


def jobs() -> list[Job]:
    layers = [
        Job(tool, filters, f"layer {case}", tiny(case))
        for tool, filters in TOOLS.items()
        for case in range(len(CASES))
    ]
    return layers + [Job("racecheck", OURS, name, tests_of(name)) for name in KERNELS]


def found() -> str | None:
    """The program, which is often on no path."""
    places = [
        shutil.which("compute-sanitizer"),
        *map(str, sorted(Path("/usr/local").glob("cuda*/bin/compute-sanitizer"))),
    ]
    return next((place for place in places if place and Path(place).exists()), None)


def read(log: str) -> tuple[int | None, list[str]]:
    """Number of errors, None if the tool has not ended, and what the first of them are."""
    summaries = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: (\d+)", log)
    first = [
        line.removeprefix("========= ")
        for line in log.splitlines()
        if re.match(
            r"========= (Invalid|Error|Uninitialized|Barrier|Race|Warning|Program hit|    at )"
            r"|.*(Error|what\(\)): ",
            line,
        )
    ]
    return (int(summaries[-1]) if summaries else None), first[:12]


def look(program: str, job: Job) -> tuple[int | None, list[str]]:
    """What a tool finds in a layer or in a file's tests."""
    filters = [part for name in job.filters for part in ("--kernel-name", f"kns={name}")]
    command = [program, "--tool", job.tool, "--print-limit", "20", *filters, *job.command]
    process = subprocess.Popen(
        command,
        env={**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        log, _ = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return None, []
    return read(log.decode(errors="replace"))


def tiny(*cases: int) -> list[str]:
    return [sys.executable, "-m", "device_steps.tiny", *map(str, cases)]


def tests_of(name: str) -> list[str]:
    file = Path(__file__).resolve().parents[1] / f"test_{name}.py"
    return [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-k", "device", str(file)]


def main() -> int:
    """Exit status 1 if a tool finds an error or does not end."""
    program = found()
    if program is None:
        note("compute-sanitizer is not there")
        return 1
    subprocess.run(tiny(), check=True, timeout=SECONDS)  # compiles, and has to be right by itself
    every = jobs()
    results: dict[str, dict[str, Any]] = {job.tool: {"errors": 0, "no end": [], "first": []} for job in every}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        looked = pool.map(lambda job: look(program, job), every)
        for job, (errors, first) in zip(every, looked, strict=True):
            of_tool = results[job.tool]
            if errors is None:
                of_tool["no end"].append(job.name)
            elif errors:
                of_tool["errors"] += errors
                of_tool["first"] += [f"{job.name}: {line}" for line in first]
            note(tools=results)
    words = {tool: f"{of['errors']}{', no end' * bool(of['no end'])}" for tool, of in results.items()}
    note("errors: " + ", ".join(f"{tool} {word}" for tool, word in words.items()))
    return int(any(word != "0" for word in words.values()))


if __name__ == "__main__":
    sys.exit(main())
