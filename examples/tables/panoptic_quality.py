"""Panoptic quality and its two factors: how well segments are outlined, and how many are found."""

from collections.abc import Collection

import torch
from torch import Tensor
from torchmetrics.detection import PanopticQuality

VOID = 0  # the class of pixels where nothing is predicted


def panoptic_quality(
    predictions: Tensor, targets: Tensor, things: Collection[int], stuff: Collection[int]
) -> dict[str, float | None]:
    """PQ, SQ and RQ in %, of all classes, of things ("PQ things") and of stuff; None where no class counts.

    The means are over the classes that have a segment in the predictions or the targets, as in panopticapi.
    torchmetrics removes pixels that are predicted void from the union, and does not count a target that is
    mostly predicted void as missed; panopticapi does so only for void in the targets. So void is one more
    class for torchmetrics here, and is left out of the means.

    Args:
        predictions (Tensor[N, H, W, 2]): the class of each pixel, and the number of its segment; class 0
            where nothing is predicted.
        targets (Tensor[N, H, W, 2]): the same, without void.
        things: classes with instances.
        stuff: classes without.

    Source: Kirillov et al., "Panoptic Segmentation" (CVPR 2019), section 4.
    """
    metric = PanopticQuality(
        things=things, stuffs={VOID, *stuff}, return_sq_and_rq=True, return_per_class=True
    )
    metric.update(predictions, targets)
    # Things first, then stuff, which begins with void; each in the order of their numbers.
    values = metric.compute().view(-1, 3)  # [K, 3]
    seen = metric.true_positives + metric.false_positives + metric.false_negatives > 0
    classes = torch.arange(len(values))
    void = classes == len(things)
    parts = {"": ~void, " things": classes < len(things), " stuff": classes > len(things)}
    return {
        name + part: 100 * values[chosen & seen, column].mean().item() if (chosen & seen).any() else None
        for part, chosen in parts.items()
        for column, name in enumerate(("PQ", "SQ", "RQ"))
    }
