"""Letters of which a few are frequent and most are rare."""

import torch
from torch import Tensor

from examples.tables.draws import generator
from examples.tables.letters import CLASSES, Images, draw, random_faces


def long_tailed_letters(seed: int, most: int, imbalance: float) -> tuple[Images, Tensor]:
    """Training images, and how many there are of each class `[K]`; which class is rare is drawn."""
    draws = generator(seed, "split")
    profile = torch.tensor(class_sizes(most, imbalance, CLASSES))
    counts = profile[torch.randperm(CLASSES, generator=draws)]
    y = torch.arange(CLASSES).repeat_interleave(counts)
    return Images(draw(y, random_faces(len(y), draws), draws), y), counts


def class_sizes(most: int, imbalance: float, classes: int) -> list[int]:
    """Training images of each class, most frequent first: n_max * imbalance^(-rank / (K - 1)), at least 1.

    Source: Cui et al., "Class-balanced loss based on effective number of samples" (CVPR 2019), section 5.1.

    Example:
        >>> class_sizes(100, 100, 3)
        [100, 10, 1]
    """
    shares = (imbalance ** (-rank / (classes - 1)) for rank in range(classes))
    return [max(round(most * share), 1) for share in shares]
