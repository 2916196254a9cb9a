"""Every instruction set of this processor, by the tests of the results in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import batchformer as bf

TESTS = Path(__file__).parent
SETS = ("baseline", "avx2", "avx512")
LOWER = SETS[: SETS.index(bf.ops.instruction_set())]


def run(*command: object, isa: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, command)],
        env=os.environ | {"BATCHFORMER_ISA": isa},
        capture_output=True,
        text=True,
        check=False,
        cwd=TESTS.parent,
    )


def test_this_process_runs_the_best_unless_it_is_asked_for_less():
    flags = Path("/proc/cpuinfo").read_text()
    asked = os.environ.get("BATCHFORMER_ISA", "avx512")
    has = [name for name, flag in zip(SETS, ("", "avx2", "avx512dq"), strict=True) if flag in flags]
    assert bf.ops.instruction_set() == min(has[-1], asked, key=SETS.index)


@pytest.mark.skipif(not LOWER, reason="this process runs the lowest already")
@pytest.mark.parametrize("isa", LOWER)
def test_the_results_are_right_with_less(isa):
    files = ("test_encoder_layer.py", "test_dropout.py")
    ours = "not half_precision and not aten"  # libtorch has instruction sets of its own
    done = run("-m", "pytest", "-x", "-k", ours, *(TESTS / file for file in files), isa=isa)
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout
    code = "import batchformer; print(batchformer.ops.instruction_set())"
    assert run("-c", code, isa=isa).stdout.strip() == isa


def test_a_set_that_does_not_exist_is_refused_with_the_names():
    done = run("-c", "import batchformer", isa="avx3")
    assert "BATCHFORMER_ISA: expected 'baseline' or 'avx2' or 'avx512', got 'avx3'" in done.stderr
    assert done.returncode != 0
