"""What a trained module relates: the attention of one batch, and how far it is from even."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

import batchformer as bf
from examples.tables.arms import ALONE, BATCHFORMER
from examples.tables.table import Job


def related(
    attachment: bf.Attachment | None,
    inputs: Any,
    job: Job,
    labels: list[int] | list[str] | None = None,
    position: int | None = None,
) -> dict[str, Any]:
    """What an outcome keeps of the attention of a batch, by its fields; empty where nothing is related.

    Args:
        attachment: of the trained model, None for an arm without.
        inputs: what the model takes, for N samples.
        job: the run; of one run of a table the matrix is kept, too.
        labels: the class of each sample, without which there is no matrix.
        position: of a token, as `bf.relations` has it.
    """
    if attachment is None or job.arm == ALONE:  # in which a sample attends to no other
        return {}
    heads = bf.relations(attachment, inputs, position=position)
    found: dict[str, Any] = {"entropy": relative_entropy(heads)}
    if labels is not None and job.arm == BATCHFORMER and job.seed == 0:
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
