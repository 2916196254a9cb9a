"""The long-tailed table: its class sizes, its losses compared with plain ones, and its columns."""

import math

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import recall_score

from examples.tables import long_tailed
from examples.tables.accuracy import accuracy_of_classes, mean_accuracy
from examples.tables.arms import BASELINE, BATCHFORMER, UNIFORM
from examples.tables.draws import generator
from examples.tables.long_tailed import TABLE, train
from examples.tables.long_tailed.data import class_sizes, long_tailed_letters
from examples.tables.long_tailed.groups import by_count, by_thirds, group_columns
from examples.tables.long_tailed.measuring import Predicted, calibrated_accuracy
from examples.tables.long_tailed.systems import (
    DIVERSITY,
    SAMPLES,
    TEMPERATURE,
    Experts,
    PaCo,
    balanced_softmax,
    of_experts,
    parametric_contrast,
)
from examples.tables.table import QUICK, Job

COUNTS = torch.tensor([8.0, 3.0, 1.0])
LOG_PRIOR = (COUNTS / COUNTS.sum()).log()


@pytest.mark.parametrize("imbalance", [1, 10, 100])
def test_class_sizes_follow_the_formula(imbalance):
    sizes = class_sizes(200, imbalance, 106)
    assert sizes[0] == 200
    assert sizes[-1] == round(200 / imbalance)
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[53] == round(200 * imbalance ** (-53 / 105))


def test_the_imbalance_of_each_system_is_what_it_says():
    for system in TABLE.systems:
        chosen = TABLE.settings(Job(system, BASELINE, 0))
        _, counts = long_tailed_letters(0, chosen["most"], chosen["imbalance"])
        assert counts.max() / counts.min() == chosen["imbalance"] == (50 if "50" in system else 100)


def test_which_letter_is_rare_depends_on_the_seed_alone():
    (images, counts), (again, same), (_, others) = (long_tailed_letters(seed, 20, 10) for seed in (0, 0, 1))
    assert torch.equal(counts, same)
    assert torch.equal(images.x, again.x)
    assert torch.equal(counts.sort()[0], others.sort()[0])
    assert not torch.equal(counts, others)
    assert torch.equal(images.y.bincount(), counts)


def test_balanced_softmax_has_the_value_computed_by_hand():
    logits = torch.tensor([[0.0, 1.0, 2.0]])
    weights = [math.exp(0) * 8, math.exp(1) * 3, math.exp(2) * 1]
    loss = balanced_softmax(LOG_PRIOR)(logits, torch.tensor([2]))
    assert loss.item() == pytest.approx(-math.log(weights[2] / sum(weights)), rel=1e-6)


def test_a_class_without_training_images_does_not_break_balanced_softmax():
    log_prior = torch.tensor([0.5, 0.0, 0.5]).log()
    assert torch.isfinite(balanced_softmax(log_prior)(torch.randn(4, 3), torch.tensor([0, 2, 0, 2])))


def test_the_loss_of_the_experts_is_that_of_each_less_its_distance_to_their_mean():
    logits, labels = torch.randn(5, 3, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1])
    expected = 0.0
    shifted = [[row + LOG_PRIOR for row in sample] for sample in logits]
    for sample, label in zip(shifted, labels, strict=True):
        mean = torch.stack(sample).mean(0).softmax(0)
        for row in sample:
            distance = sum(mean[k] * (mean[k].log() - row.log_softmax(0)[k]) for k in range(3))
            expected += (F.cross_entropy(row[None], label[None]) - DIVERSITY * distance) / len(labels)
    assert torch.allclose(of_experts(LOG_PRIOR)(logits, labels), expected)


def test_the_contrast_of_paco_is_that_of_a_plain_loop():
    draws = generator(0, "contrast")
    logits, queries, keys, queue = (
        torch.randn(size, generator=draws, dtype=torch.float64) for size in ((4, 3), (4, 6), (4, 6), (5, 6))
    )
    labels, queue_labels = torch.tensor([0, 1, 0, 2]), torch.tensor([0, 2, -1, 1, 0])
    every, every_label = torch.cat([keys, queue]), [*labels.tolist(), *queue_labels.tolist()]
    losses = []
    for i, label in enumerate(labels.tolist()):
        scores = [logits[i, k] + LOG_PRIOR[k] for k in range(3)]
        scores += [F.cosine_similarity(queries[i], key, dim=0) / TEMPERATURE for key in every]
        weights = [float(k == label) for k in range(3)] + [
            SAMPLES * (other == label) for other in every_label
        ]
        total = torch.stack(scores).logsumexp(0)
        positive = sum(weight * (score - total) for weight, score in zip(weights, scores, strict=True))
        losses.append(-positive / sum(weights))
    value = parametric_contrast(LOG_PRIOR)(logits, queries, keys, labels, queue, queue_labels)
    assert torch.allclose(value, torch.stack(losses).mean())


def test_the_experts_have_one_trunk_and_their_mean_in_evaluation():
    model = Experts(7)
    x = torch.rand(4, 1, 24, 24)
    assert model(x).shape == (4, 3, 7)
    model.eval()
    features = model.trunk(x)
    each = [c(e(features)) for e, c in zip(model.experts, model.classifiers, strict=True)]
    assert torch.allclose(model(x), sum(each) / 3, atol=1e-6)
    assert len({id(expert) for expert in model.experts}) == 3


def test_the_second_encoder_of_paco_follows_the_first():
    model = PaCo(7)
    first, second = next(model.features.parameters()), next(model.key_features.parameters())
    before = second.clone()
    with torch.no_grad():
        first += 1
    model.follow()
    assert torch.allclose(second, before + 0.01, atol=1e-6)
    assert not second.requires_grad


def test_thirds_and_counts_split_the_classes():
    counts = torch.tensor([150, 5, 60, 101, 20, 19, 100])
    assert by_thirds(counts) == {"Many": [0, 3], "Medium": [6, 2, 4], "Few": [5, 1]}
    assert by_count(counts) == {"Many": [0, 3], "Medium": [6, 2, 4], "Few": [5, 1]}


def test_columns_are_means_over_classes_and_none_without_any():
    accuracies = torch.tensor([90.0, math.nan, 50.0, 10.0])
    found = group_columns(accuracies, {"Many": [0, 1], "Medium": [2, 3], "Few": []})
    assert found == {"All": 50.0, "Many": 90.0, "Medium": 30.0, "Few": None}


@pytest.mark.parametrize("seed", range(5))
def test_accuracies_of_classes_are_those_of_scikit_learn(seed):
    draws = torch.Generator().manual_seed(seed)
    logits = torch.randn(200, 12, generator=draws)
    labels = torch.randint(11, (200,), generator=draws)  # the last class has no image
    logits[torch.arange(200), labels] += 1
    guesses = logits.argmax(1)
    recalls = recall_score(labels, guesses, labels=range(12), average=None, zero_division=math.nan)
    assert accuracy_of_classes(logits, labels).tolist() == pytest.approx(100 * recalls, nan_ok=True)
    mean = recall_score(labels, guesses, labels=range(11), average="macro")
    assert mean_accuracy(logits, labels) == pytest.approx(100 * mean)


@pytest.mark.parametrize("without_images", [0, 1])
def test_the_multiple_of_the_log_prior_is_that_of_the_validation_images(without_images):
    def biased(*margins: float) -> torch.Tensor:
        """Logits of two classes with these margins for the first, plus the log prior; unlikely others."""
        first = torch.tensor(margins) + math.log(9)
        others = torch.full((len(margins), without_images), -50.0)
        return torch.cat([first[:, None], torch.zeros(len(margins), 1), others], 1)

    counts = torch.tensor([9, 1] + [0] * without_images)
    validation = Predicted(
        biased(1, -1), torch.tensor([0, 1])
    )  # all right with a multiple of -0.6, not with -0.5
    test = Predicted(biased(1, -0.85, -1), torch.tensor([0, 1, 1]))  # -0.85 + 0.4 * log(9) > 0: wrong
    assert calibrated_accuracy(test, validation, counts) == 75
    assert calibrated_accuracy(validation, test, counts) == 100  # with -0.7


@pytest.mark.parametrize(
    ("system", "arm"), [(system, arm) for system in TABLE.systems for arm in TABLE.arms_of(system)]
)
def test_every_arm_of_every_system_is_trained_and_measured(system, arm):
    outcome = train(Job(system, arm, 0, QUICK))
    assert tuple(outcome.metrics) == TABLE.columns
    assert all(0 <= value <= 100 for value in outcome.metrics.values())
    assert (outcome.entropy is None) == (arm not in (BATCHFORMER, UNIFORM))
    assert outcome.entropy is None or 0.9 < outcome.entropy <= 1 + 1e-6
    for relations in (outcome.untrained_relations, outcome.relations):
        assert (relations is None) == (arm != BATCHFORMER)
        if arm == BATCHFORMER:
            assert torch.allclose(torch.tensor(relations).sum(1), torch.ones(len(outcome.labels)), atol=1e-5)
    assert arm != BATCHFORMER or outcome.untrained_relations != outcome.relations


def test_all_arms_of_a_seed_start_from_the_same_weights_and_see_the_same_images(monkeypatch):
    weights, seen = {}, {}
    fit = long_tailed.fit

    def watched(model, arm, attachment, criterion, images, recipe, seed):
        weights[arm] = {
            name: weight.clone() for name, weight in model.state_dict().items() if "batchformer" not in name
        }
        seen[arm] = []
        model.features.register_forward_pre_hook(
            lambda module, inputs: seen[arm].append(inputs[0].clone()) if module.training else None
        )
        fit(model, arm, attachment, criterion, images, recipe, seed)

    monkeypatch.setattr(long_tailed, "fit", watched)
    for arm in TABLE.arms:
        train(Job(TABLE.systems[0], arm, 3, QUICK))
    for arm in TABLE.arms[1:]:
        assert weights[arm].keys() == weights[BASELINE].keys()
        assert all(torch.equal(weight, weights[BASELINE][name]) for name, weight in weights[arm].items())
        assert all(map(torch.equal, seen[BASELINE], seen[arm]))
    assert [len(of_arm) for of_arm in seen.values()] == [6] * len(TABLE.arms)
    assert not torch.equal(seen[BASELINE][0], seen[BASELINE][1])


def test_two_runs_of_a_job_give_the_same_numbers():
    job = Job(TABLE.systems[0], "BatchFormer", 3, QUICK)
    first, second = train(job), train(job)
    assert first.metrics == second.metrics
    assert first.entropy == second.entropy
