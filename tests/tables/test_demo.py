"""`make demo`: the first table with fewer steps."""

import pytest

from examples import demo
from examples.tables import long_tailed
from examples.tables.arms import BASELINE
from examples.tables.table import Job


@pytest.mark.parametrize("lengthened", [False, True])
def test_it_is_the_table_but_for_a_quarter_of_the_steps(lengthened):
    job = Job(long_tailed.BALANCED, BASELINE, 0, lengthened=lengthened)
    of_table = long_tailed.settings(job)
    assert demo.TABLE.settings(job) == {**of_table, "steps": of_table["steps"] // 4}


@pytest.mark.usefixtures("one_thread")
def test_the_program_trains_every_arm(tmp_path, capsys):
    assert demo.main(["--quick", "--seeds", "1", "--workers", "1", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert f"Long-tailed recognition, {demo.STEPS} of {long_tailed.RECIPE.steps} steps" in printed
    assert all(arm in printed for arm in long_tailed.TABLE.arms)
    assert (tmp_path / "demo" / "quick" / "differences.png").exists()
