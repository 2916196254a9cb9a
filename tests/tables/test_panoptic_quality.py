"""Panoptic quality: values computed by hand, and panopticapi's formula on random segments."""

import pytest
import torch
from torch import Tensor

from examples.tables.panoptic_quality import VOID, panoptic_quality

THINGS, STUFF = (1, 2, 3), (4, 5)


def segments(image: Tensor) -> dict[tuple[int, int], Tensor]:
    """The mask of each segment; stuff has one of each class."""
    image = image.clone()
    image[..., 1][torch.isin(image[..., 0], torch.tensor(STUFF))] = 0
    names = {(int(label), int(number)) for label, number in image.flatten(0, 1)}
    return {name: (image == torch.tensor(name)).all(-1) for name in names if name[0] != VOID}


def plain_panoptic_quality(predictions: Tensor, targets: Tensor, classes: tuple[int, ...]) -> list[float]:
    """PQ, SQ and RQ in %, means over the classes: equation 1 of Kirillov et al., no void in the targets."""
    rows = []
    for label in classes:
        overlap, hits, wrong, missed = 0.0, 0, 0, 0
        for prediction, target in zip(predictions, targets, strict=True):
            ours, theirs = (
                [mask for name, mask in segments(image).items() if name[0] == label]
                for image in (prediction, target)
            )
            pairs = [((one & two).sum() / (one | two).sum()).item() for one in ours for two in theirs]
            matched = [pair for pair in pairs if pair > 0.5]
            overlap += sum(matched)
            hits += len(matched)
            wrong += len(ours) - len(matched)
            missed += len(theirs) - len(matched)
        if hits + wrong + missed:
            found = hits / (hits + 0.5 * wrong + 0.5 * missed)
            cut = overlap / hits if hits else 0.0
            rows.append([100 * cut * found, 100 * cut, 100 * found])
    return torch.tensor(rows).mean(0).tolist()


def random_images(count: int = 12) -> tuple[Tensor, Tensor]:
    """Targets of strips, and predictions that move their borders, change classes and leave some void."""
    targets = torch.zeros(count, 8, 40, 2, dtype=torch.int64)
    for image in targets:
        for number, left in enumerate(range(0, 40, 8)):
            image[:, left : left + 8, 0] = int(torch.randint(1, 6, ()))
            image[:, left : left + 8, 1] = number
    predictions = targets.roll(1, dims=2)
    predictions[torch.rand(count) < 0.3, :, :8, 0] = 2
    predictions[torch.rand(count) < 0.5, :, 16:22] = 0  # most of a segment
    predictions[torch.rand(count) < 0.5, 3:6, 30:33] = 0  # some of it
    return predictions, targets


def test_it_agrees_with_the_formula_of_panopticapi_also_where_void_is_predicted():
    predictions, targets = random_images()
    measured = panoptic_quality(predictions, targets, THINGS, STUFF)
    for part, classes in {"": THINGS + STUFF, " things": THINGS, " stuff": STUFF}.items():
        expected = plain_panoptic_quality(predictions, targets, classes)
        assert [measured[name + part] for name in ("PQ", "SQ", "RQ")] == pytest.approx(expected, abs=1e-3), (
            part
        )


def test_values_by_hand():
    target = torch.tensor([[[[1, 0]] * 4 + [[4, 0]] * 4]])  # [1, 1, 8, 2]
    assert set(panoptic_quality(target, target, THINGS, STUFF).values()) == {100.0}
    longer = torch.tensor([[[[1, 7]] * 5 + [[4, 9]] * 3]])  # overlap 4 / 5 for the thing, 3 / 4 for the stuff
    measured = panoptic_quality(longer, target, THINGS, STUFF)
    assert measured["SQ things"] == measured["PQ things"] == pytest.approx(80.0)
    assert measured["SQ stuff"] == measured["PQ stuff"] == pytest.approx(75.0)
    assert measured["PQ"] == pytest.approx(77.5)
    assert measured["RQ"] == 100.0


def test_who_predicts_nothing_has_missed_everything():
    target = torch.tensor([[[[1, 0]] * 4 + [[4, 0]] * 4]])
    assert set(panoptic_quality(torch.zeros_like(target), target, THINGS, STUFF).values()) == {0.0}
    measured = panoptic_quality(target[..., :4, :], target[..., :4, :], THINGS, STUFF)
    assert measured["PQ"] == 100.0
    assert measured["PQ stuff"] is None
