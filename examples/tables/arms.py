"""The arms of every table: the baseline, BatchFormer, and controls that separate relations from noise.

- "uniform": a sample attends equally to all (`attend="uniform"`). What BatchFormer gains over this comes from
  choosing which samples to attend to.
- "alone": a sample attends to itself (`attend="alone"`). It relates no samples, but its noise differs, too:
  dropout on its one key drops or doubles the whole value of a head, where dropout on N keys averages out.
- "softened": no layer at all. The second stream is the features under dropout, and its labels are softened
  towards the batch's mean.
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

SOFTENING = 0.1  # the weight of the batch's mean in the softened labels
FEATURE_DROPOUT = 0.5  # that of BatchFormer

Criterion = Callable[..., Tensor]


def insert(model: nn.Module, arm: str, *arguments: Any, **options: Any) -> bf.Attachment | None:
    """The attachment of an arm that has one, else None; `arguments` and `options` are those of `bf.attach`.

    To be called after the model is initialised, so that all arms of a seed start from the same weights.
    """
    if arm not in ATTEND:
        return None
    return bf.attach(model, *arguments, attend=ATTEND[arm], **options)


def wrap(attachment: bf.Attachment | None, criterion: Criterion, **options: Any) -> Criterion:
    """The criterion over both streams, or the criterion itself if there is no attachment."""
    return criterion if attachment is None else attachment.wrap(criterion, **options)


def softened(features: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Features `[2N, C]` and probabilities of labels `[2N, K]` of the arm "softened".

    The first half is features `[N, C]` and labels `[N]` as they are.
    """
    hard = F.one_hot(labels, classes).to(features)  # [N, K]
    soft = hard.lerp(hard.mean(0, keepdim=True).expand_as(hard), SOFTENING)
    return torch.cat([features, F.dropout(features, FEATURE_DROPOUT)]), torch.cat([hard, soft])
