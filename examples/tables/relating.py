"""What a trained module relates: the attention of one batch, and how far it is from even."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

import batchformer as bf
from examples.tables.arms import BATCHFORMER
from examples.tables.table import Job


def attention(attachment: bf.Attachment | None, inputs: Any) -> NDArray[np.floating[Any]] | None:
    """Attention `[heads, N, N]` of a batch at the first place, None without an attachment."""
    return None if attachment is None else bf.relations(attachment, inputs)


def seen(
    attachment: bf.Attachment | None, inputs: Any, labels: list[int] | list[str], job: Job
) -> dict[str, Any]:
    """What an outcome keeps of the attention of a batch, by its fields; the matrix of one run alone.

    Args:
        attachment: of the trained model, None for an arm without.
        inputs: what the model takes, for N samples.
        labels: the class of each sample.
        job: the run.
    """
    heads = attention(attachment, inputs)
    if heads is None:
        return {}
    found: dict[str, Any] = {"entropy": relative_entropy(heads)}
    if job.arm == BATCHFORMER and job.seed == 0:
        found |= {"relations": heads.mean(0).tolist(), "labels": labels}
    return found


def relative_entropy(heads: NDArray[np.floating[Any]]) -> float:
    """Entropy of the attention `[heads, N, N]` over that of even attention, log N; the mean of all rows.

    Example:
        >>> relative_entropy(np.full((4, 8, 8), 1 / 8))
        1.0
    """
    heads = heads.astype(np.float64)
    terms = np.where(heads > 0, heads * np.log(np.where(heads > 0, heads, 1)), 0)
    return float(-terms.sum(-1).mean() / math.log(heads.shape[-1]))
