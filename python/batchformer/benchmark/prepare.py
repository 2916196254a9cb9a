"""Compiling beforehand: several processes fill the caches of the compilers, each with some of the shapes.

Compiling a step of torch's layer takes about five seconds, most of them in one Python thread; our kernels
take some, too. The results are cached on disk, where the measuring process finds them.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import torch

from batchformer.benchmark.competitors import (
    EAGER,
    MODES,
    OURS,
    Case,
    case_as_json,
    case_from_json,
    layer_competitor,
)
from batchformer.benchmark.shapes import Shape
from batchformer.benchmark.timing import measure_calls


def compile_beforehand(cases: Sequence[Case], names: Sequence[str], jobs: int) -> list[dict[str, float]]:
    """Seconds of the first step of each competitor that compiles, ours and torch's modes, case by case.

    The second mode of a case reuses kernels of the first. With `jobs` processes in parallel, each is slower
    than it would be alone.
    """
    compiling = [name for name in names if name == OURS or name in MODES]
    jobs = min(jobs, len(cases))
    workers = []
    for number in range(jobs):
        task = {"names": compiling, "cases": [case_as_json(case) for case in cases[number::jobs]]}
        workers.append(
            subprocess.Popen(
                [sys.executable, "-m", "batchformer.benchmark.prepare", json.dumps(task)],
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "TORCHINDUCTOR_COMPILE_THREADS": "2"},
            )
        )
    seconds: list[dict[str, float]] = [{} for _ in cases]
    for number, worker in enumerate(workers):
        output, _ = worker.communicate()
        for place, line in enumerate(output.splitlines()):
            seconds[number + place * jobs] = json.loads(line)
    return seconds


def first_steps(case: Case, names: Sequence[str]) -> dict[str, float]:
    """Seconds of the first step of each of these, with all that is compiled or planned in it."""
    shape, setting = case
    torch._dynamo.reset()  # or the compiler makes the number of samples a variable, and gives up after eight
    seconds = {}
    for name in names:
        try:
            step = layer_competitor(name, shape, setting).step
            seconds[name] = measure_calls(step, setting.device).wall
            step()
            step()  # the second is recorded as a graph, the third replays it
        except RuntimeError as error:
            sys.stderr.write(f"{name}, {shape}: {error}\n")
    return seconds


def main(task: dict[str, Any]) -> None:
    """Run the cases of one process and print their seconds, a line each."""
    cases = [case_from_json(case) for case in task["cases"]]
    layer_competitor(EAGER, Shape("warm-up", 2, 1, 64), cases[0][1]).step()  # libraries are loaded
    for case in cases:
        sys.stdout.write(json.dumps(first_steps(case, task["names"])) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
