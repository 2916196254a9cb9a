"""`python -m examples.tables`: what it runs, what it refuses, and how it is interrupted."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from examples.tables.__main__ import INTERRUPTED, jobs_of, main
from examples.tables.catalogue import TABLES
from examples.tables.options import parse
from examples.tables.results import Results
from examples.tables.table import QUICK, TUNING_SEEDS
from table_cases import TABLE, jobs, named, train

ROOT = Path(__file__).parents[2]
OTHER = replace(
    TABLE,
    name="other",
    systems=("Third system",),
    short=(),
    grid={},
    arms=TABLE.arms[:4],
    devices=("cpu",),
)


def planned(*arguments, table=TABLE, folder):
    return jobs_of(table, parse(named(TABLE, OTHER), [*arguments, "--out", str(folder)]))


def files(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def test_the_full_run_is_all_seeds_systems_and_arms_with_the_lengthened_baselines(tmp_path):
    found = planned("made_up", folder=tmp_path)
    plain = [job for job in found if not job.lengthened]
    assert len(plain) == len(set(plain)) == 4 * 2 * 5
    assert {job.seed for job in found} == {0, 1, 2, 3}
    longer = [job for job in found if job.lengthened]
    assert {(job.system, job.arm) for job in longer} == {(system, "baseline") for system in TABLE.systems}
    assert len(longer) == 4 * 2
    assert [job.seed for job in found] == sorted(job.seed for job in found)  # pairs stay whole if interrupted


def test_the_short_run_is_what_the_table_declares(tmp_path):
    found = planned("made_up", "--short", folder=tmp_path)
    assert {job.system for job in found} == set(TABLE.short)
    assert {job.seed for job in found} == {0, 1, 2}
    assert not any(job.lengthened for job in found)
    assert any(job.lengthened for job in planned("made_up", "--short", "--converged", folder=tmp_path))
    assert {job.system for job in planned("other", "--short", table=OTHER, folder=tmp_path)} == {
        "Third system"
    }


def test_a_quick_run_has_two_seeds_and_no_lengthened_baseline(tmp_path):
    found = planned("made_up", "--quick", folder=tmp_path)
    assert {job.size for job in found} == {QUICK}
    assert len(found) == 2 * 2 * 5
    assert not any(job.lengthened for job in found)


def test_systems_arms_and_seeds_can_be_picked(tmp_path):
    picked = ["--system", TABLE.systems[1], "--arm", "alone", "--seeds", "3", "--first-seed", "50"]
    found = planned("made_up", *picked, folder=tmp_path)
    assert [(job.system, job.arm, job.seed) for job in found] == [
        (TABLE.systems[1], "alone", seed) for seed in (50, 51, 52)
    ]
    assert planned("all", "--system", "Third system", folder=tmp_path) == []  # no system of this table
    assert len(planned("made_up", "--no-converged", folder=tmp_path)) == 4 * 2 * 5


def test_tuning_is_the_grid_of_the_baseline_on_seeds_of_its_own(tmp_path):
    found = planned("made_up", "--tune", folder=tmp_path)
    assert {job.arm for job in found} == {"baseline"}
    assert {job.seed for job in found} == {TUNING_SEEDS, TUNING_SEEDS + 1}
    assert len({job.changes for job in found}) == 6
    assert len(found) == 2 * 2 * 6
    assert planned("all", "--tune", table=OTHER, folder=tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nothing"], "TABLE: expected one of made_up, other, all, got 'nothing'"),
        (["made_up", "--system", "x"], "--system: expected one of 'First system"),
        (["other", "--system", TABLE.systems[0]], "--system: expected one of 'Third system', got 'First"),
        (["made_up", "--arm", "x"], "--arm: expected one of 'baseline', 'BatchFormer'"),
        (["other", "--arm", "softened"], "got 'softened'"),
        (["made_up", "--seeds", "0"], "--seeds: expected an integer of at least 1, got '0'"),
        (["made_up", "--seeds", "two"], "--seeds: expected an integer of at least 1, got 'two'"),
        (["made_up", "--first-seed", "-1"], "--first-seed: expected an integer of at least 0, got '-1'"),
        (["made_up", "--workers", "0"], "--workers: expected an integer of at least 1, got '0'"),
        (["made_up", "--seeds", "101"], "--seeds, --first-seed: expected seeds below 100"),
        (["made_up", "--first-seed", "99", "--quick"], "expected seeds below 100, as baselines are tuned on"),
        (["made_up", "--tune", "--first-seed", "3"], "--first-seed: expected at least 100 with --tune"),
        (["made_up", "--tune", "--arm", "alone"], "not with --arm"),
        (["made_up", "--tune", "--quick"], "not with --quick"),
        (["made_up", "--tune", "--short"], "not with --short"),
        (["other", "--tune"], "--tune: other: no settings to try"),
        (["made_up", "--quick", "--short"], "--quick, --short: expected one of the two, got both"),
        (["made_up", "--quick", "--converged"], "--converged: a few steps, twice as many, say nothing"),
        (["made_up", "--device", "tpu"], "--device: invalid choice: 'tpu'"),
        (["other", "made_up", "--device", "cuda"], "--device: other: trains on cpu alone"),
        (["made_up", "--out", __file__], "--out: cannot make the folder"),
        ([], "the following arguments are required: TABLE"),
    ],
)
def test_a_bad_option_is_refused_with_a_sentence_before_anything_is_computed(
    arguments, sentence, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(arguments, named(replace(TABLE, train=pytest.fail), OTHER))
    assert stopped.value.code == 2
    assert sentence in capsys.readouterr().err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_a_gpu_that_is_not_there_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    asked = ["made_up", "--device", "cuda", "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit):
        main(asked, named(replace(TABLE, train=pytest.fail)))
    assert "--device: cuda: torch sees no CUDA device" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert main([*asked, "--report"], named(TABLE)) == 0  # computes nothing


def test_runs_of_a_gpu_are_others_than_those_of_the_cpu(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "graphics card")
    asked = ["made_up", "--seeds", "1", "--workers", "1", "--out", str(tmp_path)]
    seen = []
    table = replace(TABLE, train=lambda job: seen.append(job.device) or train(job))
    for device, count in (("cuda", 12), ("cpu", 24), ("cuda", 24)):  # the last time all are there
        assert main([*asked, "--device", device], named(table)) == 0
        assert len(seen) == count
    assert seen == ["cuda"] * 12 + ["cpu"] * 12
    of_gpu, of_cpu = (Results(tmp_path, table, device).at_full_length() for device in ("cuda", "cpu"))
    assert {result.job.device for result in of_gpu} == {"cuda"}
    assert {result.origin["processor"] for result in of_gpu} == {"graphics card"}
    assert {result.settings["device"] for result in of_gpu} == {"cuda"}
    assert {result.job.device for result in of_cpu} == {"cpu"}
    assert not any("device" in result.settings for result in of_cpu)
    assert (tmp_path / "cuda" / "made_up" / "means.csv").exists()


def test_all_tables_are_run_and_reported(tmp_path, capsys):
    assert main(["all", "--seeds", "2", "--workers", "1", "--out", str(tmp_path)], named(TABLE, OTHER)) == 0
    printed = capsys.readouterr().out
    assert printed.count("2 seeds, paired.") == 2
    for table in (TABLE, OTHER):
        for name in ("means.csv", "differences.csv", "results.json", "differences.png"):
            assert (tmp_path / table.name / name).stat().st_size > 0


def test_a_report_computes_nothing_and_says_how_much_there_is(tmp_path, capsys):
    main(
        ["made_up", "--seeds", "2", "--workers", "1", "--no-converged", "--out", str(tmp_path)], named(TABLE)
    )
    first = capsys.readouterr().out
    main(["made_up", "--report", "--out", str(tmp_path)], named(replace(TABLE, train=pytest.fail)))
    again = capsys.readouterr().out
    assert "- 20 of 48 runs are on disk." in again
    assert first.partition("\n\n")[2].rpartition("In ")[0] in again


def test_quick_numbers_do_not_take_the_place_of_others(tmp_path, capsys):
    main(["made_up", "--seeds", "2", "--workers", "1", "--out", str(tmp_path)], named(TABLE))
    before = (tmp_path / "made_up" / "results.json").read_text()
    main(["made_up", "--quick", "--workers", "1", "--out", str(tmp_path)], named(TABLE))
    assert "these numbers mean nothing" in capsys.readouterr().out
    assert (tmp_path / "made_up" / "results.json").read_text() == before
    assert (tmp_path / "made_up" / "quick" / "results.json").exists()


def test_tuning_prints_the_settings_best_first_and_names_edges(tmp_path, capsys):
    def tuned(job):
        changes = dict(job.changes)
        value = 50 + 100 * changes["learning_rate"] - 10 * abs(changes["weight_decay"] - 0.1)
        outcome = train(job)
        return replace(outcome, metrics=outcome.metrics | {"All": value + job.seed % 2})

    main(["made_up", "--tune", "--workers", "1", "--out", str(tmp_path)], named(replace(TABLE, train=tuned)))
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.count("Best: learning_rate 0.2, weight_decay 0.1;") == 2
    assert printed.count("At the edge of what was tried: learning_rate.") == 2
    assert printed.index("70.50 ± 0.50") < printed.index("69.50 ± 0.50") < printed.index("59.50 ± 0.50")


def test_an_interruption_says_what_is_kept_and_how_to_go_on(tmp_path, capsys):
    def stops(job):
        if job.seed == 1:
            raise KeyboardInterrupt
        return train(job)

    arguments = ["made_up", "--workers", "1", "--out", str(tmp_path)]
    assert main(arguments, named(replace(TABLE, train=stops))) == INTERRUPTED
    printed = " ".join(capsys.readouterr().out.split())
    assert "Interrupted. 12 of 48 runs of made_up are done, and kept in" in printed
    assert "the same command goes on from there" in printed
    assert main(arguments, named(TABLE)) == 0


SLOW = """
import signal, sys, time
from dataclasses import replace
from examples.tables.__main__ import main
from table_cases import TABLE, named, train

def slow(job):
    time.sleep(120 if job.seed else 0)
    return train(job)

if __name__ == "__main__":
    # A shell that runs the tests in the background has all of its children ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main(sys.argv[1:], named(replace(TABLE, train=slow))))
"""


@pytest.fixture
def slow_program(tmp_path):
    """A program of two workers that has done the runs of the first seed, 12; those of the second are slow."""
    script = tmp_path / "slow.py"
    script.write_text(SLOW)
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests"), *sys.path])
    started = subprocess.Popen(
        [sys.executable, str(script), "made_up", "--workers", "2", "--out", str(tmp_path / "out")],
        env=os.environ | {"PYTHONPATH": paths, "PYTHONFAULTHANDLER": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        give_up = time.monotonic() + 300  # a machine may be busy
        while len(files(tmp_path / "out")) < 12 and time.monotonic() < give_up and started.poll() is None:
            time.sleep(0.2)
        yield started
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)
        started.communicate()


@pytest.mark.skipif(os.name == "nt", reason="signals as Unix has them")
def test_ctrl_c_ends_all_processes_at_once_and_keeps_what_they_have_done(tmp_path, slow_program):
    os.killpg(slow_program.pid, signal.SIGINT)  # as a terminal does: to all of its processes
    try:
        printed, complaints = slow_program.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        slow_program.send_signal(signal.SIGABRT)  # which prints where it is
        _, complaints = slow_program.communicate()
    assert slow_program.returncode == INTERRUPTED, complaints
    assert "Interrupted. 12 of 48 runs" in printed
    assert complaints == ""
    done = Results(tmp_path / "out", TABLE).load_all(jobs())
    assert [result.job.seed for result in done] == [0] * 12
    assert [asdict(result.outcome) for result in done] == [asdict(train(result.job)) for result in done]
    assert len(files(tmp_path / "out")) == 12  # no file is half written


@pytest.mark.skipif(os.name == "nt", reason="signals as Unix has them")
def test_workers_end_with_a_program_that_is_killed(slow_program):
    slow_program.kill()
    # A pipe ends when all of the processes that hold it have ended, workers included.
    slow_program.communicate(timeout=60)


def test_the_program_says_which_tables_there_are(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    assert len(TABLES) == 9
    for name in TABLES:
        assert name in printed


def test_tables_are_found_by_their_names_and_imported_when_they_are_looked_up():
    assert [table.name for table in TABLES.values()] == list(TABLES)
    assert TABLES.get("tables") is None
    code = "import sys, examples.tables.__main__; print(*sys.modules)"
    paths = os.pathsep.join([str(ROOT), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True
    )
    imported = set(done.stdout.split())
    assert "examples.tables.catalogue" in imported
    assert not {"examples.tables.detection", "lightly", "timm", "torchvision", "transformers"} & imported
