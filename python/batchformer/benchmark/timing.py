"""Interleaved timing: a round runs every competitor once, so that a drift of the machine hits all alike."""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from batchformer.benchmark.competitors import Competitor

WARM_UP = 2
WARM_UP_ON_DEVICE = 5
"""A graph of reduce-overhead is recorded in the second step and replayed from the third on."""
ROUND_SECONDS = 0.005
"""The least time of a round on a device, filled with steps: the clock and the wait are then below 1 %."""
MOST_STEPS = 50


class Times(NamedTuple):
    """Seconds over the rounds, by the clock of the device where it has one."""

    median: float
    minimum: float
    wall: float  # the median of the host's clock, with the wait for the device; on the CPU the same


class Measured(NamedTuple):
    """Seconds of one call among several, between two events of the device and by the host's clock."""

    device: float
    wall: float


def time_interleaved(
    competitors: Sequence[Competitor],
    rounds: int,
    device: torch.device,
    after_round: Callable[[], None] = lambda: None,
) -> dict[str, dict[str, Times]]:
    """Times of each competitor by name: "step" is forward with backward, "forward" forward alone."""
    calls = {
        (competitor.name, part): call
        for competitor in competitors
        for part, call in (("step", competitor.step), ("forward", competitor.forward))
        if call is not None
    }
    repeats = _warm_up(calls, device, after_round)
    taken: dict[tuple[str, str], list[Measured]] = {key: [] for key in calls}
    for _ in range(rounds):
        for key, call in calls.items():
            taken[key].append(measure_calls(call, device, repeats[key]))
        after_round()
    times: dict[str, dict[str, Times]] = {competitor.name: {} for competitor in competitors}
    for (name, part), measured in taken.items():
        seconds = [each.device for each in measured]
        wall = statistics.median(each.wall for each in measured)
        times[name][part] = Times(statistics.median(seconds), min(seconds), wall)
    return times


def measure_calls(call: Callable[[], object], device: torch.device, repeats: int = 1) -> Measured:
    """Mean seconds of calls in a row; nothing else is in the device's queue before or after them."""
    if device.type != "cuda":
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        wall = (time.perf_counter() - start) / repeats
        return Measured(wall, wall)
    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    first.record()
    for _ in range(repeats):
        call()
    last.record()
    torch.cuda.synchronize(device)
    wall = time.perf_counter() - start
    return Measured(first.elapsed_time(last) / 1e3 / repeats, wall / repeats)


def _warm_up(
    calls: dict[tuple[str, str], Callable[[], object]],
    device: torch.device,
    after_round: Callable[[], None],
) -> dict[tuple[str, str], int]:
    """How many calls of each make a round: one on the CPU; on a device more, if they are short."""
    repeats = dict.fromkeys(calls, 1)
    on_device = device.type == "cuda"
    for number in range(WARM_UP):
        for key, call in calls.items():
            wall = measure_calls(call, device, WARM_UP_ON_DEVICE if on_device else 1).wall
            if on_device and number == WARM_UP - 1:
                repeats[key] = min(MOST_STEPS, max(1, math.ceil(ROUND_SECONDS / wall)))
        after_round()
    return repeats
