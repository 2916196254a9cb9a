"""COCO's average precisions, with limits of sizes that fit the scenes."""

from collections.abc import Sequence

from pycocotools.cocoeval import COCOeval
from torch import Tensor
from torchmetrics.detection import MeanAveragePrecision
from torchmetrics.detection.helpers import CocoBackend

# Limits of the area of small and of large boxes, in pixels; a third of the letters of the scenes each. COCO's
# own, 32^2 and 96^2, are for photographs: nearly all letters would be small.
SMALL, LARGE = 18**2, 23**2
NAMES = {
    "AP": "map",
    "AP50": "map_50",
    "AP75": "map_75",
    "APS": "map_small",
    "APM": "map_medium",
    "APL": "map_large",
}
Boxes = Sequence[dict[str, Tensor]]


def average_precision(
    predictions: Boxes, targets: Boxes, small: float = SMALL, large: float = LARGE
) -> dict[str, float | None]:
    """AP, AP50, AP75, APS, APM and APL, in %; None where the targets have no box of that size.

    Args:
        predictions: for each image, boxes `[K, 4]` by their edges in pixels, scores `[K]` and labels `[K]`.
        targets: for each image, boxes and labels.
        small: boxes of an area up to this count for APS.
        large: boxes of an area from this on count for APL.
    """
    metric = MeanAveragePrecision(iou_type="bbox", backend="pycocotools")
    metric._coco_backend = _Backend(small, large)  # torchmetrics has no argument for the limits
    metric.update(predictions, targets)
    values = {
        name: metric_value.item() for name, metric_value in metric.compute().items() if name in NAMES.values()
    }
    return {name: None if values[key] < 0 else 100 * values[key] for name, key in NAMES.items()}


class _Backend(CocoBackend):
    """pycocotools with other limits."""

    def __init__(self, small: float, large: float) -> None:
        super().__init__("pycocotools")
        self._limits = small, large

    @property
    def cocoeval(self) -> object:
        small, large = self._limits

        def evaluation(*arguments: object, **options: object) -> COCOeval:
            made = COCOeval(*arguments, **options)
            most = made.params.areaRng[0][1]
            made.params.areaRng = [
                [0, most],
                [0, small],
                [small, large],
                [large, most],
            ]  # in the order of areaRngLbl
            return made

        return evaluation
