"""NVIDIA's compute-sanitizer over training steps of tiny layers: each of its four tools on each layer."""

import os
import re
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

from device_steps.findings import note
from device_steps.tiny import CASES

OURS = ("residual_norm", "activation_", "attention_", "softmax_forward", "softmax_backward", "column_")
"""In the names of our kernels. Torch's are looked at by initcheck alone, as they write what ours read."""
TOOLS = {"memcheck": OURS, "racecheck": OURS, "synccheck": OURS, "initcheck": ()}
SECONDS = 110  # of one tool on one layer


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


def look(program: str, tool: str, case: int) -> tuple[int | None, list[str]]:
    """What a tool finds in a layer."""
    filters = [part for name in TOOLS[tool] for part in ("--kernel-name", f"kns={name}")]
    command = [program, "--tool", tool, "--print-limit", "20", *filters, *tiny(case)]
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


def main() -> int:
    """Exit status 1 if a tool finds an error or does not end."""
    program = found()
    if program is None:
        note("compute-sanitizer is not there")
        return 1
    subprocess.run(tiny(), check=True, timeout=SECONDS)  # compiles, and has to be right by itself
    pairs = list(product(TOOLS, range(len(CASES))))
    results: dict[str, dict[str, Any]] = {tool: {"errors": 0, "no end": [], "first": []} for tool in TOOLS}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        looked = pool.map(lambda pair: look(program, *pair), pairs)
        for (tool, case), (errors, first) in zip(pairs, looked, strict=True):
            of_tool = results[tool]
            if errors is None:
                of_tool["no end"].append(case)
            elif errors:
                of_tool["errors"] += errors
                of_tool["first"] += [f"layer {case}: {line}" for line in first]
            note(tools=results)
    words = {tool: f"{of['errors']}{', no end' * bool(of['no end'])}" for tool, of in results.items()}
    note("errors: " + ", ".join(f"{tool} {word}" for tool, word in words.items()))
    return int(any(word != "0" for word in words.values()))


if __name__ == "__main__":
    sys.exit(main())
