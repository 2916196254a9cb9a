"""Accuracy on seen classes beside that on unseen ones, and the curve of both over a bias on the unseen."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Curve:
    """Accuracies in %, on images of seen and of unseen classes, at each bias that makes a difference.

    From the bias of -inf, where no image is taken for one of an unseen class, to that of inf, where all are.
    """

    seen: Tensor  # [P], falling from the best
    unseen: Tensor  # [P], rising to the best

    @property
    def area(self) -> float:
        """The area under the curve, in % of that of a classifier without errors.

        Steps are taken as they are; only where images of both kinds change at one bias is the curve slanted.
        """
        return torch.trapezoid(self.seen, self.unseen).item() / 100

    @property
    def harmonic_means(self) -> Tensor:
        """Harmonic means `[P]` of both accuracies, 0 where both are."""
        both = self.seen + self.unseen
        return torch.where(both > 0, 2 * self.seen * self.unseen / both, 0)


def curve(scores: Tensor, labels: Tensor, unseen: Tensor) -> Curve:
    """The curve over a bias that is added to the scores of unseen classes.

    An image goes over from its best seen class to its best unseen one at one bias, the lead of the former: so
    one sort gives the whole curve, with no choice of the biases to try.

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
    """How many there are `[count + 1]` at the places before each one, and at all."""
    return torch.cat([places.new_zeros(1), places.bincount(minlength=count).cumsum(0)])


def harmonic_mean(seen: float, unseen: float) -> float:
    """The harmonic mean of two accuracies, 0 if both are.

    Example:
        >>> harmonic_mean(60.0, 30.0)
        40.0
    """
    return 2 * seen * unseen / (seen + unseen) if seen + unseen > 0 else 0.0
