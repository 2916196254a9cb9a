"""The curve over the bias on unseen classes, compared with one that tries every bias separately."""

import itertools

import pytest
import torch
from sklearn.metrics import auc
from torch import Tensor

from examples.tables.seen_unseen import curve, harmonic_mean


def plainly(scores: Tensor, labels: Tensor, unseen: Tensor) -> tuple[list[float], list[float], float]:
    """Accuracies on seen and on unseen classes at a bias between any two leads, and the area under them."""
    rows, truth, is_unseen = scores.tolist(), labels.tolist(), unseen.tolist()
    leads = set()
    for row in rows:
        of_seen = max(score for score, new in zip(row, is_unseen, strict=True) if not new)
        of_unseen = max(score for score, new in zip(row, is_unseen, strict=True) if new)
        leads.add(of_seen - of_unseen)
    rising = sorted(leads)
    between = [(low + high) / 2 for low, high in itertools.pairwise(rising)]
    right_of_seen, right_of_unseen = [], []
    for bias in [rising[0] - 1, *between, rising[-1] + 1]:
        right: dict[bool, list[bool]] = {False: [], True: []}
        for row, label in zip(rows, truth, strict=True):
            biased = [score + bias if new else score for score, new in zip(row, is_unseen, strict=True)]
            right[is_unseen[label]].append(biased.index(max(biased)) == label)
        right_of_seen.append(100 * sum(right[False]) / len(right[False]))
        right_of_unseen.append(100 * sum(right[True]) / len(right[True]))
    area = 0.0
    for i in range(1, len(right_of_seen)):
        wide = right_of_unseen[i] - right_of_unseen[i - 1]
        area += wide * (right_of_seen[i] + right_of_seen[i - 1]) / 2
    return right_of_seen, right_of_unseen, area / 100


def drawn(images: int, classes: int, share: float, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    draws = torch.Generator().manual_seed(seed)
    unseen = torch.rand(classes, generator=draws) < share
    unseen[0], unseen[1] = False, True
    labels = torch.randint(classes, (images,), generator=draws)
    labels[0], labels[1] = 0, 1
    scores = torch.randn(images, classes, generator=draws)
    scores[torch.arange(images), labels] += 1.5
    return scores, labels, unseen


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("images", "classes", "share"), [(2, 2, 0.5), (60, 7, 0.3), (90, 30, 0.7)])
def test_the_curve_is_that_of_every_bias_tried_by_itself(images: int, classes: int, share: float, seed: int):
    scores, labels, unseen = drawn(images, classes, share, seed)
    seen, of_unseen, area = plainly(scores.double(), labels, unseen)
    found = curve(scores, labels, unseen)
    assert found.seen.tolist() == pytest.approx(seen)
    assert found.unseen.tolist() == pytest.approx(of_unseen)
    assert found.area == pytest.approx(area)
    assert found.area == pytest.approx(auc(found.unseen, found.seen) / 100)
    assert found.harmonic_means.tolist() == pytest.approx(
        [harmonic_mean(*both) for both in zip(seen, of_unseen, strict=True)]
    )


def test_images_that_go_over_at_one_bias_do_so_together():
    unseen = torch.tensor([False, False, True, True])
    base = torch.stack(
        [torch.randperm(4) for _ in range(40)]
    ).float()  # few leads, many images, no ties within
    labels = torch.arange(40) % 4
    seen, of_unseen, area = plainly(base, labels, unseen)
    found = curve(base, labels, unseen)
    assert len(found.seen) < 10
    assert found.seen.tolist() == pytest.approx(seen)
    assert found.unseen.tolist() == pytest.approx(of_unseen)
    assert found.area == pytest.approx(area)


def test_a_bias_that_is_in_the_scores_already_changes_nothing():
    scores, labels, unseen = drawn(80, 12, 0.4, seed=9)
    plain, biased = (
        curve(scores.double(), labels, unseen),
        curve(scores.double() + 2 * unseen, labels, unseen),
    )
    assert torch.equal(plain.seen, biased.seen)
    assert torch.equal(plain.unseen, biased.unseen)


def test_a_classifier_without_errors_has_all_of_the_area_and_one_of_errors_alone_none():
    labels = torch.arange(6)
    unseen = torch.tensor([False, False, False, True, True, True])
    perfect, reversed_ = torch.eye(6), -torch.eye(6)
    assert curve(perfect, labels, unseen).area == 100
    assert curve(perfect, labels, unseen).harmonic_means.max() == 100
    assert curve(reversed_, labels, unseen).area == 0
    assert curve(reversed_, labels, unseen).harmonic_means.max() == 0


def test_the_ends_of_the_curve_are_accuracies_among_the_classes_of_one_kind():
    scores, labels, unseen = drawn(300, 20, 0.5, seed=4)
    found = curve(scores, labels, unseen)
    for accuracies, kind, other_end in ((found.seen, ~unseen, -1), (found.unseen, unseen, 0)):
        images = kind[labels]
        among = scores[images].masked_fill(~kind, -torch.inf).argmax(1)
        assert accuracies.max().item() == pytest.approx(
            100 * (among == labels[images]).double().mean().item()
        )
        assert accuracies[other_end] == 0
