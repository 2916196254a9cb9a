"""`python -m batchformer.benchmark`: measures, prints the table, writes JSON and the picture."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch

from batchformer import ops
from batchformer.benchmark.competitors import (
    COMPILED,
    EAGER,
    OURS,
    OWN_KEYS,
    PRODUCTS,
    Setting,
    make_competitors,
)
from batchformer.benchmark.flops import layer_flops
from batchformer.benchmark.memory import peak_floats, saved_floats
from batchformer.benchmark.peak import measure_fma_peak
from batchformer.benchmark.shapes import SETS, Shape
from batchformer.benchmark.timing import WARM_UP, time_interleaved

try:
    from rich.console import Console
    from rich.progress import Progress

    from batchformer.benchmark.report import Row, draw, machine, table, write_json
except ImportError as error:
    sys.exit(f"the benchmark needs rich and matplotlib ({error}): pip install 'batchformer[benchmark]'")

DTYPES = ("float32", "float64", "bfloat16", "float16")


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m batchformer.benchmark",
        description="Time and memory of the encoder layer beside torch's own and its bare matrix products.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--shapes", choices=SETS, default="paper", help="which systems' shapes")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="torch's threads")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of input and parameters")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dropout", type=float, default=0.5, help="in all places")
    parser.add_argument(
        "--rounds", type=int, default=10, help="measured runs of each competitor, at least 10"
    )
    parser.add_argument(
        "--frozen",
        action="store_true",
        help="each shape again with frozen parameters: the gradient of x alone",
    )
    parser.add_argument("--compile", action="store_true", help="torch.compile as well; slow to build")
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
    torch.set_num_threads(options.threads)
    setting = Setting(torch.device(options.device), getattr(torch, options.dtype), options.dropout)
    names = [OURS, EAGER, *([COMPILED] if options.compile else []), PRODUCTS]

    console = Console() if sys.stdout.isatty() else Console(width=150)
    settings = [setting, replace(setting, frozen=True)] if options.frozen else [setting]
    cases = [*product(SETS[options.shapes], settings)]
    fma_peak = find_peak(setting)
    rows = measure(cases, names, options.rounds, fma_peak, console)
    facts = machine(setting.device, options.threads)
    if fma_peak is not None:
        facts["fma peak"] = f"{fma_peak / 1e9:.0f} GFLOP/s ({ops.instruction_set()})"
    console.print(table(rows))
    console.print(
        "Medians of a training step; saved and peak memory in floats for each element of the input (M C); "
        "products: the linears' bare matrix products, for one position with those of attention; "
        "share of FMA peak: the operations of the layer's products, beside those that a loop of fused "
        "multiply-adds does in the time of a step of ours; frozen: only the input needs a gradient."
    )
    circumstances = ", ".join(f"{key} {value}" for key, value in facts.items())
    console.print(circumstances, highlight=False)
    if options.json is not None:
        write_json(options.json, rows, facts, {key: str(value) for key, value in vars(options).items()})
    if options.plot is not None:
        draw(options.plot, rows, circumstances)
    return 0


def find_peak(setting: Setting) -> float | None:
    """FLOP/s of the fused multiply-adds that our kernels run, or None; half precision runs in float32."""
    if setting.device.type != "cpu" or ops.instruction_set() == "baseline":
        return None
    return measure_fma_peak(setting.dtype)


def measure(
    cases: Sequence[tuple[Shape, Setting]],
    names: list[str],
    rounds: int,
    fma_peak: float | None,
    console: Console,
) -> list[Row]:
    """A row for each case; a layer that would not fit into memory is left out of its row."""
    rows = []
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("", total=len(cases) * (rounds + WARM_UP))
        for shape, setting in cases:
            progress.update(bar, description=str(shape))
            asked = names
            if shape.keys:  # torch's has no compiled layer that takes keys
                own = [OWN_KEYS] if shape.keys == shape.samples else []
                asked = [*(name for name in names if name != COMPILED), *own]
            fitting = [name for name in asked if fits(name, shape, setting)]
            competitors = make_competitors(fitting, shape, setting)
            before = ops.path_counts()
            times = time_interleaved(competitors, rounds, setting.device, lambda: progress.advance(bar))
            ran = [path for path, calls in ops.path_counts().items() if calls > before[path]]
            if not ran:
                ran = ["torch's" if OURS in fitting else "-"]  # the layer declined, or is not there
            layers = [name for name in fitting if name in (OURS, EAGER)]
            peaks = {name: peak_floats(name, shape, setting, torch.get_num_threads()) for name in layers}
            flops = layer_flops(shape, frozen=setting.frozen)
            share = {}
            if fma_peak is not None:
                share = {
                    name: flops.step / parts["step"].median / fma_peak
                    for name, parts in times.items()
                    if name != PRODUCTS
                }
            rows.append(
                Row(
                    shape=f"{shape} frozen" if setting.frozen else str(shape),
                    path=" and ".join(ran),
                    times=times,
                    saved={name: saved_floats(name, shape, setting) for name in layers},
                    peak={name: peak for name, peak in peaks.items() if peak is not None},
                    flops=flops,
                    fma_share=share,
                )
            )
    return rows


def fits(name: str, shape: Shape, setting: Setting) -> bool:
    """Whether the N x N tensors of a step, of which torch's layer holds about six, leave memory free."""
    copies = 1 if name == PRODUCTS else 6
    pairs = shape.samples * (shape.keys or shape.samples)
    needed = copies * shape.positions * shape.heads * pairs * setting.dtype.itemsize
    return needed < free_memory(setting.device)


def free_memory(device: torch.device) -> int:
    """Bytes that can be had."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable"):
            return 1024 * int(line.split()[1])
    return sys.maxsize


if __name__ == "__main__":
    sys.exit(main())
