"""What a trained module relates: the attention of one batch, and how far it is from even."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

import batchformer as bf


def attention(attachment: bf.Attachment | None, inputs: Any) -> NDArray[np.floating[Any]] | None:
    """Attention `[heads, N, N]` of a batch at the first place, None without an attachment."""
    return None if attachment is None else bf.relations(attachment, inputs)


def relative_entropy(heads: NDArray[np.floating[Any]]) -> float:
    """Entropy of the attention `[heads, N, N]` over that of even attention, log N; the mean of all rows.

    Example:
        >>> relative_entropy(np.full((4, 8, 8), 1 / 8))
        1.0
    """
    heads = heads.astype(np.float64)
    terms = np.where(heads > 0, heads * np.log(np.where(heads > 0, heads, 1)), 0)
    return float(-terms.sum(-1).mean() / math.log(heads.shape[-1]))
