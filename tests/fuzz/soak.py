"""`python -m fuzz.soak`: many steps in one process, with its resident memory, which has to stay flat."""

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

import batchformer as bf
from fuzz.draw import draw

STATM = Path("/proc/self/statm")
READINGS = 20
# Growth over the second half that is no leak. 1 KiB lost at each small step would be 500 MiB; sizes that vary
# leave the heap in pieces that come and go.
SMALL_MIB = 8.0
VARIED_MIB = 48.0
# Samples, positions, channels: each cut and each kind of memory, heap and pool.
SIZES = ((2, 3, 8), (5, 1, 16), (1, 4, 8), (7, 5, 24), (33, 2, 12), (128, 4, 4))

Reading = tuple[int, float]


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="make soak", description="Many steps in one process; exit status 1 if its memory grows."
    )
    parser.add_argument(
        "--steps", type=int, default=1_000_000, help="small training steps (default: %(default)s)"
    )
    parser.add_argument(
        "--varied", type=int, default=10_000, help="calls as the fuzzer draws them (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the varied calls (default: %(default)s)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 if memory is flat in both, 1 if not; bad options end it with status 2."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    for name in ("steps", "varied"):
        if getattr(options, name) < READINGS:
            parser.error(f"--{name}: expected at least {READINGS}, got {getattr(options, name)}")
    if not STATM.exists():
        parser.error(f"resident memory is read from {STATM}, which this system does not have")
    console = Console()
    warnings.simplefilter("ignore")
    torch.set_num_threads(min(2, torch.get_num_threads()))
    # For torch's layer in half precision, oneDNN compiles kernels for every shape and keeps them: alone it
    # grows by half a GiB over 2,000 shapes, by some of it with ONEDNN_PRIMITIVE_CACHE_CAPACITY=0, too.
    with torch.backends.mkldnn.flags(enabled=False):
        small = measure(small_steps(), options.steps, console)
        varied = measure(varied_calls(options.seed), options.varied, console)
    flat = True
    for title, readings, bound in (("small steps", small, SMALL_MIB), ("varied calls", varied, VARIED_MIB)):
        console.print(table(title, readings))
        grown = growth(readings)
        flat &= grown <= bound
        verdict = "flat" if grown <= bound else "NOT flat"
        console.print(f"{title}: {verdict}, {grown:+.1f} MiB over the second half, may be {bound:g}")
    return 0 if flat else 1


def small_steps() -> Iterator[Callable[[], None]]:
    """Forward and backward of small layers, sizes alternating."""
    layers = [
        bf.TransformerEncoderLayer(c, 2, c, 0.1, norm_first=i % 2 == 1) for i, (_, _, c) in enumerate(SIZES)
    ]
    inputs = [torch.randn(size, requires_grad=True) for size in SIZES]
    grads = [torch.randn(size) for size in SIZES]

    def step(i: int) -> None:
        layers[i](inputs[i]).backward(grads[i])

    while True:
        for i in range(len(SIZES)):
            yield partial(step, i)


def varied_calls(seed: int) -> Iterator[Callable[[], None]]:
    """Random calls, their verdicts left to the fuzzer."""
    number = 0
    while True:
        text = draw(seed, number).text  # its wrong calls, too: an error holds on to nothing

        def call(text: str = text) -> None:
            with suppress(Exception):
                exec(compile(text, "<call>", "exec"), {"__name__": "__fuzz__"})

        yield call
        number += 1


def measure(steps: Iterator[Callable[[], None]], count: int, console: Console) -> list[Reading]:
    """Resident memory in MiB after each of equal shares of the steps."""
    readings = []
    for number in track(
        range(1, count + 1), console=console, transient=True, disable=not console.is_terminal
    ):
        next(steps)()
        if number * READINGS // count > (number - 1) * READINGS // count:
            readings.append((number, resident()))
    return readings


def resident() -> float:
    """MiB of this process in memory."""
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def growth(readings: Sequence[Reading]) -> float:
    """MiB from the middle to the end."""
    return readings[-1][1] - readings[len(readings) // 2 - 1][1]


def table(title: str, readings: Sequence[Reading]) -> Table:
    made = Table("done", "resident, MiB", title=title)
    for number, mib in readings:
        made.add_row(f"{number:,}", f"{mib:.1f}")
    return made


if __name__ == "__main__":
    sys.exit(main())
