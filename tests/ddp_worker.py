"""What runs in another process or thread: it has to be importable there."""

import threading
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import batchformer as bf
import stand_ins
from rank import join, leave
from reference import layers, results
from tolerances import assert_near


def compare_with_torch(rank: int, world_size: int, store: str) -> None:
    """Gradients of both layers under DDP, each rank on its own samples."""
    join(rank, world_size, store)
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
    leave()


def train_attached(rank: int, world_size: int, store: str) -> None:
    """An attached module gets the mean of the gradients that it gets on each rank's samples."""
    join(rank, world_size, store)
    for outputs, find_unused in (
        ("both", False),
        ("originals", False),
        ("originals", True),
    ):  # DDP copies outputs in the last
        _compare_attached(rank, world_size, outputs, find_unused=find_unused)
    leave()


def _compare_attached(rank: int, world_size: int, outputs: str, *, find_unused: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.Linear(32, 5)).double()
    attachment = bf.attach(model, before="1", dropout=0.0, outputs=outputs)
    criterion = attachment.wrap(nn.CrossEntropyLoss())
    batches = [(torch.randn(6, 8).double(), torch.randint(5, (6,))) for _ in range(world_size)]

    def gradients(forward: nn.Module, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
        model.zero_grad()
        criterion(forward(x), y).backward()
        return {name: p.grad.clone() for name, p in model.named_parameters()}

    alone = [gradients(model, *batch) for batch in batches]
    expected = {name: sum(each[name] for each in alone) / world_size for name in alone[0]}
    wrapped = DistributedDataParallel(model, find_unused_parameters=find_unused)
    assert_near(gradients(wrapped, *batches[rank]), expected, torch.float64)


def unshuffle_both_streams(rank: int, world_size: int, store: str) -> None:
    """Keys of this rank's images in their order, in both streams, after a shuffle over all ranks.

    With attend="alone" a related row depends on its own image alone: it can be told where it came from.
    """
    join(rank, world_size, store)
    for pairings, streams in (("aligned", "ob"), ("all", "obob")):
        torch.manual_seed(0)
        model = stand_ins.MoCo()
        attachment = bf.attach(model, "moco_v2", pairings=pairings, attend="alone", dropout=0.0)
        torch.manual_seed(rank + 1)
        images = torch.randn(4, 3, 8, 8)
        torch.manual_seed(5)
        logits, labels = model(images, images)
        key = model.encoder_k
        pooled = key.avgpool(key.conv1(images).relu()).flatten(1)
        related = attachment.inserted[0].encoder(pooled[None])[0]
        rows = {
            "o": F.normalize(_head(key.fc, pooled), dim=1),
            "b": F.normalize(_head(key.fc, related), dim=1),
        }
        expected = torch.cat([rows[stream] for stream in streams])
        torch.testing.assert_close(model.last_keys, expected)
        assert len(logits) == len(labels) == len(streams) * 4
        assert int(model.queue_ptr) == 2 * 4 * world_size, "2N keys of every rank enter the queue"
    leave()


def _head(layers: nn.Sequential, x: torch.Tensor) -> torch.Tensor:
    """The layers without the hooks of the whole."""
    for layer in layers:
        x = layer(x)
    return x


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
