"""The results of a table, in the terminal."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from examples.tables.results import Result
from examples.tables.table import Table


def report(table: Table, results: Sequence[Result], folder: Path, console: Console) -> None:
    """Print the results."""
    del table, folder
    for result in results:
        figures = "  ".join(f"{name} {value:.1f}" for name, value in result.outcome.metrics.items())
        entropy = "" if result.outcome.entropy is None else f"entropy {result.outcome.entropy:.4f}"
        console.print(
            f"{result.job.system}, {result.job.arm}, {result.job.seed}: {figures} {entropy} {result.seconds:.1f} s"
        )
