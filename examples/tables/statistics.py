"""What can be said of paired runs: intervals, and which differences hold when many are looked at."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from statsmodels.stats.multitest import multipletests

LEVEL = 0.05


@dataclass(frozen=True)
class Difference:
    """A paired difference: first minus second, over the same seeds."""

    system: str
    first: str
    second: str
    column: str
    mean: float
    count: int
    standard_error: float  # nan for a single pair, as all below
    low: float  # of the 95 % interval, by Student's t with n - 1 degrees of freedom
    high: float
    p: float  # of both sides; 1 where all differences are 0
    corrected: float = math.nan  # p after Holm, of the differences that are looked at together

    @property
    def holds(self) -> bool:
        """Whether it is told from chance at 5 % among all that are looked at together."""
        return self.corrected < LEVEL

    @property
    def excluded(self) -> float:
        """The 95 % interval excludes differences larger than this, in either direction."""
        return max(abs(self.low), abs(self.high))


def difference(
    system: str, first: str, second: str, column: str, ones: Sequence[float], others: Sequence[float]
) -> Difference:
    """The difference of two arms in a column, over pairs of one seed each.

    Example:
        >>> difference("", "a", "b", "All", [3.0, 4.0, 5.0], [1.0, 2.0, 3.5]).mean
        1.8333333333333333
    """
    differences: NDArray[np.float64] = np.subtract(ones, others)
    count, mean = len(differences), float(differences.mean())
    named = {"system": system, "first": first, "second": second, "column": column}
    if count < 2:
        return Difference(
            **named, mean=mean, count=count, standard_error=math.nan, low=math.nan, high=math.nan, p=math.nan
        )
    if np.ptp(differences) == 0:  # without spread there is no t
        return Difference(
            **named, mean=mean, count=count, standard_error=0.0, low=mean, high=mean, p=float(mean == 0)
        )
    test = stats.ttest_1samp(differences, 0.0)
    low, high = test.confidence_interval(1 - LEVEL)
    return Difference(
        **named,
        mean=mean,
        count=count,
        standard_error=float(stats.sem(differences)),
        low=float(low),
        high=float(high),
        p=float(test.pvalue),
    )


def corrected(together: Sequence[Difference]) -> list[Difference]:
    """The differences with their p after Holm, for the number of those that have one."""
    tested = [each for each in together if not math.isnan(each.p)]
    if not tested:
        return list(together)
    after = iter(multipletests([each.p for each in tested], LEVEL, method="holm")[1])
    return [each if math.isnan(each.p) else replace(each, corrected=float(next(after))) for each in together]
