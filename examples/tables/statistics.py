"""Statistics of paired runs: intervals, and which differences are significant among many."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from statsmodels.stats.multitest import multipletests

LEVEL = 0.05
ROUNDING = 1e-9  # points; metrics are counts of images, so differences can be equal except for rounding


@dataclass(frozen=True)
class Difference:
    """A paired difference: first minus second, over the same seeds."""

    system: str
    first: str
    second: str
    column: str
    mean: float
    count: int
    standard_error: float = math.nan  # nan for a single pair, as are all fields below
    low: float = math.nan  # of the 95 % interval, by Student's t with n - 1 degrees of freedom
    high: float = math.nan
    p: float = math.nan  # two-sided
    corrected: float = math.nan  # p after Holm; nan for differences that are not tested together

    @property
    def contrast(self) -> str:
        """Which arm is compared with which."""
        return f"{self.first} - {self.second}"

    @property
    def has_interval(self) -> bool:
        """Whether there are enough pairs, with different differences, for an interval of the mean."""
        return not math.isnan(self.low)

    @property
    def holds(self) -> bool:
        """Whether it is significant at 5 % after Holm, among all that are tested together."""
        return self.corrected < LEVEL

    @property
    def without_zero(self) -> bool:
        """Whether the 95 % interval, not corrected for other differences, excludes 0."""
        return self.low > 0 or self.high < 0

    @property
    def excluded(self) -> float:
        """The 95 % interval excludes differences larger than this, in either direction."""
        return max(abs(self.low), abs(self.high))

    def within(self, bound: float) -> bool:
        """Whether the whole interval is nearer to 0 than `bound`."""
        return self.excluded < bound  # False for nan


def difference(
    system: str, first: str, second: str, column: str, ones: Sequence[float], others: Sequence[float]
) -> Difference:
    """The difference of two arms in a column, over pairs of one seed each.

    Where all differences are the same, t is not defined: so there is no interval either, and p is 1, with
    which the difference still counts for Holm.

    Example:
        >>> round(difference("", "a", "b", "All", [3.0, 4.0, 5.0], [1.0, 2.0, 3.5]).mean, 3)
        1.833
    """
    differences: NDArray[np.float64] = np.subtract(ones, others)
    found = Difference(system, first, second, column, float(differences.mean()), len(differences))
    if found.count < 2:
        return found
    if np.ptp(differences) < ROUNDING:
        return replace(found, standard_error=0.0, p=1.0)
    test = stats.ttest_1samp(differences, 0.0)
    low, high = test.confidence_interval(1 - LEVEL)
    error = float(stats.sem(differences))
    return replace(found, standard_error=error, low=float(low), high=float(high), p=float(test.pvalue))


def corrected(together: Sequence[Difference]) -> list[Difference]:
    """The differences with their p after Holm, for the number of those that have one."""
    tested = [each.p for each in together if not math.isnan(each.p)]
    if not tested:
        return list(together)
    after = iter(multipletests(tested, LEVEL, method="holm")[1])
    return [each if math.isnan(each.p) else replace(each, corrected=float(next(after))) for each in together]
