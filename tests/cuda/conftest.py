"""The tests of the kernels import their harness by name; they need torch alone, not the package."""

import os
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

import harness


@pytest.fixture(params=["check", "device"])
def mode(request: pytest.FixtureRequest) -> str:
    """Where a kernel runs: under the checker, or on a device."""
    if request.param == "device" and not torch.cuda.is_available():
        if os.environ.get("FAIL_WITHOUT_CUDA") == "1":
            pytest.fail("FAIL_WITHOUT_CUDA=1, and torch sees no CUDA device")
        pytest.skip("torch sees no CUDA device")
    if request.param == "check" and (missing := harness.emulator_missing()):
        pytest.skip(missing)
    return request.param
