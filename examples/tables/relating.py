"""The attention of a module in one batch, trained and untrained, and how far it is from uniform."""

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
    """The fields of an outcome about the attention of a batch; empty where nothing is related.

    Args:
        attachment: that of the trained model, None for an arm without one.
        inputs: those of the model, for N samples.
        job: the run; for one run of a table the matrix is kept, too.
        labels: the class of each sample, without which there is no matrix.
        position: that of a token, as in `bf.relations`.
    """
    if attachment is None or job.arm == ALONE:  # where no sample attends to another
        return {}
    heads = bf.relations(attachment, inputs, position=position)
    found: dict[str, Any] = {"entropy": relative_entropy(heads)}
    if labels is not None and _is_shown(job):
        found |= {"relations": heads.mean(0).tolist(), "labels": labels}
    return found


def untrained(attachment: bf.Attachment | None, inputs: Any, job: Job) -> dict[str, Any]:
    """The field of an outcome about the attention of the batch before training; empty but for one run.

    The model stays as it is, and so do torch's random numbers.
    """
    if attachment is None or not _is_shown(job):
        return {}
    return {"untrained_relations": bf.relations(attachment, inputs).mean(0).tolist()}


def _is_shown(job: Job) -> bool:
    return job.arm == BATCHFORMER and job.seed == 0


def relative_entropy(heads: NDArray[np.floating[Any]]) -> float:
    """Entropy of the attention `[heads, N, N]` over that of uniform attention, log N; the mean of all rows.

    Example:
        >>> relative_entropy(np.full((4, 8, 8), 1 / 8))
        1.0
    """
    heads = heads.astype(np.float64)
    terms = np.where(heads > 0, heads * np.log(np.where(heads > 0, heads, 1)), 0)
    return float(-terms.sum(-1).mean() / math.log(heads.shape[-1]))
