"""Every instruction set of this processor, by the tests of the results in a process of its own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import batchformer as bf

TESTS = Path(__file__).parent
SETS = ("baseline", "avx2", "avx512")
LOWER = SETS[: SETS.index(bf.ops.instruction_set())]


def started(*command: object, isa: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        env=os.environ | {"BATCHFORMER_ISA": isa} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=TESTS.parent,
    )


def test_this_process_runs_the_best_unless_it_is_asked_for_less():
    flags = Path("/proc/cpuinfo").read_text()
    asked = os.environ.get("BATCHFORMER_ISA", "avx512")
    has = [name for name, flag in zip(SETS, ("", "avx2", "avx512dq"), strict=True) if flag in flags]
    assert bf.ops.instruction_set() == min(has[-1], asked, key=SETS.index)


@pytest.mark.skipif(not LOWER, reason="this process runs the lowest already")
def test_the_results_are_right_with_less():
    """All sets side by side, each with one thread: what a thread does is the same for any number of them."""
    files = [TESTS / name for name in ("test_encoder_layer.py", "test_dropout.py")]
    # libtorch has instruction sets of its own, and is slow in float64 on two of the large inputs.
    ours = "not half_precision and not aten and not (large_inputs and (256-192 or 64-512))"
    runs = [started("-m", "pytest", "-x", "-k", ours, *files, isa=isa, OMP_NUM_THREADS="1") for isa in LOWER]
    for isa, run, (printed, _) in zip(LOWER, runs, [run.communicate() for run in runs], strict=True):
        assert run.returncode == 0, f"{isa}\n{printed[-4000:]}"
        assert re.search(r"^\d+ passed", printed, re.M)


@pytest.mark.parametrize("isa", LOWER)
def test_a_process_runs_the_set_that_it_is_asked_for(isa):
    code = "import batchformer; print(batchformer.ops.instruction_set())"
    printed, _ = started("-c", code, isa=isa).communicate()
    assert printed.strip() == isa


def test_a_set_that_does_not_exist_is_refused_with_the_names():
    run = started("-c", "import batchformer", isa="avx3")
    _, errors = run.communicate()
    assert "BATCHFORMER_ISA: expected 'baseline' or 'avx2' or 'avx512', got 'avx3'" in errors
    assert run.returncode != 0
