"""Accuracy of each class, in %."""

import torch
from torch import Tensor


def accuracy_of_classes(logits: Tensor, labels: Tensor) -> Tensor:
    """Accuracy `[K]` of each class in %, of logits `[N, K]` and labels `[N]`; nan where there is no image."""
    classes = logits.shape[1]
    right = labels[logits.argmax(1) == labels].bincount(minlength=classes)
    return 100 * right.double() / labels.bincount(minlength=classes)


def mean_accuracy(logits: Tensor, labels: Tensor) -> float:
    """The mean over the classes that have images, in %."""
    return torch.nanmean(accuracy_of_classes(logits, labels)).item()
