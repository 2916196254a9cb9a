"""Interleaved timing: a round runs every competitor once, so that a drift of the machine hits all alike."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from batchformer.benchmark.competitors import Competitor

WARM_UP = 2


class Times(NamedTuple):
    """Seconds over the rounds."""

    median: float
    minimum: float


def time_interleaved(
    competitors: Sequence[Competitor],
    rounds: int,
    device: torch.device,
    after_round: Callable[[], None] = lambda: None,
) -> dict[str, dict[str, Times]]:
    """Times of each competitor by name: "step" is forward with backward, "forward" forward alone."""
    seconds: dict[str, dict[str, list[float]]] = {
        competitor.name: {"step": [], "forward": []} for competitor in competitors
    }
    for number in range(-WARM_UP, rounds):
        for competitor in competitors:
            for part, call in (("step", competitor.step), ("forward", competitor.forward)):
                taken = _time(call, device)
                if number >= 0:
                    seconds[competitor.name][part].append(taken)
        after_round()
    return {
        name: {part: Times(statistics.median(values), min(values)) for part, values in parts.items()}
        for name, parts in seconds.items()
    }


def _time(call: Callable[[], object], device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    call()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
