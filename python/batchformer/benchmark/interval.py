"""The geometric mean of ratios, and how well it is known."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES = 10_000


class Interval(NamedTuple):
    """A geometric mean, and the bounds of its 95 % confidence interval."""

    mean: float
    low: float
    high: float


def ratio_interval(ratios: Sequence[float]) -> Interval:
    """Geometric mean of the ratios with its interval, by a percentile bootstrap of the mean logarithm.

    The resamples are the same in every call. With few ratios the interval is too narrow: by 6 % with 30 of
    them, by 18 % with 10 (compared with Student's t, if the logarithms are normal).

    Raises:
        ValueError: fewer than two ratios.
    """
    if len(ratios) < 2:
        raise ValueError(f"ratios: expected at least 2, got {len(ratios)}")
    logarithms = np.log(ratios)
    draws = np.random.default_rng(0).integers(len(ratios), size=(RESAMPLES, len(ratios)))
    low, high = np.quantile(logarithms[draws].mean(axis=1), (0.025, 0.975))
    return Interval(*(float(np.exp(value)) for value in (logarithms.mean(), low, high)))
