"""What runs in another process or thread: it has to be importable there."""

import os
import threading
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from reference import layers, results
from tolerances import assert_near


def compare_with_torch(rank: int, world_size: int, store: str) -> None:
    """Gradients of both layers under DDP, each rank on its own samples."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world_size)
    torch.manual_seed(0)
    theirs, ours = layers(16, 4, 16, 0.0, dtype=torch.float64)
    torch.manual_seed(rank + 1)
    x, grad_y = torch.randn(2, 6, 3, 16, dtype=torch.float64)
    alone = results(ours, ours, x, grad_y)
    actual = results(DistributedDataParallel(ours), ours, x, grad_y)
    expected = results(DistributedDataParallel(theirs), theirs, x, grad_y)
    assert_near(actual, expected, torch.float64)
    name = "grad of linear1.weight"
    assert not torch.allclose(actual[name], alone[name]), "the ranks did not average"
    dist.destroy_process_group()


def seconds(call: Callable[[], object]) -> float:
    """Time of one call, after a first."""
    call()
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def longest_pause_of_another_thread(call: Callable[[], object]) -> float:
    """Longest time, in seconds, for which another Python thread stood still during the call."""
    call()
    stop, pauses = threading.Event(), [0.0]

    def tick() -> None:
        last = time.perf_counter()
        while not stop.is_set():
            time.sleep(0.0005)
            now = time.perf_counter()
            pauses.append(now - last)
            last = now

    thread = threading.Thread(target=tick)
    thread.start()
    time.sleep(0.02)
    pauses.clear()
    call()
    stop.set()
    thread.join()
    return max(pauses, default=float("inf"))
