"""`python -m batchformer.cuda`: what it finds on a machine, its exit status, and the report."""

import os
import subprocess
import sys
from typing import Any, NamedTuple

import pytest
import torch

from batchformer.cuda import __main__ as program

NO_DEVICE = "no CUDA device found: the CPU kernels run, and torch's own layer elsewhere"


class Properties(NamedTuple):
    name: str = "A GPU"
    major: int = 9
    minor: int = 0
    multi_processor_count: int = 132


class PlayedCore:
    """Answers as the core does on a machine with a GPU."""

    def __init__(self) -> None:
        self.declined: tuple[str, bool] | None = None
        self.wrong: dict[str, str] = {}
        self.sources: Any = [("sm_90", "13.0", "norm", "0123"), ("sm_90", "13.0", "softmax", "4567")]

    def cuda_status(self) -> dict[str, str | None]:
        return {"driver": "13.0", "error": None}

    def cuda_self_check(self, kind: Any) -> float:
        if kind.linears in self.wrong:
            raise RuntimeError(self.wrong[kind.linears])
        return 2e-3

    def cuda_reason(self, kind: Any, may_try: bool) -> tuple[str, bool] | None:
        assert may_try
        return self.declined

    def cuda_sources(self, device: int) -> list[tuple[str, ...]]:
        if isinstance(self.sources, str):
            raise RuntimeError(self.sources)
        return self.sources


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> PlayedCore:
    played = PlayedCore()
    monkeypatch.setattr(program, "core", played)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Properties())
    return played


def test_without_a_gpu_the_status_is_two_and_nothing_is_written(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "batchformer.cuda", "--check", "--report", "report.md"],
        cwd=tmp_path,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    first, *facts, last = done.stdout.splitlines()
    assert f"torch {torch.__version__}" in first
    assert {"driver", "nvrtc", "error"} <= {line.split(":")[0] for line in facts}
    assert last == NO_DEVICE
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "expected --check or --report FILE"),
        (["--check", "--device", "2"], "--device: expected an index from 0 to 1, got 2"),
        (["--check", "--device", "-1"], "--device: expected an index from 0 to 1, got -1"),
    ],
    ids=str,
)
def test_bad_options_get_a_sentence(played, arguments, sentence, capsys):
    with pytest.raises(SystemExit) as ended:
        program.main(arguments)
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err


def test_every_kind_of_call_has_its_line(played, capsys):
    assert program.main(["--check", "--device", "1"]) == 0
    first, *facts = capsys.readouterr().out.splitlines()
    assert first.startswith("batchformer ")
    lines = facts[3:]
    assert facts[:3] == ["A GPU, sm_90, 132 multiprocessors", "driver: 13.0", "error: -"]
    assert len(lines) == len(set(lines)) == 50
    assert all(line.endswith("  verified  differs from libtorch by 2.0e-03") for line in lines)
    assert any("  cuda:1 float32/bfloat16 C=2048 H=4 F=2048 gelu pre-norm" in line for line in lines)


def test_what_runs_rightly_and_is_not_listed_is_declined_and_no_failure(played, capsys):
    played.declined = "the kernels of norm have not been verified on sm_90 with NVRTC 13.0", False
    assert program.main(["--check"]) == 0
    printed = capsys.readouterr().out
    assert printed.count(f"  declined  differs from libtorch by 2.0e-03; {played.declined[0]}\n") == 50
    assert "verified  " not in printed


def test_what_does_not_run_rightly_is_a_failure_that_stands_in_one_line(played, capsys, tmp_path):
    played.wrong = {"float16": "the kernels of norm do not compile:\n  norm.cu(3):\terror"}
    file = tmp_path / "report.md"
    assert program.main(["--report", str(file)]) == 1
    said = "the kernels of norm do not compile: norm.cu(3): error"
    assert capsys.readouterr().out.count(f"  declined  {said}\n") == 20
    assert file.read_text().count(f" | {said} |\n") == 20


def test_the_report_has_the_machine_the_lines_of_the_ledger_and_all_findings(played, capsys, tmp_path):
    file = tmp_path / "report.md"
    assert program.main(["--report", str(file)]) == 0
    assert f"{file} is written" in capsys.readouterr().out
    text = file.read_text()
    assert "- A GPU, sm_90, 132 multiprocessors\n- driver: 13.0\n- error: -\n" in text
    assert "\nsm_90 13.0 norm 0123\nsm_90 13.0 softmax 4567\n" in text
    assert text.count("| cuda:0 ") == text.count(" | differs from libtorch by 2.0e-03 |\n") == 50


def test_a_machine_whose_compiler_cannot_be_had_has_a_report_that_says_so(played, tmp_path):
    played.sources = "libnvrtc.so.13: expected a library that can be loaded, got: no such file"
    file = tmp_path / "report.md"
    program.main(["--report", str(file)])
    assert f"```\n{played.sources}\n```" in file.read_text()
