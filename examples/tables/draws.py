"""The random draws that all arms of a seed share."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor


def generator(seed: int, purpose: str) -> torch.Generator:
    """A generator for one purpose of one seed, so that no draw elsewhere (dropout, weights) changes it."""
    state = np.random.SeedSequence([seed, *purpose.encode()]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


def shuffled(images: int, batch_size: int, draws: torch.Generator) -> Iterator[Tensor]:
    """Endless indices `[N]`: shuffled passes, one after the other, cut into batches of `batch_size`.

    N is smaller only where there are fewer images than that. A batch may reach into the next pass, so that
    no image is left out and every step has the same N.
    """
    size = min(batch_size, images)
    waiting = torch.empty(0, dtype=torch.int64)
    while True:
        while len(waiting) < size:
            waiting = torch.cat([waiting, torch.randperm(images, generator=draws)])
        yield waiting[:size]
        waiting = waiting[size:]
