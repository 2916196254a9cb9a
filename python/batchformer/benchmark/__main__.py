"""`python -m batchformer.benchmark`: measures, prints the table, writes JSON and the picture."""

import argparse
import os
import sys
from pathlib import Path

import torch

from batchformer import ops
from batchformer.benchmark.competitors import COMPILED, EAGER, GRAPHED, OURS, PRODUCTS, Setting
from batchformer.benchmark.peak import measure_fma_peak
from batchformer.benchmark.shapes import SETS, find_shapes

try:
    from matplotlib.backend_bases import FigureCanvasBase
    from rich.console import Console

    from batchformer.benchmark.report import Row, draw, machine, table, write_json
    from batchformer.benchmark.rows import measure_rows
except ImportError as error:
    sys.exit(f"the benchmark needs rich and matplotlib ({error}): pip install 'batchformer[benchmark]'")

DTYPES = ("float32", "float64", "bfloat16", "float16")
PICTURES = FigureCanvasBase.get_supported_filetypes()
JOBS = max(1, min(8, (os.cpu_count() or 1) // 2))
"""Processes that compile in parallel for a device."""
EXPLAINED = (
    "Medians of a training step; saved and peak memory in floats for each element of the input (M C); "
    "products: the bare matrix products of the linears and, for one position, of attention; "
    "share of FMA peak: the operations of the layer's products, divided by those that a loop of fused "
    "multiply-adds does in the time of our step; frozen: only the input needs a gradient."
)
EXPLAINED_ON_DEVICE = (
    "On a device: time between two CUDA events, over consecutive steps for at least 5 ms, with "
    "alternating inputs, so that the cache does not hold them (wall-clock times are in the JSON); "
    "kernels: how many run in a step; busy: the sum of their times; peak: above what is in use "
    "before the step; first step: with compilation and planning, "
    f"{JOBS} shapes compiling in parallel."
)


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m batchformer.benchmark",
        description="Time and memory of the encoder layer, torch's own and its bare matrix products.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--shapes",
        nargs="+",
        metavar="SET",
        help=f"{', '.join(SETS)}, or part of a shape's name; if not given: paper, on a device gpu",
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="torch's threads")
    parser.add_argument(
        "--dtype", choices=DTYPES, nargs="+", default=["float32"], help="of input and parameters"
    )
    parser.add_argument(
        "--tf32", action="store_true", help="products of float32 in TF32, which torch has off by default"
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dropout", type=float, default=0.5, help="all dropout probabilities of the layer")
    parser.add_argument(
        "--rounds", type=int, default=10, help="measured runs of each competitor, at least 10"
    )
    parser.add_argument(
        "--frozen",
        action="store_true",
        help="each shape again with frozen parameters: the gradient of x alone",
    )
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help="time torch.compile, too, on a device also its mode reduce-overhead; slow to build; "
        "if not given: only on a device",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the ratios")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Exit status of the benchmark, 0; bad options end it with a sentence and status 2."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    if options.rounds < 10:
        parser.error(f"--rounds: expected at least 10, got {options.rounds}")
    if options.threads < 1:
        parser.error(f"--threads: expected at least 1, got {options.threads}")
    if not 0 <= options.dropout <= 1:
        parser.error(f"--dropout: expected a probability from 0 to 1, got {options.dropout}")
    if options.device not in ("cpu", "cuda"):
        parser.error(f"--device: expected cpu or cuda, got {options.device}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device: torch sees no CUDA device")
    try:
        shapes = find_shapes(options.shapes or ["gpu" if options.device == "cuda" else "paper"])
    except ValueError as error:
        parser.error(f"--shapes: {error}")
    _check_files(parser, options)
    torch.set_num_threads(options.threads)
    torch.set_float32_matmul_precision("high" if options.tf32 else "highest")
    device = torch.device(options.device)
    settings = [
        Setting(device, getattr(torch, dtype), options.dropout, frozen)
        for dtype in options.dtype
        for frozen in ((False, True) if options.frozen else (False,))
    ]
    names = competitors_of(device, compiled=options.compile)
    facts = machine(device, options.threads)
    fma_peak = find_peak(settings[0]) if len(options.dtype) == 1 else None
    if fma_peak is not None:
        facts["fma peak"] = f"{fma_peak / 1e9:.0f} GFLOP/s ({ops.instruction_set()})"
    if options.tf32:
        facts["float32 products"] = "tf32"

    def keep(rows: list[Row]) -> None:
        if options.json is not None:
            write_json(options.json, rows, facts, {key: str(value) for key, value in vars(options).items()})

    console = Console() if sys.stdout.isatty() else Console(width=200 if device.type == "cuda" else 150)
    cases = [(shape, setting) for setting in settings for shape in shapes]
    if options.frozen:
        cases.sort(key=lambda case: shapes.index(case[0]))
    rows = measure_rows(cases, names, options.rounds, fma_peak, console, JOBS, keep)
    console.print(table(rows))
    console.print(EXPLAINED, *([EXPLAINED_ON_DEVICE] if device.type == "cuda" else []))
    circumstances = ", ".join(f"{key} {value}" for key, value in facts.items())
    console.print(circumstances, highlight=False)
    for reason in sorted({reason for row in rows for reason in row.declined}):
        console.print(f"our kernels did not run: {reason}", highlight=False)
    if options.plot is not None:
        draw(options.plot, rows, circumstances)
    return 0


def _check_files(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """End the program if what it measures for minutes could not be written then."""
    for name in ("json", "plot"):
        file = getattr(options, name)
        if file is not None and (file.is_dir() or not os.access(file.parent, os.W_OK)):
            parser.error(f"--{name}: {file} cannot be written")
    if options.plot is not None and options.plot.suffix.removeprefix(".") not in PICTURES:
        parser.error(f"--plot: expected a name that ends in .png, .svg or .pdf, got {options.plot.name}")


def competitors_of(device: torch.device, *, compiled: bool | None) -> list[str]:
    """The competitors to time: by default torch's compiled layers only on a device."""
    modes = [COMPILED, GRAPHED] if device.type == "cuda" else [COMPILED]
    asked = device.type == "cuda" if compiled is None else compiled
    return [OURS, EAGER, *(modes if asked else []), PRODUCTS]


def find_peak(setting: Setting) -> float | None:
    """FLOP/s of the fused multiply-adds that our kernels run, or None; half precision runs in float32."""
    if setting.device.type != "cpu" or ops.instruction_set() == "baseline":
        return None
    return measure_fma_peak(setting.dtype)


if __name__ == "__main__":
    sys.exit(main())
