"""Memory: that cannot be had, that is kept, that the user gets; strides that mean nothing."""

import gc
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import batchformer as bf
import memory_sweep
from reference import results

MIB = 2**20


def resident() -> int:
    """Bytes of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def given_back(work: Callable[[], object]) -> int:
    """By how many bytes the process is smaller afterwards."""
    gc.collect()
    before = resident()
    work()
    return before - resident()


@pytest.mark.parametrize("threads", [1, 2])
def test_memory_that_cannot_be_had_is_an_error_and_the_next_call_works(threads):
    """A reduced sweep: six limits from nothing to what a step needs, each in a process of its own."""
    command = [sys.executable, memory_sweep.__file__, "--threads", str(threads), "--limits", "6"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for case in memory_sweep.CASES:
        for outcome in memory_sweep.OUTCOMES:
            assert re.search(f"{case}, .* ours {outcome}", done.stdout), done.stdout


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(2**20, 2**12, 8), (2**40, 1, 8), (3, 2**58, 8)], ids=str)
def test_an_input_that_is_small_but_for_its_shape_is_torchs_error(shape, dtype):
    layer = bf.TransformerEncoderLayer(8, 4, 8, dtype=dtype)
    with pytest.raises(RuntimeError):
        layer(torch.zeros(1, 1, 8, dtype=dtype).expand(shape))


def test_a_large_output_can_be_resized():
    y = bf.TransformerEncoderLayer(512, 4, 512)(torch.randn(64, 20, 512)).detach()
    count = 2 * y.numel()
    assert y.resize_(count).untyped_storage().nbytes() == 4 * count


def printed(work: str, **environment: str) -> float:
    """The number that a function of this file prints in a new process, whose heap nothing has grown yet."""
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", f"import test_memory; print(test_memory.{work}())"],
        env=os.environ | environment | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout)


def held_outputs_given_back() -> float:
    """Of 100 MiB."""
    layer, x = bf.TransformerEncoderLayer(256, 4, 256), torch.randn(64, 64, 256)
    with torch.no_grad():
        held = [layer(x) for _ in range(25)]
    return given_back(held.clear) / MIB


def test_outputs_that_were_held_go_back_when_they_are_deleted():
    assert printed("held_outputs_given_back") > 90


def saved_by_a_step() -> int:
    """Bytes that the forward saved of a step that is over."""
    layer = bf.TransformerEncoderLayer(256, 4, 256)
    x = torch.randn(64, 200, 256)
    layer(x).sum().backward()
    return 6 * x.numel() * x.element_size()


def test_what_is_kept_goes_back_when_asked():
    saved = saved_by_a_step()
    assert given_back(bf.ops.empty_cache) > saved / 2
    assert given_back(bf.ops.empty_cache) < MIB
    saved_by_a_step()


def test_graphs_that_were_held_go_back_with_later_calls(one_thread):
    bf.ops.empty_cache()
    layer = bf.TransformerEncoderLayer(64, 4, 64)
    large, small = torch.randn(64, 64, 64), torch.randn(8, 1, 64)
    held = [layer(large) for _ in range(20)]  # 6 MiB each
    bf.ops.empty_cache()

    def later_calls() -> None:
        held.clear()
        for _ in range(300):
            layer(small).sum().backward()

    assert given_back(later_calls) > 80 * MIB


def kept_by_a_step() -> float:
    """MiB."""
    saved_by_a_step()
    return given_back(bf.ops.empty_cache) / MIB


@pytest.mark.parametrize("most", [0, 32])
def test_an_environment_variable_bounds_what_is_kept(most):
    assert most / 2 <= printed("kept_by_a_step", BATCHFORMER_POOL_MB=str(most)) <= most + 1


@pytest.mark.parametrize("asked", ["-1", "2GB", "", "1.5"])
def test_a_bound_that_is_no_number_is_named(asked):
    done = subprocess.run(
        [sys.executable, "-c", "import batchformer"],
        env=os.environ | {"BATCHFORMER_POOL_MB": asked, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    expected = f"BATCHFORMER_POOL_MB: expected a whole number of MiB, 0 or more, got {asked!r}"
    assert done.returncode == 1
    assert done.stderr.strip().endswith(expected)


def test_large_memory_is_used_again():
    """Fresh memory is filled with zeros at its first touch: a fault for every 4 KiB, or 2 MiB if huge."""
    layer = bf.TransformerEncoderLayer(256, 4, 256, 0.5)
    x, grad_y = torch.randn(2, 64, 300, 256)
    written = 8 * x.numel() * x.element_size()  # what is saved, the output and the gradient of the input

    def step() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        layer.zero_grad()
        layer(x).backward(grad_y)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    for _ in range(3):
        step()
    assert min(step() for _ in range(6)) < written / (2 << 20) / 2


def test_ten_thousand_steps_leave_nothing_behind(one_thread):
    layers_and_inputs = [
        (bf.TransformerEncoderLayer(16, 2, 16, 0.5), torch.randn(n, l, 16)) for n, l in ((4, 150), (9, 1))
    ]

    def steps(count: int) -> None:
        for _ in range(count):
            for layer, x in layers_and_inputs:
                layer.zero_grad()
                layer(x).sum().backward()

    steps(1000)
    assert given_back(lambda: steps(5000)) > -4 * MIB


STRIDES = {
    "one channel, [N, L, C] permuted": lambda: torch.randn(1, 4, 5).permute(1, 2, 0),
    "one channel of many": lambda: torch.randn(4, 5, 3)[:, :, :1],
    "one sample": lambda: torch.randn(6, 5, 7).permute(1, 2, 0)[:1],
    "one position": lambda: torch.randn(6, 5, 7).transpose(0, 1)[:, :1],
    "one sample, any stride": lambda: torch.randn(40).as_strided((1, 5, 8), (10**12, 8, 1)),
    "one position, any stride": lambda: torch.randn(40).as_strided((5, 1, 8), (8, 10**12, 1)),
    "one channel, any stride": lambda: torch.randn(40).as_strided((5, 8, 1), (8, 1, 10**12)),
    "one of each": lambda: torch.randn(1).as_strided((1, 1, 1), (7, 7, 7)),
    "expanded channels": lambda: torch.randn(4, 5, 1).expand(4, 5, 8),
    "overlapping tokens": lambda: torch.randn(40).as_strided((4, 5, 8), (5, 3, 1)),
}


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", STRIDES)
def test_strides_that_mean_nothing_change_nothing(kind, batch_first):
    x = STRIDES[kind]()
    layer = bf.TransformerEncoderLayer(x.shape[2], 1, 4, 0.0, batch_first=batch_first, norm_first=True)
    plain = torch.empty(x.shape).copy_(x)
    before = bf.ops.path_counts()["cpu"]
    actual, expected = results(layer, layer, x, x), results(layer, layer, plain, plain)
    assert bf.ops.path_counts()["cpu"] == before + 4
    assert [name for name in expected if not torch.equal(actual[name], expected[name])] == []


def test_modules_of_width_one_take_any_view():
    v1 = bf.BatchFormer(1, nhead=1)
    assert v1(torch.randn(1, 5).T)[0].shape == (10, 1)
    v2 = bf.BatchFormerV2(1, nhead=1, layout="NCHW")
    assert v2(torch.randn(2, 1, 3, 3)).shape == (4, 1, 3, 3)
