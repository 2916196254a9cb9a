"""NVIDIA's compute-sanitizer over training steps of tiny layers, its four tools beside each other."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from device_steps.findings import note

OURS = ("residual_norm", "activation_", "attention_", "softmax_forward", "softmax_backward", "column_")
"""In the names of our kernels. Torch's are looked at by initcheck alone, as they write what ours read."""
TOOLS = {"memcheck": OURS, "racecheck": OURS, "synccheck": OURS, "initcheck": ()}
SECONDS = 80


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
            r"========= (Invalid|Error|Uninitialized|Barrier|Race|Warning|Program hit|    at \w+\()", line
        )
    ]
    return (int(summaries[-1]) if summaries else None), first[:12]


def main() -> int:
    """Exit status 1 if a tool finds an error or does not end."""
    program = found()
    if program is None:
        note("compute-sanitizer is not there")
        return 1
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    tiny = [sys.executable, "-m", "device_steps.tiny"]
    subprocess.run(
        tiny, env=environment, check=True, timeout=SECONDS
    )  # compiles, and has to be right by itself
    running = {}
    with tempfile.TemporaryDirectory() as folder:
        for tool, names in TOOLS.items():
            log = Path(folder, tool)
            filters = [part for name in names for part in ("--kernel-name", f"kns={name}")]
            command = [program, "--tool", tool, "--print-limit", "20", *filters, *tiny]
            with log.open("w") as file:
                running[tool] = (
                    log,
                    subprocess.Popen(
                        command, env=environment, stdout=file, stderr=file, start_new_session=True
                    ),
                )
        results, end = {}, time.monotonic() + SECONDS
        for tool, (log, process) in running.items():
            try:
                process.wait(max(0.1, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            text = log.read_text(errors="replace")
            errors, first = read(text)
            results[tool] = {"errors": errors, "first": first, "end": text[-1500:] if errors != 0 else ""}
            note(tools=results)
    words = {
        tool: "no end" if found["errors"] is None else found["errors"] for tool, found in results.items()
    }
    note("errors: " + ", ".join(f"{tool} {word}" for tool, word in words.items()))
    return int(any(word != 0 for word in words.values()))


if __name__ == "__main__":
    sys.exit(main())
