"""Average precision: values computed by hand, a plain second implementation, and limits of sizes."""

import pytest
import torch
from torch import Tensor
from torchmetrics.detection import MeanAveragePrecision
from torchvision.ops import box_iou

from examples.tables.average_precision import NAMES, average_precision

RECALLS = torch.linspace(0, 1, 101, dtype=torch.float64)


def random_scenes(count: int = 30) -> tuple[list[dict[str, Tensor]], list[dict[str, Tensor]]]:
    """Predictions near the boxes, some with another label, and one more without a box; and the targets."""
    predictions, targets = [], []
    for _ in range(count):
        found = int(torch.randint(1, 4, ()))
        corners = 40 * torch.rand(found, 2)
        boxes = torch.cat([corners, corners + 4 + 36 * torch.rand(found, 2)], 1)
        labels = torch.randint(3, (found,))
        wrong = torch.rand(found) < 0.3
        shifted = boxes + 2 * torch.randn(found, 4)
        shifted[:, 2:] = torch.maximum(shifted[:, 2:], shifted[:, :2] + 1)
        made_up = torch.tensor([[5.0, 5.0, 25.0, 25.0]])
        predictions.append(
            {
                "boxes": torch.cat([shifted, made_up]),
                "labels": torch.cat([torch.where(wrong, (labels + 1) % 3, labels), torch.randint(3, (1,))]),
                "scores": torch.rand(found + 1),
            }
        )
        targets.append({"boxes": boxes, "labels": labels})
    return predictions, targets


def plain_average_precision(predictions, targets, threshold: float) -> float:
    """The mean over all classes, in %: the best precision from each of 101 recalls on, as COCO defines it."""
    values = []
    for label in range(3):
        hits, scores, count = [], [], 0
        for prediction, target in zip(predictions, targets, strict=True):
            boxes = target["boxes"][target["labels"] == label]
            count += len(boxes)
            mine = prediction["labels"] == label
            order = prediction["scores"][mine].argsort(descending=True)
            left = set(range(len(boxes)))
            for box, score in zip(
                prediction["boxes"][mine][order], prediction["scores"][mine][order], strict=True
            ):
                overlaps = box_iou(box[None].double(), boxes.double())[0]
                best = max(left, key=lambda index: overlaps[index], default=None)
                hit = best is not None and bool(overlaps[best] >= threshold)
                left -= {best} if hit else set()
                hits.append(hit)
                scores.append(score)
        right = (
            torch.tensor(hits)[torch.stack(scores).argsort(descending=True, stable=True)].double().cumsum(0)
        )
        recall, precision = right / count, right / torch.arange(1, len(right) + 1)
        best_from = precision.flip(0).cummax(0).values.flip(0)
        values.append(
            torch.stack(
                [
                    best_from[recall >= each - 1e-12].max()
                    if (recall >= each - 1e-12).any()
                    else torch.tensor(0.0).double()
                    for each in RECALLS
                ]
            ).mean()
        )
    return 100 * torch.stack(values).mean().item()


def test_it_agrees_with_a_plain_implementation_on_random_boxes():
    predictions, targets = random_scenes()
    measured = average_precision(predictions, targets)
    for name, threshold in {"AP50": 0.5, "AP75": 0.75}.items():
        assert measured[name] == pytest.approx(
            plain_average_precision(predictions, targets, threshold), abs=1e-3
        )
    thresholds = [0.5 + 0.05 * step for step in range(10)]
    mean = sum(plain_average_precision(predictions, targets, each) for each in thresholds) / len(thresholds)
    assert measured["AP"] == pytest.approx(mean, abs=1e-3)


def test_sizes_are_those_of_coco_in_images_three_times_as_wide():
    predictions, targets = random_scenes()
    measured = average_precision(predictions, targets, small=(32 / 3) ** 2, large=(96 / 3) ** 2)
    metric = MeanAveragePrecision(backend="pycocotools")
    metric.update(
        *([each | {"boxes": 3 * each["boxes"]} for each in part] for part in (predictions, targets))
    )
    expected = metric.compute()
    for name, key in NAMES.items():
        assert expected[key] > 0, name
        assert measured[name] == pytest.approx(100 * expected[key].item(), abs=1e-3), name


def test_values_by_hand():
    one = {"boxes": torch.tensor([[0.0, 0.0, 10.0, 10.0]]), "labels": torch.tensor([0])}
    other = {"boxes": torch.tensor([[0.0, 0.0, 30.0, 30.0]]), "labels": torch.tensor([0])}
    scored = {"scores": torch.tensor([0.9])}
    everything = average_precision([one | scored, other | scored], [one, other])
    assert everything == pytest.approx(
        dict.fromkeys(("AP", "AP50", "AP75", "APS", "APL"), 100.0) | {"APM": None}
    )
    # The larger one is off by a fifth: an overlap of 0.8 counts up to that threshold, 7 of 10.
    shorter = {"boxes": torch.tensor([[0.0, 0.0, 30.0, 24.1]]), "labels": torch.tensor([0])}
    assert average_precision([shorter | scored], [other])["AP"] == pytest.approx(70.0)
    # One of two is found: precision 1 at the recalls from 0 to 0.5.
    nothing = {key: value[:0] for key, value in (one | scored).items()}
    assert average_precision([nothing, other | scored], [one, other])["AP50"] == pytest.approx(100 * 51 / 101)
