"""Generalized few-shot recognition: the split, the two branches, and which images calibration may use."""

import math

import pytest
import torch

import batchformer as bf
from examples.tables import few_shot
from examples.tables.arms import BASELINE, BATCHFORMER
from examples.tables.letters import CLASSES
from examples.tables.network import WIDTH, ConvNet
from examples.tables.table import QUICK, Job

pytestmark = pytest.mark.usefixtures("one_thread")


def job(arm: str, seed: int = 0) -> Job:
    return Job(few_shot.SYSTEM, arm, seed, QUICK, changes=(("steps", 3),))


def test_novel_letters_have_one_image_and_all_others_many():
    images, novel = few_shot.few_shot_letters(seed=0, frequent=3, novel=1)
    counts = images.y.bincount(minlength=CLASSES)
    assert (len(counts), novel.sum()) == (106, 26)
    assert set(counts[novel].tolist()) == {1}
    assert set(counts[~novel].tolist()) == {3}


def test_a_seed_draws_which_letters_are_novel():
    novel = [few_shot.few_shot_letters(seed, frequent=1, novel=1)[1] for seed in (0, 0, 1)]
    assert torch.equal(novel[0], novel[1])
    assert not torch.equal(novel[0], novel[2])


def test_the_contrastive_loss_is_the_mean_over_anchors_that_have_positives():
    embeddings = torch.nn.functional.normalize(torch.randn(9, 5, dtype=torch.float64), dim=1)
    labels = [0, 1, 0, 2, 1, 0, 3, 3, 4]  # 2 and 4 occur once
    terms = []
    for i, label in enumerate(labels):
        others = [j for j in range(9) if j != i]
        similar = {
            j: math.exp(embeddings[i].dot(embeddings[j]).item() / few_shot.TEMPERATURE) for j in others
        }
        positives = [j for j in others if labels[j] == label]
        if positives:
            shares = [math.log(similar[j] / sum(similar.values())) for j in positives]
            terms.append(-sum(shares) / len(positives))
    assert len(terms) == 7
    loss = few_shot.supervised_contrastive(embeddings, torch.tensor(labels))
    assert loss.item() == pytest.approx(sum(terms) / len(terms))


def test_a_batch_without_positives_has_no_contrastive_loss_and_a_gradient_of_zeros():
    embeddings = torch.randn(4, 5, requires_grad=True)
    loss = few_shot.supervised_contrastive(embeddings, torch.arange(4))
    loss.backward()
    assert loss == 0
    assert torch.equal(embeddings.grad, torch.zeros(4, 5))


def test_both_branches_see_both_streams_in_training_and_the_logits_are_alone_in_evaluation():
    model = ConvNet(CLASSES)
    model.classifier = few_shot.Branches(CLASSES)
    bf.attach(model, before="classifier")
    x = torch.rand(4, 1, 24, 24)
    embeddings, logits = model(x)
    assert (embeddings.shape, logits.shape) == ((8, 32), (8, CLASSES))
    assert torch.allclose(embeddings.norm(dim=1), torch.ones(8))
    assert model.eval()(x).shape == (4, CLASSES)


def test_unseen_and_seen_are_means_over_letters_each_told_from_all():
    novel = torch.tensor([False, True, False, True])
    labels = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    taken_for = torch.tensor([0, 1, 1, 1, 2, 2, 0, 3])
    columns = few_shot.columns(torch.eye(4)[taken_for], labels, novel)
    assert columns == {"Unseen": 75.0, "Seen": 75.0, "Harmonic mean": 75.0}
    nothing = few_shot.columns(torch.eye(4)[torch.zeros(8, dtype=torch.int64)], labels, novel)
    assert nothing == {"Unseen": 0.0, "Seen": 50.0, "Harmonic mean": 0.0}


@pytest.mark.parametrize("arm", few_shot.TABLE.arms)
def test_every_arm_gives_every_column(arm: str):
    outcome = few_shot.train(job(arm))
    assert tuple(outcome.metrics) == few_shot.TABLE.columns
    assert all(0 <= value <= 100 for value in outcome.metrics.values())
    assert (outcome.entropy is None) == (arm in (BASELINE, "alone", "softened"))


def test_one_seed_gives_the_same_numbers_every_time():
    assert few_shot.train(job(BATCHFORMER, seed=3)) == few_shot.train(job(BATCHFORMER, seed=3))


def test_calibration_looks_at_validation_images_alone(monkeypatch: pytest.MonkeyPatch):
    looked_at, predicted = [], []

    def best_multiple(logits, labels, direction, multiples, score):
        looked_at.append(logits)
        assert direction.bool().sum() == 26
        return 1000.0

    def predict(model, x):
        predicted.append((x, torch.rand(len(x), CLASSES)))
        return predicted[-1][1]

    monkeypatch.setattr(few_shot, "best_multiple", best_multiple)
    monkeypatch.setattr(few_shot, "predict", predict)
    metrics = few_shot.train(job(BASELINE)).metrics
    (validation, of_validation), (test, _) = predicted
    assert looked_at[0] is of_validation
    assert not torch.equal(validation, test)
    assert metrics["Seen"] > 0  # by chance
    assert metrics["Seen, calibrated"] == 0  # all are classified as novel


def test_features_have_the_width_that_the_branches_take():
    assert few_shot.Branches(5).eval()(torch.rand(2, WIDTH)).shape == (2, 5)
