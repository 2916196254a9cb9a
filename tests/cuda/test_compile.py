"""NVRTC compiles every kernel for every architecture, within the registers and spills of registers.tsv.

A few by default; all with BATCHFORMER_COMPILE_ALL=1. What has changed for good reason is measured anew by
`python tests/cuda/compile_table.py`.
"""

import os

import pytest
from compile_table import ARCHS, cell, measured, read, units
from harness import SourceError, nvrtc, nvrtc_missing

pytestmark = pytest.mark.skipif(nvrtc_missing() is not None, reason=str(nvrtc_missing()))

ALL = [(unit, arch) for unit in units() for arch in ARCHS]
ALL_OF_THEM = os.environ.get("BATCHFORMER_COMPILE_ALL") == "1"
STEP = 37  # no multiple of the architectures' number: each comes its turn, and so does each source
CHOSEN = ALL if ALL_OF_THEM else ALL[::STEP]
GRANULE = 8  # a device hands out registers in eights


@pytest.mark.parametrize(("unit", "arch"), CHOSEN, ids=[f"{unit.name} {arch}" for unit, arch in CHOSEN])
def test_a_kernel_takes_no_more_registers_than_it_did(unit, arch):
    table = read()
    majors = {int(row[2]) for row in table}
    own = int(nvrtc().version.split(".")[0])
    major = str(own if own in majors else max(majors))
    for kernel, figures in measured(nvrtc(), unit, arch).items():
        assert (unit.name, kernel, major) in table, "python tests/cuda/compile_table.py measures it"
        cap, found = table[unit.name, kernel, major][arch], cell(figures)
        assert found.registers <= -(-cap.registers // GRANULE) * GRANULE, f"{kernel}: {found}, was {cap}"
        assert found.spilled <= cap.spilled, f"{kernel}: {found}, was {cap}"


def test_every_unit_has_its_row_and_no_row_is_of_one_that_is_gone():
    assert {unit.name for unit in units()} == {row[0] for row in read()}


def test_the_sample_has_every_architecture():
    assert {arch for _, arch in CHOSEN} == set(ARCHS)


def test_what_does_not_compile_says_where():
    with pytest.raises(SourceError, match=r'kernels.cu\(3\): error: identifier "nothing" is undefined'):
        nvrtc().compiled('extern "C" __global__ void kernel() {\n\n  nothing;\n}', {}, "sm_90")
