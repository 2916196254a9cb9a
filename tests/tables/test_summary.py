"""From results to numbers and to sentences, compared with values computed by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest

from examples.tables.sentences import ONE_SEED, QUICK, p_value, sentences
from examples.tables.summary import LENGTHENED, summarise
from examples.tables.table import QUICK as SMALL
from examples.tables.table import Outcome
from table_cases import TABLE, made, result, results

FIRST = TABLE.systems[0]
ONE_COLUMN = replace(TABLE, columns=("All",), primary=("All",))


def said(values, **options):
    return "\n".join(sentences(summarise(ONE_COLUMN, made(values, **options))))


def test_means_differences_and_their_numbers_are_those_of_numpy():
    runs = results()
    summary = summarise(TABLE, runs)
    assert len(summary.cells) == 2 * 5 * 6
    assert len(summary.differences) == 2 * 5 * 6
    values = {(run.job.system, run.job.arm): [] for run in runs}
    for run in runs:
        if not run.job.lengthened:
            values[run.job.system, run.job.arm].append([run.outcome.metrics[name] for name in TABLE.columns])
    for cell in summary.cells:
        own = np.array(values[cell.system, cell.arm])[:, TABLE.columns.index(cell.column)]
        assert (cell.mean, cell.count) == (pytest.approx(own.mean()), 4)
        assert cell.standard_error == pytest.approx(own.std(ddof=1) / 2)
    for each in summary.differences:
        pair = np.array([values[each.system, each.first], values[each.system, each.second]])
        own = (pair[0] - pair[1])[:, TABLE.columns.index(each.column)]
        assert (each.mean, each.count) == (pytest.approx(own.mean()), 4)


def test_holm_counts_the_primary_columns_of_all_systems_and_no_others():
    summary = summarise(TABLE, results())
    assert len(summary.primary) == 2 * 2 * 5
    smallest = min(summary.primary, key=lambda each: each.p)
    assert smallest.corrected == pytest.approx(20 * smallest.p)
    assert all(math.isnan(each.corrected) for each in summary.differences if each not in summary.primary)


def test_seeds_without_a_partner_are_left_out_and_said():
    summary = summarise(ONE_COLUMN, made([[10, 12], [20, 23], [90, None], [None, 5]]))
    (each,) = summary.differences
    assert (each.mean, each.count) == (2.5, 2)
    assert [cell.count for cell in summary.cells] == [3, 3]
    assert f"{FIRST}, BatchFormer - baseline: seeds 2, 3 are left out" in "\n".join(summary.left_out)
    assert f"{FIRST}: there is no run of uniform." in summary.left_out


def test_a_metric_that_is_none_or_no_number_is_left_out_of_its_column_alone():
    table = replace(ONE_COLUMN, columns=("All", "Few"))
    runs = [
        result(run.job, Outcome(run.outcome.metrics | {"Few": few}))
        for run, few in zip(made([[10, 12], [20, 23]]), [1.0, None, 2.0, math.nan], strict=True)
    ]
    summary = summarise(table, runs)
    assert {each.column for each in summary.differences} == {"All"}
    assert summary.cell(FIRST, "BatchFormer", "Few") is None
    assert any("seeds 0, 1 are left out in Few" in sentence for sentence in summary.left_out)


def test_the_lengthened_baseline_is_paired_with_the_baseline_and_is_in_no_mean():
    runs = made([[10], [20], [30]], arms=["baseline"])
    runs += made([[10.5], [20.4], [30.3]], arms=["baseline"], lengthened=True)
    summary = summarise(ONE_COLUMN, runs)
    (each,) = summary.convergence
    assert (each.first, each.count, each.mean) == (LENGTHENED, 3, pytest.approx(0.4))
    assert summary.cell(FIRST, "baseline", "All").mean == 20
    assert "less than 1 point, so it has converged" in "\n".join(sentences(summary))


def test_a_baseline_whose_interval_reaches_a_point_is_not_shown_to_have_converged():
    runs = made([[10], [20], [30]], arms=["baseline"])
    runs += made([[11.5], [20.1], [30.3]], arms=["baseline"], lengthened=True)
    found = "\n".join(sentences(summarise(ONE_COLUMN, runs)))
    assert "not shown to have converged to within 1 point" in found
    assert "so it has converged" not in found


def test_tuning_runs_are_in_no_mean():
    runs = made([[10, 12], [20, 23]])
    odd = result(replace(runs[0].job, seed=7, changes=(("steps", 3),)), Outcome({"All": 1000.0}))
    assert summarise(ONE_COLUMN, [*runs, odd]).cells == summarise(ONE_COLUMN, runs).cells


def test_entropy_is_the_mean_of_the_runs_of_an_arm():
    found = {
        (each.system, each.arm): (each.mean, each.count) for each in summarise(TABLE, results()).entropies
    }
    assert len(found) == 2 * 3
    assert found[FIRST, "BatchFormer"] == (pytest.approx(0.998), 4)
    assert found[FIRST, "alone"] == (0.0, 4)


def test_what_holds_is_said_with_its_interval_and_nothing_else_is_said_to_be_shown():
    found = said([[10, 12.0], [20, 22.1], [30, 31.9], [40, 42.2]])
    assert f"Shown: {FIRST}: All, BatchFormer is above baseline by 2.05 points" in found
    assert found.count("Shown:") == 1
    assert "Not shown" not in found


def test_what_does_not_hold_is_said_with_the_difference_that_is_excluded():
    values = [[10, 10.1], [20, 19.8], [30, 30.2], [40, 40.0]]
    bound = summarise(ONE_COLUMN, made(values)).differences[0].excluded
    found = said(values)
    assert "Shown: nothing. No difference is statistically significant at 5 %." in found
    assert "Not shown: that BatchFormer differs from baseline, in the one comparison." in found
    assert f"excludes differences above {bound:.2f} points; smaller ones remain possible" in found


def test_an_interval_without_0_that_holm_does_not_let_stand_is_not_shown():
    arms = ("baseline", "BatchFormer", "uniform", "alone")
    noise = np.random.default_rng(3).normal(0, 1, (4, 4))
    noise[:, 1] = noise[:, 0] + [1.0, 1.5, 2.1, 0.6]  # p 0.026
    summary = summarise(ONE_COLUMN, made(noise.tolist(), arms=arms))
    each = next(each for each in summary.differences if each.contrast == "BatchFormer - baseline")
    assert each.without_zero
    assert not each.holds
    found = "\n".join(sentences(summary))
    assert "out 0 without holding after the correction" in found
    assert "BatchFormer is above" not in found


def test_one_seed_says_that_nothing_can_be_said():
    found = sentences(summarise(TABLE, results(range(1), lengthened=False)))
    assert found[0] == ONE_SEED
    assert not any("hown:" in sentence or "interval" in sentence for sentence in found)


def test_seeds_that_no_two_arms_share_say_nothing():
    found = said([[10, None], [20, None], [None, 3], [None, 4]])
    assert "No two arms have two seeds in common" in found
    assert "hown:" not in found


def test_quick_says_that_its_numbers_mean_nothing_and_no_more():
    runs = [replace(run, job=replace(run.job, size=SMALL)) for run in results()]
    assert sentences(summarise(TABLE, runs)) == [QUICK]


def test_equal_differences_are_said_to_have_no_interval():
    found = said([[10, 12], [20, 22], [30, 32]])
    assert "The same difference in every pair, so that there is no interval" in found
    assert "Shown: nothing" in found


def test_no_result_says_so():
    assert sentences(summarise(TABLE, [])) == ["There is no result."]


def test_convergence_that_was_not_measured_is_said():
    found = sentences(summarise(TABLE, results(lengthened=False)))
    (sentence,) = [each for each in found if "Not measured" in each]
    assert all(system in sentence for system in TABLE.systems)


def test_p_is_never_0():
    assert [p_value(p) for p in (0.0, 0.00052, 0.0312, 1.0)] == ["< 0.0001", "= 0.0005", "= 0.031", "= 1.000"]
