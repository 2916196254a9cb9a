"""Cross-entropy and Balanced Softmax, one value a sample."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]

LOSSES = ("balanced-softmax", "cross-entropy")


def make_loss(name: str, counts: Tensor) -> Loss:
    """A function of logits `[N, K]` and labels `[N]` that returns the loss of each sample, `[N]`.

    Args:
        name: one of `LOSSES`.
        counts (Tensor[K]): training images of each class, on the device of the logits.
    """
    if name == "cross-entropy":
        return cross_entropy
    log_prior = (
        counts / counts.sum()
    ).log()  # [K]; -inf for a class without images, which then takes no part
    return lambda logits, labels: balanced_softmax(logits, labels, log_prior)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy `[N]` of logits `[N, K]` and labels `[N]`."""
    return F.cross_entropy(logits, labels, reduction="none")


def balanced_softmax(logits: Tensor, labels: Tensor, log_prior: Tensor) -> Tensor:
    """Cross-entropy `[N]` of logits `[N, K]` shifted by the log of the class prior `[K]`; labels are `[N]`.

    In training only: what is left in the logits is what does not follow from how frequent a class is.

    Source: Ren et al., "Balanced meta-softmax for long-tailed visual recognition" (NeurIPS 2020), equation 4.
    """
    return cross_entropy(logits + log_prior, labels)
