"""Fences around every test: random state, torch's settings, compiler's caches, loud skips without a GPU."""

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator

import pytest
import torch

from batchformer._extension import core

# What torch.compile kept on disk for an earlier state of the ops is not looked at.
os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp(prefix="batchformer-tests-")
atexit.register(shutil.rmtree, os.environ["TORCHINDUCTOR_CACHE_DIR"], ignore_errors=True)


@pytest.fixture(autouse=True)
def _fixed_and_fenced_random_state():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture(autouse=True)
def _settings_as_they_were():
    """The programs that tests call set torch for themselves: the tests behind would take other paths."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    assert torch.backends.mkldnn.enabled
    assert torch.get_default_dtype() == torch.float32


@pytest.fixture(autouse=True)
def _fresh_compiler():
    yield
    torch._dynamo.reset()


@pytest.fixture
def one_thread():
    """Small tensors, many steps: a second thread would wait more than it works."""
    torch.set_num_threads(1)


@pytest.fixture(params=["cpu", "aten"])
def path(request: pytest.FixtureRequest) -> Iterator[str]:
    """The path of calls on the CPU: the fused one, and the one through libtorch, which is for any device."""
    core.aten_alone(request.param == "aten")
    yield request.param
    core.aten_alone(False)


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        if os.environ.get("FAIL_WITHOUT_CUDA") == "1":
            pytest.fail("FAIL_WITHOUT_CUDA=1, and torch sees no CUDA device")
        pytest.skip("torch sees no CUDA device")
    return request.param
