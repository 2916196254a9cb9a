"""The arms of every table: the baseline, BatchFormer, and controls that tell relating from noise.

- "uniform": a sample attends to all alike (`attend="uniform"`). What BatchFormer does beyond it, it does by
  choosing whom a sample attends to.
- "alone": a sample attends to itself (`attend="alone"`). It relates nothing, but its noise is another:
  dropout on its one key drops a head's value whole or doubles it, where that on N keys averages out.
- "softened": no layer at all. The second stream is the features under dropout, and its labels go a little of
  the way to the mean of the batch's.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import batchformer as bf

BASELINE = "baseline"
BATCHFORMER = "BatchFormer"
UNIFORM = "uniform"
ALONE = "alone"
SOFTENED = "softened"

ARMS = (BASELINE, BATCHFORMER, UNIFORM, ALONE)
ATTEND = {BATCHFORMER: "batch", UNIFORM: "uniform", ALONE: "alone"}

SOFTENING = 0.1  # how far labels go to the batch's mean
FEATURE_DROPOUT = 0.5  # that of BatchFormer

Criterion = Callable[..., Tensor]


def insert(model: nn.Module, arm: str, *arguments: Any, **options: Any) -> bf.Attachment | None:
    """The attachment of an arm that has one, else None; `arguments` and `options` are those of `bf.attach`.

    To be called when the model is drawn, so that all arms of a seed start from the same weights.
    """
    if arm not in ATTEND:
        return None
    return bf.attach(model, *arguments, attend=ATTEND[arm], **options)


def wrap(attachment: bf.Attachment | None, criterion: Criterion, **options: Any) -> Criterion:
    """The criterion over both streams, or as it is without an attachment."""
    return criterion if attachment is None else attachment.wrap(criterion, **options)


def softened(features: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Features `[2N, C]` and probabilities of labels `[2N, K]` of the arm "softened".

    The first half is features `[N, C]` and labels `[N]` as they are.
    """
    hard = F.one_hot(labels, classes).to(features)  # [N, K]
    soft = hard.lerp(hard.mean(0, keepdim=True).expand_as(hard), SOFTENING)
    return torch.cat([features, F.dropout(features, FEATURE_DROPOUT)]), torch.cat([hard, soft])
