"""The numbers of a table from its results: means, paired differences, convergence, entropies."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from examples.tables.arms import BASELINE
from examples.tables.results import Result
from examples.tables.statistics import Difference, corrected, difference
from examples.tables.table import Table

LENGTHENED = "baseline, twice the steps"
CONVERGED = 1.0  # points; a baseline has converged if the interval is within them


@dataclass(frozen=True)
class Cell:
    """One arm of a system in one column, in %."""

    system: str
    arm: str
    column: str
    mean: float
    standard_error: float  # nan for a single run
    count: int


@dataclass(frozen=True)
class Entropy:
    """The mean entropy of an arm's attention over that of uniform attention."""

    system: str
    arm: str
    mean: float
    count: int


@dataclass(frozen=True)
class Summary:
    """The numbers of a table; only systems, arms and columns that have runs are in it."""

    table: Table
    quick: bool
    cells: list[Cell]
    differences: list[Difference]  # of all columns; `corrected` for the primary ones of all systems
    convergence: list[Difference]  # the baseline with twice the steps minus itself, in the primary columns
    entropies: list[Entropy]
    left_out: list[str]  # sentences on runs and values without a pair

    @property
    def systems(self) -> list[str]:
        """The systems that have runs, in the table's order."""
        return [system for system in self.table.systems if any(cell.system == system for cell in self.cells)]

    @property
    def primary(self) -> list[Difference]:
        """The differences that the sentences speak of."""
        return [each for each in self.differences if each.column in self.table.primary]

    def of(self, system: str) -> list[Difference]:
        """The differences of one system."""
        return [each for each in self.differences if each.system == system]

    def cell(self, system: str, arm: str, column: str) -> Cell | None:
        """One cell, None if it has no run."""
        wanted = (system, arm, column)
        return next((each for each in self.cells if (each.system, each.arm, each.column) == wanted), None)


def summarise(table: Table, results: Sequence[Result]) -> Summary:
    """The summary of those results that have the table's own settings; all of one size, quick or full.

    A difference is taken seed by seed, over the seeds that both arms have; those that one of them lacks are
    left out, and listed.
    """
    runs = [result for result in results if not result.job.changes]
    cells, differences, convergence, left_out = [], [], [], []
    for system in table.systems:
        for column in table.columns:
            values = {arm: _by_seed(runs, system, arm, column) for arm in table.arms_of(system)}
            cells += [_cell(system, arm, column, of_arm) for arm, of_arm in values.items() if of_arm]
            for first, second in table.contrasts_of(system):
                pair = _paired(system, first, second, column, values[first], values[second])
                differences += [pair] if pair else []
            if column in table.primary:
                longer = _by_seed(runs, system, BASELINE, column, lengthened=True)
                pair = _paired(system, LENGTHENED, BASELINE, column, longer, values.get(BASELINE, {}))
                convergence += [pair] if pair else []
        left_out += _left_out(table, runs, system)
    primary = iter(corrected([each for each in differences if each.column in table.primary]))
    return Summary(
        table,
        any(run.job.quick for run in runs),
        cells,
        [next(primary) if each.column in table.primary else each for each in differences],
        convergence,
        _entropies(table, runs),
        left_out,
    )


def numbers(counts: Iterable[int], between: str = "-") -> str:
    """A number, or the smallest and the largest."""
    found = sorted(set(counts))
    return str(found[0]) if len(found) == 1 else f"{found[0]}{between}{found[-1]}"


def _by_seed(
    runs: Sequence[Result], system: str, arm: str, column: str, lengthened: bool = False
) -> dict[int, float]:
    """The values of a column, by seed, where there are any."""
    found = {}
    for run in runs:
        value = run.outcome.metrics.get(column)
        of_these = (run.job.system, run.job.arm, run.job.lengthened) == (system, arm, lengthened)
        if of_these and _is_known(value):
            found[run.job.seed] = float(value)
    return found


def _is_known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _cell(system: str, arm: str, column: str, by_seed: dict[int, float]) -> Cell:
    values = list(by_seed.values())
    error = float(stats.sem(values)) if len(values) > 1 else math.nan
    return Cell(system, arm, column, float(np.mean(values)), error, len(values))


def _paired(
    system: str, first: str, second: str, column: str, ones: dict[int, float], others: dict[int, float]
) -> Difference | None:
    seeds = sorted(ones.keys() & others.keys())
    if not seeds:
        return None
    return difference(
        system, first, second, column, [ones[seed] for seed in seeds], [others[seed] for seed in seeds]
    )


def _left_out(table: Table, runs: Sequence[Result], system: str) -> list[str]:
    """Sentences on the arms that a system lacks, and on the seeds and columns that a comparison lacks."""
    present = {
        arm: {column: _by_seed(runs, system, arm, column) for column in table.columns}
        for arm in table.arms_of(system)
    }
    if not any(values for of_arm in present.values() for values in of_arm.values()):
        return []
    sentences = []
    for arm, of_arm in present.items():
        diverged = {run.job.seed for run in runs if _is(run, system, arm) and run.outcome.diverged}
        if diverged:
            sentences.append(f"{system}, {arm}: {_seeds(diverged)} left out, as the training diverged.")
        elif not any(of_arm.values()):
            sentences.append(f"{system}: there is no run of {arm}.")
    for first, second in table.contrasts_of(system):
        if not (any(present[first].values()) and any(present[second].values())):
            continue
        alone: dict[str, list[str]] = {}  # columns, by what is left out in them
        for column in table.columns:
            seeds = present[first][column].keys() ^ present[second][column].keys()
            if seeds:
                alone.setdefault(_seeds(seeds), []).append(column)
        for which, columns in alone.items():
            where = "" if len(columns) == len(table.columns) else f" in {', '.join(columns)}"
            sentences.append(
                f"{system}, {first} - {second}: {which} left out{where}, as only one of the two has a value."
            )
    return sentences


def _is(run: Result, system: str, arm: str) -> bool:
    return (run.job.system, run.job.arm, run.job.lengthened) == (system, arm, False)


def _seeds(seeds: set[int]) -> str:
    named = ", ".join(map(str, sorted(seeds)))
    return f"seed {named} is" if len(seeds) == 1 else f"seeds {named} are"


def _entropies(table: Table, runs: Sequence[Result]) -> list[Entropy]:
    found = []
    for system in table.systems:
        for arm in table.arms:
            values = [
                run.outcome.entropy
                for run in runs
                if (run.job.system, run.job.arm) == (system, arm) and _is_known(run.outcome.entropy)
            ]
            if values:
                found.append(Entropy(system, arm, float(np.mean(values)), len(values)))
    return found
