"""What runs in two processes at once: it has to be importable there."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from rank import join, leave
from trainers.pairs import ByHand, samples

RANKS, STEPS = 2, 4


def together(work: Callable[..., dict[str, float]], folder: Path, *arguments: Any) -> dict[str, float]:
    """The larger, by name, of what `work(rank, *arguments)` returns in each of two processes of a group."""
    torch.multiprocessing.spawn(_join, (folder, work, arguments), nprocs=RANKS)
    found = [json.loads((folder / str(rank)).read_text()) for rank in range(RANKS)]
    return {name: max(each[name] for each in found) for name in found[0]}


def _join(rank: int, folder: Path, work: Callable[..., dict[str, float]], arguments: tuple[Any, ...]) -> None:
    join(rank, RANKS, folder / "store")
    warnings.filterwarnings("error", "batchformer")  # ours
    (folder / str(rank)).write_text(json.dumps(work(rank, *arguments)))
    leave()


def batches_of(rank: int, kind: str) -> list[tuple[Tensor, Tensor]]:
    """The batches of a process: 6 samples each, which meet no others."""
    x, y = samples(kind)
    return [(x[at : at + 6], y[at : at + 6]) for at in range(6 * rank, 24, 12)] * (STEPS // 2)


def train_by_hand(
    by_hand: ByHand,
    optimizer: torch.optim.Optimizer,
    rank: int,
    *,
    accumulate: int = 1,
    own_buffers: bool = False,
    low: bool = False,
) -> list[Tensor]:
    """What both processes do, in one: the mean of the losses of their batches; those of `rank` are returned.

    Buffers are those of the first process, or of the process itself. With `low`, parameters and inputs are
    rounded to bfloat16 for all that is computed.
    """
    losses = []
    for step in range(STEPS):
        first = {name: buffer.clone() for name, buffer in by_hand.named_buffers()}
        kept = {}
        for each in range(RANKS):
            for name, buffer in by_hand.named_buffers():
                buffer.copy_(first[name])
            x, y = batches_of(each, by_hand.kind)[step]
            loss = F.cross_entropy(_rounded(by_hand, x) if low else by_hand(x), y.repeat(2))
            (loss / RANKS).backward()
            if each == (rank if own_buffers else 0):
                kept = {name: buffer.clone() for name, buffer in by_hand.named_buffers()}
            if each == rank:
                losses.append(loss.detach())
        for name, buffer in by_hand.named_buffers():
            buffer.copy_(kept[name])
        if (step + 1) % accumulate == 0:
            optimizer.step()
            optimizer.zero_grad()
    return losses


def _rounded(by_hand: ByHand, x: Tensor) -> Tensor:
    parameters = {name: each.bfloat16() for name, each in by_hand.named_parameters()}
    return functional_call(by_hand, parameters, (x.bfloat16() if x.is_floating_point() else x,))


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    """Whose steps are as near as the gradients, also where these are zero but for rounding."""
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
