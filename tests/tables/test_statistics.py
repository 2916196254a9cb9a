"""Statistics of paired runs, compared with values computed by hand and a second implementation."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.weightstats import DescrStatsW

from examples.tables.arms import ALONE, BASELINE, BATCHFORMER, SOFTENED, UNIFORM
from examples.tables.statistics import Difference, corrected, difference
from table_cases import TABLE


def of(ones, others):
    return difference("system", BATCHFORMER, BASELINE, "All", ones, others)


def with_p(*values):
    return [Difference("", "", "", "", 0.0, 6, p=p) for p in values]


def holm(values):
    """Holm's p by its definition: the k-th smallest of m times m - k + 1, never below the ones before it."""
    after, least = [0.0] * len(values), 0.0
    for rank, place in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        least = max(least, min(1.0, (len(values) - rank) * values[place]))
        after[place] = least
    return after


def test_three_pairs_give_the_mean_and_the_interval_of_a_printed_table_of_t():
    found = of([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])  # differences 1, 2, 3
    error = 1 / math.sqrt(3)
    assert (found.mean, found.count) == (2.0, 3)
    assert found.standard_error == pytest.approx(error)
    assert found.low == pytest.approx(2 - 4.302653 * error, abs=1e-6)  # t of 2 degrees of freedom at 0.975
    assert found.high == pytest.approx(2 + 4.302653 * error, abs=1e-6)
    t = 2 / error
    assert found.p == pytest.approx(
        1 - t / math.sqrt(2 + t * t)
    )  # the distribution of t of 2 degrees, closed form
    assert not found.without_zero
    assert found.excluded == found.high


@pytest.mark.parametrize("count", [2, 3, 6, 20])
def test_intervals_and_p_equal_those_of_two_other_implementations(count):
    ones, others = np.random.default_rng(count).normal([[71.0], [70.0]], 2.0, (2, count))
    found = of(ones.tolist(), others.tolist())
    described = DescrStatsW(ones - others)
    assert (found.low, found.high) == pytest.approx(described.tconfint_mean(0.05), rel=1e-9)
    assert found.standard_error == pytest.approx(described.std_mean)
    assert found.p == pytest.approx(described.ttest_mean(0)[1])
    assert found.p == pytest.approx(stats.ttest_rel(ones, others).pvalue)
    assert found.without_zero == (found.p < 0.05)


def test_what_both_arms_of_a_seed_share_does_not_widen_the_interval():
    own, shared = np.random.default_rng(0).normal(size=(2, 8))
    plain, shifted = of(own, np.zeros(8)), of(own + 50 * shared, 50 * shared)
    assert (shifted.low, shifted.high) == pytest.approx((plain.low, plain.high))


def test_a_single_pair_has_a_mean_and_nothing_else():
    found = of([3.0], [1.0])
    assert (found.mean, found.count) == (2.0, 1)
    assert all(math.isnan(x) for x in (found.standard_error, found.low, found.high, found.p, found.corrected))
    assert not any((found.has_interval, found.without_zero, found.holds, found.within(100)))


@pytest.mark.parametrize("shift", [0.0, 0.1])
def test_equal_differences_say_nothing_of_chance(shift):
    others = [70.1, 71.3, 69.7]
    found = of([value + shift for value in others], others)  # equal except for rounding
    assert not any((found.has_interval, found.without_zero, found.within(100)))
    assert found.p == 1.0


def test_holm_by_hand():
    after = [each.corrected for each in corrected(with_p(0.01, 0.04, 0.03, 0.005))]
    assert after == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert [each.holds for each in corrected(with_p(0.01, 0.04, 0.03, 0.005))] == [True, False, False, True]


def test_holm_equals_its_definition_on_random_values():
    values = np.random.default_rng(0).random(30) ** 3
    after = [each.corrected for each in corrected(with_p(*values))]
    assert after == pytest.approx(holm(values.tolist()))


def test_what_has_no_p_is_not_counted_by_holm():
    first, second, third = corrected(with_p(0.02, math.nan, 0.5))
    assert first.corrected == pytest.approx(0.04)
    assert math.isnan(second.corrected)
    assert third.corrected == 0.5
    assert corrected([]) == []
    assert math.isnan(corrected(with_p(math.nan))[0].corrected)


@pytest.mark.parametrize(
    ("low", "high", "excluded"), [(-0.2, 0.7, 0.7), (-0.9, 0.4, 0.9), (0.1, 0.3, 0.3), (-0.8, -0.6, 0.8)]
)
def test_what_is_excluded_is_the_end_of_the_interval_farther_from_nothing(low, high, excluded):
    found = Difference("", "", "", "", (low + high) / 2, 6, low=low, high=high)
    assert found.excluded == excluded
    assert found.within(1.0)
    assert not found.within(excluded)


def test_every_arm_is_compared_with_the_baseline_and_batchformer_with_uniform():
    table = replace(TABLE, arms=(BASELINE, BATCHFORMER, UNIFORM, ALONE, SOFTENED))
    assert table.contrasts_of(table.systems[0]) == [
        (BATCHFORMER, BASELINE),
        (UNIFORM, BASELINE),
        (ALONE, BASELINE),
        (SOFTENED, BASELINE),
        (BATCHFORMER, UNIFORM),
    ]


@pytest.mark.parametrize(
    ("arms", "pairs"),
    [((BATCHFORMER, UNIFORM), [(BATCHFORMER, UNIFORM)]), ((BASELINE, ALONE), [(ALONE, BASELINE)])],
)
def test_what_a_system_lacks_is_not_compared(arms, pairs):
    first, second = TABLE.systems
    lacks = tuple((first, arm) for arm in TABLE.arms if arm not in arms)
    table = replace(TABLE, without=lacks)
    assert table.contrasts_of(first) == pairs
    assert table.contrasts_of(second) == TABLE.contrasts_of(second)
