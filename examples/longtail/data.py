"""What the trainer asks of a data set, and the random draws that all arms of a seed share."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor


class Data(Protocol):
    """A training and a test set for one seed. Each call of a method starts its random draws anew."""

    seed: int
    counts: Tensor  # [K], training images of each class
    groups: Mapping[str, Sequence[int]]  # the classes called Many, Medium and Few

    def train_batches(self, steps: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Images `[N, C, H, W]` and labels `[N]`, augmented, one pair a step; the same at every call."""
        ...

    def test_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Images `[N, C, H, W]` and labels `[N]` of the whole test set."""
        ...


def generator(seed: int, purpose: str) -> torch.Generator:
    """A generator for one purpose of one seed, so that no draw elsewhere (dropout, weights) shifts it."""
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
