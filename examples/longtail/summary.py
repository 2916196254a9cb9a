"""From runs to numbers: means, paired differences to the baseline, their standard errors."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from longtail.groups import COLUMNS
from longtail.models import ARMS, BASELINE
from longtail.training import Run


@dataclass(frozen=True)
class Cell:
    """One arm in one column, in %; None is what cannot be said, like the standard error of one seed."""

    arm: str
    column: str
    mean: float | None
    difference: float | None = None
    standard_error: float | None = None

    @property
    def stands_out(self) -> bool:
        """Whether the difference to the baseline is larger than twice its standard error."""
        if self.difference is None or self.standard_error is None:
            return False
        # Accuracies are counts of images, so exact ties occur; rounding must not decide them.
        return abs(self.difference) > 2 * self.standard_error * (1 + 1e-9)


def summarise(runs: Sequence[Run]) -> list[Cell]:
    """Cells of the table: the arms in order, in each the columns All, Many, Medium and Few.

    A difference is taken seed by seed; its standard error is the standard deviation of these differences
    over the square root of their number.
    """
    cells = []
    for column in COLUMNS:
        baseline = _by_seed(runs, BASELINE, column)
        for arm in ARMS:
            accuracies = _by_seed(runs, arm, column)  # [seeds]
            if arm == BASELINE:
                cells.append(Cell(arm, column, _known(accuracies.mean())))
                continue
            differences = accuracies - baseline  # [seeds]
            cells.append(
                Cell(
                    arm,
                    column,
                    _known(accuracies.mean()),
                    _known(differences.mean()),
                    _known(standard_error(differences)),
                )
            )
    return sorted(cells, key=lambda cell: ARMS.index(cell.arm))


def column_accuracy(run: Run, column: str) -> float:
    """Mean over the classes of a column of their accuracy in %; nan where no class has test images.

    Over classes and not over images, which is the same on a balanced test set.
    """
    per_class = run.per_class if column == "All" else run.per_class[list(run.data.groups[column])]
    tested = per_class[~np.isnan(per_class)]
    return float(tested.mean()) if len(tested) else math.nan


def standard_error(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Standard error of the mean over axis 0; nan for a single value."""
    if len(values) < 2:
        return np.full(values.shape[1:], math.nan)
    return np.asarray(values.std(axis=0, ddof=1) / math.sqrt(len(values)))


def verdict(cells: Sequence[Cell]) -> str:
    """The sentence under the table: which differences are larger than twice their standard error."""
    if all(cell.standard_error is None for cell in cells):
        return "One seed has no standard error: no difference can be told from chance."
    standing_out = [
        f"{cell.arm}, {cell.column} {cell.difference:+.1f} ± {cell.standard_error:.1f}"
        for cell in cells
        if cell.stands_out
    ]
    if not standing_out:
        return "No difference to the baseline is larger than twice its standard error."
    return f"Larger than twice their standard error: {'; '.join(standing_out)}."


def by_chance(cells: Sequence[Cell], seeds: int) -> str:
    """The sentence after it: how many differences would be as large if no arm differed at all."""
    compared = sum(cell.standard_error is not None for cell in cells)
    if not compared:
        return ""
    expected = compared * 2 * stats.t.sf(2, seeds - 1)
    return (
        f"Were all arms equally good, {expected:.1f} of the {compared} differences would be that large "
        f"on average with {seeds} seeds."
    )


def _by_seed(runs: Sequence[Run], arm: str, column: str) -> NDArray[np.float64]:
    return np.array([column_accuracy(run, column) for run in runs if run.arm == arm])


def _known(value: float | NDArray[np.float64]) -> float | None:
    return None if math.isnan(float(value)) else float(value)
