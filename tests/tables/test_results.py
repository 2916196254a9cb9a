"""Runs and their results on disk: written whole, and reused only where the settings are the same."""

import json
from dataclasses import asdict, replace

import pytest
import torch

from examples.tables import long_tailed, results, running
from examples.tables.arms import BATCHFORMER, SOFTENED
from examples.tables.results import Results
from examples.tables.running import run_all
from examples.tables.table import QUICK, Job, Outcome
from table_cases import TABLE, jobs, train

JOB = Job(TABLE.systems[0], BATCHFORMER, 0)


def files(folder):
    return [path for path in (folder / TABLE.name).rglob("*") if path.is_file()]


def counting(computed):
    """A table that records what it computes."""

    def train_and_count(job):
        computed.append(job)
        return train(job)

    return replace(TABLE, train=train_and_count)


def test_a_result_comes_back_as_it_was_saved(tmp_path):
    kept = Results(tmp_path, TABLE)
    assert kept.load(JOB) is None
    saved = kept.save(JOB, train(JOB), 1.234)
    assert kept.load(JOB) == saved
    assert saved.outcome == train(JOB)
    assert saved.versions["torch"] == torch.__version__
    assert set(saved.origin) == {"date", "processor", "cores", "commit"}
    assert all(saved.origin.values())


def test_every_job_has_a_file_of_its_own(tmp_path):
    kept = Results(tmp_path, TABLE)
    different = [
        *jobs(range(2)),
        replace(JOB, size=QUICK),
        replace(JOB, changes=(("steps", 3),)),
        replace(JOB, changes=(("steps", 4),)),
        replace(JOB, changes=(("name", "with/slash"),)),
    ]
    for job in different:
        kept.save(job, Outcome({"All": float(different.index(job))}), 0.0)
    assert [kept.load(job).outcome.metrics["All"] for job in different] == list(range(len(different)))
    assert len(files(tmp_path)) == len(different)


def test_a_result_of_other_settings_is_not_taken(tmp_path):
    Results(tmp_path, TABLE).save(JOB, train(JOB), 0.0)
    other = replace(TABLE, settings=lambda job: {"steps": 21})
    assert Results(tmp_path, other).load(JOB) is None
    assert Results(tmp_path, TABLE).load(JOB) is not None  # left where it was


def test_settings_with_tuples_are_the_same_when_they_come_back(tmp_path):
    table = replace(TABLE, settings=lambda job: {"sizes": (1, 2)})
    Results(tmp_path, table).save(JOB, train(JOB), 0.0)
    assert Results(tmp_path, table).load(JOB) is not None


def test_a_metric_that_is_no_number_is_kept_as_none(tmp_path):
    saved = Results(tmp_path, TABLE).save(JOB, Outcome({"All": float("nan"), "Few": 1.0}, float("inf")), 0.0)
    assert saved.outcome.metrics == {"All": None, "Few": 1.0}
    assert saved.outcome.entropy is None
    json.loads(files(tmp_path)[0].read_text(), parse_constant=pytest.fail)


def test_a_result_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    kept = Results(tmp_path, TABLE)
    with pytest.raises(TypeError):  # a value that JSON cannot represent
        kept.save(JOB, Outcome({"All": 1.0}, relations={1, 2}), 0.0)
    assert files(tmp_path) == []
    before = kept.save(JOB, train(JOB), 0.0)

    def full_disk(*_args):
        raise OSError("no space left")

    monkeypatch.setattr(results.Path, "replace", full_disk)  # after the temporary file has been written
    with pytest.raises(OSError, match="no space"):
        kept.save(JOB, Outcome({"All": 1.0}), 0.0)
    assert kept.load(JOB) == before


def test_an_interrupted_table_goes_on_where_it_was(tmp_path, quiet):
    wanted, computed = jobs(range(2)), []

    def stops(job):
        if len(computed) == 7:
            raise KeyboardInterrupt
        return counting(computed).train(job)

    kept = Results(tmp_path, TABLE)
    with pytest.raises(KeyboardInterrupt):
        run_all(replace(TABLE, train=stops), wanted, kept, 1, quiet)
    assert len(kept.load_all(wanted)) == len(files(tmp_path)) == 7
    again = run_all(counting(computed), wanted, kept, 1, quiet)
    assert [result.job for result in again] == wanted
    assert computed == wanted  # each once
    run_all(counting(computed), wanted, kept, 1, quiet)
    assert computed == wanted


def test_a_run_has_one_thread_and_leaves_torch_as_it_was(tmp_path, quiet):
    before, during = torch.get_num_threads(), []

    def look(job):
        during.append(torch.get_num_threads())
        return train(job)

    run_all(replace(TABLE, train=look), [JOB], Results(tmp_path, TABLE), 1, quiet)
    assert during == [1]
    assert torch.get_num_threads() == before


def test_a_log_has_a_line_for_each_run(tmp_path, quiet):
    wanted = jobs(range(1))
    run_all(TABLE, wanted, Results(tmp_path, TABLE), 1, quiet)
    quiet.file.flush()
    lines = (tmp_path / "printed").read_text().splitlines()
    assert len(lines) == len(wanted)
    assert lines[0].startswith(f"1 of {len(wanted)}: made_up, {TABLE.systems[0]}, baseline, seed 0, ")
    assert f"{TABLE.systems[1]}, baseline, seed 0, twice the steps" in lines[-1]


@pytest.mark.parametrize("arm", [BATCHFORMER, SOFTENED])  # the arms that draw random numbers themselves
def test_two_runs_of_one_job_give_the_same_numbers_bit_by_bit(arm, one_thread):
    job = Job(long_tailed.TABLE.systems[0], arm, 0, QUICK)
    first = long_tailed.TABLE.train(job)
    torch.rand(5)  # whatever was drawn before
    assert asdict(long_tailed.TABLE.train(job)) == asdict(first)
    assert running.describe(long_tailed.TABLE, job).startswith("long_tailed, ")
