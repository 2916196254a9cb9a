"""The script for a machine with a GPU, as far as others can tell: what goes wrong is told, not lost."""

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import device_call
import pytest
import torch
from device_call import Step
from device_steps import primitives, sanitizer, tiny
from harness import emulator_missing

PRINTS = "import os, pathlib; pathlib.Path(os.environ['DEVICE_FINDINGS']).write_text('{\"line\": \"found\"}')"


def run(monkeypatch, tmp_path, capsys, steps, *arguments):
    """Exit status, report and printed lines of a run of these steps."""
    monkeypatch.setattr(device_call, "steps", lambda options: steps)
    numbers = ",".join(map(str, steps))
    monkeypatch.setattr(
        sys, "argv", ["device_call.py", "--out", str(tmp_path / "out"), "--steps", numbers, *arguments]
    )
    status = device_call.main()
    return (
        status,
        json.loads((tmp_path / "out" / "report.json").read_text()),
        capsys.readouterr().out.splitlines(),
    )


def test_a_step_that_fails_or_hangs_is_told_and_does_not_stop_the_next(monkeypatch, tmp_path, capsys):
    hangs = f"{PRINTS}; import time; time.sleep(60)"
    status, report, lines = run(
        monkeypatch,
        tmp_path,
        capsys,
        {
            3: Step("fails", 20, [sys.executable, "-c", f"{PRINTS}; raise SystemExit(3)"]),
            1: Step("hangs", 1, [sys.executable, "-c", hangs]),
            2: Step(
                "works",
                20,
                [sys.executable, "-c", f"assert __import__('os').environ['A'] == '1'; {PRINTS}"],
                {"A": "1"},
            ),
        },
    )
    assert status == 2
    assert [report[name]["status"] for name in ("fails", "hangs", "works")] == ["3", "time", "0"]
    assert all(report[name]["line"] == "found" for name in ("fails", "hangs", "works"))
    assert [line.split()[0] for line in lines] == ["fails", "hangs", "works"]
    assert report["hangs"]["seconds"] < 10


def test_no_step_begins_when_the_time_is_over(monkeypatch, tmp_path, capsys):
    takes_long = f"{PRINTS}; import time; time.sleep(0.3)"
    steps = {1: Step("first", 20, [sys.executable, "-c", takes_long]), 2: Step("second", 20, ["false"])}
    _, report, lines = run(monkeypatch, tmp_path, capsys, steps, "--seconds", "5.25")
    assert "second" not in report
    assert lines[1] == "second     no time left"


def test_failures_of_tests_are_in_the_report_by_name(monkeypatch, tmp_path, capsys):
    (tmp_path / "test_some.py").write_text(
        "def test_right(): pass\ndef test_wrong(): assert 1 == 2, 'numbers'\n"
        "def test_skipped(): import pytest; pytest.skip('no')\n"
    )
    command = [sys.executable, "-m", "pytest", "-c", "/dev/null", "--rootdir", str(tmp_path), str(tmp_path)]
    xml = f"--junitxml={tmp_path}/out/tests.xml"
    _, report, lines = run(monkeypatch, tmp_path, capsys, {4: Step("tests", 60, [*command, xml])})
    assert report["tests"]["line"] == "1 passed, 1 failed, 1 skipped"
    ((name, message),) = report["tests"]["failed"].items()
    assert name.endswith("test_wrong")
    assert "numbers" in message
    assert "FAILED (1)" in lines[0]


def test_every_step_is_a_module_that_is_there():
    options = device_call.make_parser().parse_args([])
    steps = device_call.steps(options)
    assert set(map(int, options.steps.split(","))) <= set(steps)
    modules = {step.command[2] for step in steps.values()}
    assert [name for name in modules if find_spec(name) is None] == []
    assert [file for file in device_call.SUITE if not (device_call.ROOT / file).exists()] == []


@pytest.mark.skipif(emulator_missing() is not None, reason=str(emulator_missing()))
def test_a_primitive_that_differs_by_a_bit_is_found(tmp_path, monkeypatch):
    file = tmp_path / "expectations.pt"
    assert primitives.make(file) == 0
    expected = torch.load(file)
    monkeypatch.setattr(primitives, "outcome", lambda mode: expected)
    assert primitives.main(file) == 0
    for name, case in primitives.cases().items():
        changed = {key: [each.clone() for each in value] for key, value in expected.items()}
        last = changed[name][-1].view(torch.uint8).flatten()
        last[len(last) // 2] ^= 1
        monkeypatch.setattr(primitives, "outcome", lambda mode, changed=changed: changed)
        assert primitives.main(file) == int(case.exact), name
    assert sum(case.exact for case in primitives.cases().values()) >= 14


def test_the_sanitizer_looks_at_every_layer_and_at_tests_that_are_there():
    jobs = sanitizer.jobs()
    for tool in ("memcheck", "synccheck", "initcheck"):
        assert [job.tool for job in jobs].count(tool) == len(tiny.CASES)
    files = [Path(job.command[-1]) for job in jobs if job.tool == "racecheck"]
    assert [file for file in files if "def test_" not in file.read_text()] == []
    assert len(files) == 6


def test_what_the_sanitizer_says_is_read():
    wrong = ["Invalid __global__ write of size 4 bytes", "    at norm(int)+0x70"]
    log = "".join(f"========= {line}\n" for line in ("COMPUTE-SANITIZER", *wrong))
    assert sanitizer.read(log) == (None, wrong)
    assert sanitizer.read(f"{log}========= ERROR SUMMARY: 3 errors\n")[0] == 3
    assert sanitizer.read("========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n") == (
        0,
        [],
    )
