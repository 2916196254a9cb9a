"""`python -m batchformer.benchmark.pairs --other DIR`: compares this build of the package with another one.

Two builds cannot be loaded into one process, and processes differ by more than builds do: in the layout of
their memory, and in the other load of the machine. So each build runs in many processes, in turn, and each
process of one build is compared with the other build's process of the same pair.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import batchformer
from batchformer.benchmark.interval import ratio_interval
from batchformer.benchmark.shapes import SETS, Shape

try:
    from rich.console import Console
    from rich.progress import track
    from rich.table import Table

    from batchformer.benchmark.report import machine
except ImportError as error:
    sys.exit(f"the benchmark needs rich and matplotlib ({error}): pip install 'batchformer[benchmark]'")

WORKER = Path(__file__).with_name("pairs_worker.py")
THIS = Path(batchformer.__file__).absolute().parents[1]
SECONDS, STEPS = 0.35, 3
"""The least seconds and repeats of a shape in a process: the paper's shapes take about 8 s."""


@dataclass(frozen=True)
class PairedTimes:
    """Seconds of a step of one shape in each process of the two builds, pair by pair."""

    shape: str
    this: list[float]
    other: list[float]

    @property
    def ratios(self) -> list[float]:
        """This build's time over the other's: below 1, this one is faster."""
        return [this / other for this, other in zip(self.this, self.other, strict=True)]


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m batchformer.benchmark.pairs",
        description="Time of a training step with this and with another build of batchformer, in pairs of "
        "processes: ratio this / other, its geometric mean with a 95 % interval (bootstrap of the mean "
        "logarithm), and its median.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--other", type=Path, required=True, metavar="DIR", help="folder of another build (unpacked wheel)"
    )
    parser.add_argument("--pairs", type=int, default=30, help="processes of each build, at least 2")
    parser.add_argument("--shapes", choices=SETS, default="paper", help="which systems' shapes")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="torch's threads")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Exit status of the comparison, 0; bad options end it with a sentence and 2, a failing build with 1."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    other = options.other.absolute()
    if not (other / "batchformer" / "__init__.py").exists():
        parser.error(f"--other: expected a folder that holds a package batchformer, got {options.other}")
    if options.pairs < 2:
        parser.error(f"--pairs: expected at least 2, got {options.pairs}")
    if options.threads < 1:
        parser.error(f"--threads: expected at least 1, got {options.threads}")
    console = Console() if sys.stdout.isatty() else Console(width=120)
    rows = measure(other, SETS[options.shapes], options.pairs, options.threads, console)
    facts = machine(torch.device("cpu"), options.threads)
    console.print(table(rows))
    console.print(f"this: {THIS}, other: {other}, {options.pairs} pairs of processes", highlight=False)
    console.print(", ".join(f"{key} {value}" for key, value in facts.items()), highlight=False)
    if options.json is not None:
        document = {
            "machine": facts,
            "this": str(THIS),
            "other": str(other),
            "rows": [_as_json(row) for row in rows],
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    return 0


def measure(
    other: Path, shapes: Sequence[Shape], pairs: int, threads: int, console: Console
) -> list[PairedTimes]:
    """The times of each shape; which build of a pair comes first changes from pair to pair."""
    rows = [PairedTimes(str(shape), [], []) for shape in shapes]
    numbers = track(range(pairs), "", console=console, transient=True, disable=not console.is_terminal)
    for number in numbers:
        builds = [(THIS, 0), (other, 1)]
        for folder, build in builds if number % 2 == 0 else reversed(builds):
            for row, seconds in zip(rows, run_process(folder, shapes, threads), strict=True):
                (row.this, row.other)[build].append(seconds)
    return rows


def run_process(folder: Path, shapes: Sequence[Shape], threads: int) -> list[float]:
    """Seconds of a step of each shape in a fresh process with the build in the folder; exits if it fails."""
    task = {
        "folder": str(folder),
        "shapes": [(shape.samples, shape.positions, shape.channels, shape.heads) for shape in shapes],
        "threads": threads,
        "seconds": SECONDS,
        "steps": STEPS,
    }
    done = subprocess.run(
        [sys.executable, str(WORKER), json.dumps(task)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        sys.exit(f"the process with the build in {folder} failed, status {done.returncode}:\n{done.stderr}")
    times: list[float] = json.loads(done.stdout)
    return times


def table(rows: Sequence[PairedTimes]) -> Table:
    """Milliseconds, medians over the processes, and what the ratios say."""
    result = Table(box=None, header_style="bold", pad_edge=False)
    result.add_column("shape", no_wrap=True)
    for heading in ("this\nms", "other\nms", "this /\nother", "95 %\ninterval", "median\nof ratios"):
        result.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        mean, low, high = ratio_interval(row.ratios)
        result.add_row(
            row.shape,
            f"{1e3 * statistics.median(row.this):.2f}",
            f"{1e3 * statistics.median(row.other):.2f}",
            f"{mean:.3f}",
            f"{low:.3f} to {high:.3f}",
            f"{statistics.median(row.ratios):.3f}",
        )
    return result


def _as_json(row: PairedTimes) -> dict[str, Any]:
    return asdict(row) | {"interval": ratio_interval(row.ratios)}


if __name__ == "__main__":
    sys.exit(main())
