"""Fences around every test: the random state, the compiler's caches, and loud skips of what needs a GPU."""

import os

import pytest
import torch


@pytest.fixture(autouse=True)
def _fixed_and_fenced_random_state():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture(autouse=True)
def _fresh_compiler():
    yield
    torch._dynamo.reset()


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        if os.environ.get("FAIL_WITHOUT_CUDA") == "1":
            pytest.fail("FAIL_WITHOUT_CUDA=1, and torch sees no CUDA device")
        pytest.skip("torch sees no CUDA device")
    return request.param
