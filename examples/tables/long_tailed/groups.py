"""Which classes are called Many, Medium and Few."""

import math

from torch import Tensor

GROUPS = ("Many", "Medium", "Few")
COLUMNS = ("All", *GROUPS)

Groups = dict[str, list[int]]


def by_thirds(counts: Tensor) -> Groups:
    """Classes in thirds, from the most frequent to the rarest; what does not divide by 3 goes to Medium.

    For sets too small for the limits of :func:`by_count`: ten digits make 3, 4 and 3 classes.

    Args:
        counts (Tensor[K]): training images of each class.
    """
    ranked = ranking(counts)
    third = len(ranked) // 3
    cuts = (ranked[:third], ranked[third : len(ranked) - third], ranked[len(ranked) - third :])
    return dict(zip(GROUPS, cuts, strict=True))


def by_count(counts: Tensor) -> Groups:
    """Classes with more than 100, with 20 to 100 and with fewer than 20 training images.

    Args:
        counts (Tensor[K]): training images of each class.

    Source: Liu et al., "Large-scale long-tailed recognition in an open world" (CVPR 2019), section 5.1.
    """
    ranked = ranking(counts)
    many = [label for label in ranked if counts[label] > 100]
    few = [label for label in ranked if counts[label] < 20]
    medium = [label for label in ranked if 20 <= counts[label] <= 100]
    return dict(zip(GROUPS, (many, medium, few), strict=True))


def group_columns(accuracies: Tensor, groups: Groups) -> dict[str, float | None]:
    """The mean accuracy of all classes and of each group; None for a group without test images.

    Over classes and not over images, which is the same on a balanced test set.

    Args:
        accuracies (Tensor[K]): of each class; nan for one without test images.
        groups: the classes of each.
    """
    parts = {"All": accuracies} | {name: accuracies[labels] for name, labels in groups.items()}
    means = {name: part.nanmean().item() for name, part in parts.items()}
    return {name: None if math.isnan(mean) else mean for name, mean in means.items()}


def ranking(counts: Tensor) -> list[int]:
    """Classes from the most frequent to the rarest, equal ones by label."""
    ranked: list[int] = counts.argsort(descending=True, stable=True).tolist()
    return ranked
