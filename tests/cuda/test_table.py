"""The table of kernels in the docs is what the core launches and the compiler makes of it."""

import re

import pytest
from harness import SOURCES, nvrtc, nvrtc_missing, source_text
from table import ARCHITECTURES, asked, rows, told, written
from traffic import BYTES, bytes_of_step

from batchformer.benchmark.shapes import Shape

STEP = 9  # every row would be half a minute of compiling


@pytest.fixture(scope="module")
def of_the_core():
    return rows()


@pytest.fixture(scope="module")
def of_the_docs():
    return [line for line in written().splitlines() if line.startswith("| `")]


def test_the_docs_have_every_kernel_of_the_calls(of_the_core, of_the_docs):
    assert len(of_the_core) >= 30
    halves = [asked(row) for row in of_the_core]
    assert [line[: len(half)] for line, half in zip(of_the_docs, halves, strict=True)] == halves


def test_every_kernel_that_moves_more_than_sums_has_its_formula(of_the_core):
    assert {row.launch.kernel for row in of_the_core} - set(BYTES) == {"column_sums"}
    sources = "".join(source_text(name) for name in SOURCES)
    assert [name for name in BYTES if f" {name}(" not in sources] == []


@pytest.mark.skipif(nvrtc_missing() is not None, reason=str(nvrtc_missing()))
def test_registers_and_spills_of_the_docs_are_those_of_their_compiler(of_the_core, of_the_docs):
    version = re.search(r"Compiled by NVRTC ([\d.]+)\.", written())[1]
    if nvrtc().version != version:
        pytest.skip(f"the table was made by NVRTC {version}, this is {nvrtc().version}")
    for row, line in list(zip(of_the_core, of_the_docs, strict=True))[::STEP]:
        assert line.endswith(told([row.figures(arch, {}) for arch in ARCHITECTURES])), line


def test_the_bytes_of_a_step_are_those_of_its_launches():
    """M C is 4 * 850 * 256, and two norms read and write four of them each."""
    shape = Shape("DETR", 4, 850, 256)
    assert bytes_of_step("residual_norm_forward", shape, 2) == 2 * 4 * 4 * 850 * 256 * 2
    assert bytes_of_step("attention_small_backward", shape, 2) == 7 * 4 * 850 * 256 * 2
    wide = Shape("V1", 4096, 1, 2048)
    assert bytes_of_step("softmax_forward", wide, 2) == 4 * 4096**2 * (4 + 2)
    assert bytes_of_step("column_sums", wide, 2) is None
