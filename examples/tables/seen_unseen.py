"""Accuracies on seen and on unseen classes, and the curve of both over a bias on the unseen ones."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Curve:
    """Accuracies in %, on images of seen and of unseen classes, at each bias that makes a difference.

    From a bias of -inf, where no image is assigned to an unseen class, to one of inf, where all are.
    """

    seen: Tensor  # [P], non-increasing
    unseen: Tensor  # [P], non-decreasing

    @property
    def area(self) -> float:
        """The area under the curve, in % of the area for a classifier without errors.

        The curve is a step function, except that it is slanted where images of both kinds change at one bias.
        """
        return torch.trapezoid(self.seen, self.unseen).item() / 100

    @property
    def harmonic_means(self) -> Tensor:
        """Harmonic means `[P]` of both accuracies, 0 where both are."""
        both = self.seen + self.unseen
        return torch.where(both > 0, 2 * self.seen * self.unseen / both, 0)


def curve(scores: Tensor, labels: Tensor, unseen: Tensor) -> Curve:
    """The curve over a bias that is added to the scores of unseen classes.

    An image changes from its best seen class to its best unseen one at one bias, the difference of the two
    scores: so one sort gives the whole curve, and no biases to try have to be chosen.

    Source: Chao et al., "An empirical study and analysis of generalized zero-shot learning for object
    recognition in the wild" (ECCV 2016).

    Args:
        scores (Tensor[N, K]): finite.
        labels (Tensor[N]): of seen and of unseen classes, some of each.
        unseen (Tensor[K]): whether a class is unseen.
    """
    scores = scores.double()
    best_seen, seen_class = scores.masked_fill(unseen, -torch.inf).max(1)
    best_unseen, unseen_class = scores.masked_fill(~unseen, -torch.inf).max(1)
    leads, place = (best_seen - best_unseen).unique(return_inverse=True)  # [P - 1], rising; [N]
    lost = _until(place[seen_class == labels], len(leads))
    won = _until(place[unseen_class == labels], len(leads))
    images = unseen[labels].sum()  # of unseen classes
    return Curve(100 * (lost[-1] - lost) / (len(labels) - images), 100 * won / images)


def _until(places: Tensor, count: int) -> Tensor:
    """How many there are `[count + 1]` at the places before each one, and in total."""
    return torch.cat([places.new_zeros(1), places.bincount(minlength=count).cumsum(0)])


def harmonic_mean(seen: float, unseen: float) -> float:
    """The harmonic mean of two accuracies, 0 if both are.

    Example:
        >>> harmonic_mean(60.0, 30.0)
        40.0
    """
    return 2 * seen * unseen / (seen + unseen) if seen + unseen > 0 else 0.0
