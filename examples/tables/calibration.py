"""Calibrated metrics: an improvement that a shift of some logits also gives is no better recognition."""

from collections.abc import Callable, Sequence

from torch import Tensor

Score = Callable[[Tensor, Tensor], float]


def best_multiple(
    logits: Tensor, labels: Tensor, direction: Tensor, multiples: Sequence[float], score: Score
) -> float:
    """The multiple of `direction` `[K]` whose sum with the logits scores best; the smallest of equals.

    To be chosen on validation images, never on those of the test.

    Args:
        logits (Tensor[N, K]): of the validation images.
        labels (Tensor[N]): of the same images.
        direction (Tensor[K]): for example the log prior of each class.
        multiples: the multiples that are tried.
        score: of logits and labels; higher is better.
    """
    tried = sorted(multiples, key=abs)
    return max(tried, key=lambda multiple: score(logits + multiple * direction, labels))
