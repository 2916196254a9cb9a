"""The grid of a table's settings, tried only on the baseline, on seeds that no table uses."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table as Drawn
from scipy import stats

from examples.tables.arms import BASELINE
from examples.tables.results import Result
from examples.tables.table import CPU, Job, Table

Changes = tuple[tuple[str, Any], ...]


def grid_jobs(table: Table, systems: Sequence[str], seeds: Sequence[int], device: str = CPU) -> list[Job]:
    """A run for each point of the grid, system and seed; none if the table has no grid."""
    if not table.grid:
        return []
    points = [
        tuple(zip(table.grid, values, strict=True)) for values in itertools.product(*table.grid.values())
    ]
    return [
        Job(system, BASELINE, seed, changes=changes, device=device)
        for seed in seeds
        for system in systems
        for changes in points
    ]


def show_tuning(table: Table, results: Sequence[Result], console: Console) -> None:
    """Print the settings of each system, best first by the table's first primary column."""
    for system in table.systems:
        of_system = [result for result in results if result.job.system == system]
        points = dict.fromkeys(result.job.changes for result in of_system)
        rows = [(changes, _values(of_system, changes, table.primary[0])) for changes in points]
        rows = sorted((row for row in rows if row[1]), key=lambda row: -np.mean(row[1]))
        if not rows:
            continue
        console.print(f"\n[bold]{escape(table.title)}, {escape(system)}[/bold]: baseline, {table.primary[0]}")
        drawn = Drawn(box=box.SIMPLE_HEAD, show_edge=False)
        for head in (*table.grid, "n", "mean ± standard error"):
            drawn.add_column(escape(head), justify="right")
        for changes, values in rows:
            error = f"{stats.sem(values):.2f}" if len(values) > 1 else "-"
            drawn.add_row(
                *(str(value) for _, value in changes), str(len(values)), f"{np.mean(values):.2f} ± {error}"
            )
        console.print(drawn)
        for sentence in _sentences(table, rows[0][0]):
            console.print(f"- {sentence}", markup=False)


def _sentences(table: Table, best: Changes) -> list[str]:
    chosen = ", ".join(f"{name} {value}" for name, value in best)
    found = [f"Best: {chosen}; of close ones the first need not be the best on other seeds."]
    edges = [
        name
        for name, value in best
        if len(table.grid[name]) > 1 and value in (min(table.grid[name]), max(table.grid[name]))
    ]
    if edges:
        found.append(f"At the edge of what was tried: {', '.join(edges)}.")
    return found


def _values(results: Sequence[Result], changes: Changes, column: str) -> list[float]:
    values = (result.outcome.metrics.get(column) for result in results if result.job.changes == changes)
    return [value for value in values if value is not None]
