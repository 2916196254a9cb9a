"""`python -m fuzz`: random calls until their number or the minutes are over."""

import argparse
import sys
import time
from collections.abc import Sequence

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from fuzz.watch import Ended, watch

MOST = 10**9  # where minutes alone are given


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="make fuzz",
        description="Random calls beside torch's layer in float64; what goes wrong is printed as a script.",
    )
    parser.add_argument("--calls", type=int, help="how many (default: 10000, or what the minutes allow)")
    parser.add_argument("--seed", type=int, default=0, help="of the calls (default: %(default)s)")
    parser.add_argument("--minutes", type=float, help="stop after so many")
    parser.add_argument(
        "--timeout", type=float, default=60.0, help="seconds for one call (default: %(default)s)"
    )
    parser.add_argument("--findings", type=int, default=10, help="stop after so many (default: %(default)s)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 if nothing was found, 1 if something was; bad options end it with status 2."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    for name in ("calls", "minutes", "timeout", "findings"):
        value = getattr(options, name)
        if value is not None and not value > 0:
            parser.error(f"--{name}: expected a number above 0, got {value:g}")
    calls = options.calls or (10_000 if options.minutes is None else MOST)
    console = Console(soft_wrap=True, highlight=False)
    started = time.monotonic()
    done, findings = 0, 0
    columns = TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("calls", total=calls if calls != MOST else None)
        for ended in watch(options.seed, calls, options.timeout):
            done += 1
            progress.advance(bar)
            if ended.sentence is not None:
                findings += 1
                _print(console, ended, options.seed)
            over = options.minutes is not None and time.monotonic() - started > 60 * options.minutes
            if over or findings == options.findings:
                break
    seconds = time.monotonic() - started
    console.print(f"{done} calls, {findings} findings, {seconds:.0f} seconds, seed {options.seed}")
    return 1 if findings else 0


def _print(console: Console, ended: Ended, seed: int) -> None:
    console.print(f"# call {ended.number} of seed {seed}, {ended.kind}: {ended.sentence}", markup=False)
    console.print(ended.script, markup=False)


if __name__ == "__main__":
    sys.exit(main())
