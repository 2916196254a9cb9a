"""The contrastive table: both systems, their streams, their views and the probes."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightly.utils.benchmarking.knn import knn_predict
from sklearn.datasets import load_digits

from examples.tables import contrastive, moco, probes
from examples.tables.arms import ALONE, ARMS, BASELINE, BATCHFORMER, insert
from examples.tables.draws import generator
from examples.tables.letters import predict
from examples.tables.table import QUICK, Job

pytestmark = pytest.mark.usefixtures("one_thread")

BOTH = pytest.mark.parametrize("system", contrastive.SYSTEMS)


def made(system: str, arm: str = BASELINE) -> tuple[moco.MoCo, object]:
    chosen = contrastive.settings(Job(system, arm, 0, QUICK))
    torch.manual_seed(0)
    kind = contrastive.SYSTEMS[system]
    model = kind(**{name: chosen[name] for name in kind.options})
    return model, insert(model, arm, before=list(model.places), optional=list(model.places))


def views(count: int = 8) -> torch.Tensor:
    return torch.randn(2, count, 1, 24, 24, generator=torch.Generator().manual_seed(1))


@BOTH
@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_of_both_systems_runs_and_gives_both_metrics(system, arm):
    outcome = contrastive.train(Job(system, arm, 0, QUICK))
    assert tuple(outcome.metrics) == contrastive.TABLE.columns
    assert all(0 <= value <= 100 for value in outcome.metrics.values())
    assert (outcome.entropy is None) == (arm in (BASELINE, ALONE))
    if arm == "uniform":
        assert outcome.entropy == pytest.approx(1)


@BOTH
def test_the_same_seed_gives_the_same_numbers_and_another_gives_others(system):
    same, again, other = (contrastive.train(Job(system, BATCHFORMER, seed, QUICK)) for seed in (3, 3, 4))
    assert same == again
    assert same.metrics != other.metrics


@BOTH
def test_all_arms_start_from_the_same_weights(system):
    stock = made(system)[0].state_dict()
    for arm in ARMS[1:]:
        model, _ = made(system, arm)
        for name, weight in stock.items():
            assert torch.equal(weight, model.state_dict()[name]), (arm, name)


def test_views_are_the_same_for_all_arms_and_differ_between_the_two():
    images = contrastive.unlabelled(40, generator(0, "unlabelled"))
    first, again = (list(contrastive.pairs(images, 3, 16, seed=0)) for _ in "ab")
    for (one, other), (same_one, same_other) in zip(first, again, strict=True):
        assert torch.equal(one, same_one)
        assert torch.equal(other, same_other)
        assert one.shape == other.shape == (16, 1, 24, 24)
        assert not torch.equal(one, other)
    other_seed = next(contrastive.pairs(images, 1, 16, seed=1))[0]
    assert not torch.equal(first[0][0], other_seed)


def test_two_views_are_nearer_to_each_other_than_to_those_of_other_images():
    images = contrastive.unlabelled(64, generator(0, "unlabelled"))
    one, other = (
        F.normalize(x.flatten(1) - x.flatten(1).mean(1, keepdim=True))
        for x in next(contrastive.pairs(images, 1, 64, seed=0))
    )
    similarity = one @ other.T
    own = similarity.diagonal().mean()
    others = (similarity.sum() - similarity.trace()) / (64 * 63)
    assert own > others + 0.1


@BOTH
def test_the_loss_is_the_mean_over_the_four_pairings_of_the_streams(system):
    model, attachment = made(system, BATCHFORMER)
    plain = copy.deepcopy(model.criterion)
    attachment.wrap(model.criterion, targets=[])
    model.train()
    first, second = views()
    torch.manual_seed(7)  # of the dropout
    loss = model.loss(first, second)

    torch.manual_seed(7)
    ways = [(first, second)] if system == "MoCo v2" else [(first, second), (second, first)]
    expected = torch.zeros(())
    for asking, asked in ways:
        queries, keys = model(asking).chunk(2), model(asked, keys=True).chunk(2)
        bank = copy.deepcopy(plain)  # all four see the same queue
        losses = []
        for query in queries:
            for key in keys:
                losses.append(copy.deepcopy(bank)(query, key))
        expected = expected + sum(losses) / 4
    torch.testing.assert_close(loss, expected)


def test_the_originals_keys_alone_enter_the_queue():
    model, attachment = made("MoCo v2", BATCHFORMER)
    attachment.wrap(model.criterion, targets=[])
    bank = model.criterion.memory_bank
    before = bank.bank.clone()
    first, second = views()
    model.loss(first, second).backward()
    attachment.eval()
    keys = model(second, keys=True)
    assert int(bank.bank_ptr) == len(second)
    torch.testing.assert_close(bank.bank[: len(second)], F.normalize(keys))
    assert torch.equal(bank.bank[len(second) :], before[len(second) :])


@BOTH
def test_gradients_reach_the_module_but_no_encoder_of_keys(system):
    model, attachment = made(system, BATCHFORMER)
    attachment.wrap(model.criterion, targets=[])
    model.loss(*views()).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == ("of_keys" in name), name
    assert all(parameter.grad.any() for parameter in attachment.parameters() if parameter.dim() > 1)


@BOTH
def test_the_encoder_of_keys_follows_by_a_moving_average(system):
    model, _ = made(system)
    with torch.no_grad():
        for parameter in (*model.backbone.parameters(), *model.projector.parameters()):
            parameter.add_(1)
    leaders = [*model.backbone.parameters(), *model.projector.parameters()]
    followers = [*model.backbone_of_keys.parameters(), *model.projector_of_keys.parameters()]
    before = [parameter.clone() for parameter in followers]
    momentum = model.momentum_at(0.25)
    model.move_keys(0.25)
    for old, new, leader in zip(before, followers, leaders, strict=True):
        torch.testing.assert_close(new, momentum * old + (1 - momentum) * leader)


def test_the_momentum_of_moco_v3_rises_to_one_by_a_cosine():
    model, _ = made("MoCo v3")
    for progress in (0.0, 0.25, 0.5, 1.0):
        expected = 1 - (1 - model.momentum) * (1 + math.cos(math.pi * progress)) / 2
        assert model.momentum_at(progress) == pytest.approx(expected, abs=1e-4)
    assert made("MoCo v2")[0].momentum_at(0.7) == model.momentum


def test_the_loss_of_moco_v3_agrees_with_a_value_by_hand():
    queries = torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    keys = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    # Similarities [[1, 1], [0, 0]]: each row has two equal logits, a loss of log 2.
    assert moco.InBatch(0.25)(queries, keys).item() == pytest.approx(0.5 * math.log(2))
    right = moco.InBatch(0.25)(torch.eye(2), torch.eye(2)).item()
    assert right == pytest.approx(0.5 * math.log(1 + math.exp(-4)), rel=1e-4)  # in float32


def test_features_are_those_of_the_backbone_and_probing_changes_nothing():
    model, _ = made("MoCo v2", BATCHFORMER)
    before = copy.deepcopy(model.state_dict())
    x = views(4)[0]
    features = predict(model.backbone, x)
    torch.testing.assert_close(features, model.backbone.eval()(x))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.fixture(scope="module")
def digits() -> tuple[torch.Tensor, ...]:
    x, y = load_digits(return_X_y=True)
    x, y = torch.from_numpy(x).float(), torch.from_numpy(y).long()
    return x[:400], x[400:700], y[:400], y[400:700]


def test_the_vote_of_neighbours_agrees_with_that_of_lightly(digits):
    features, test, labels, test_labels = digits
    bank = F.normalize(features).T.contiguous()
    ranked = knn_predict(F.normalize(test), bank, labels, 10, probes.NEIGHBOURS, probes.TEMPERATURE)
    expected = 100 * (ranked[:, 0] == test_labels).double().mean().item()
    assert probes.neighbour_accuracy(features, test, labels, test_labels) == pytest.approx(expected)
    assert 80 < expected < 100


def test_the_linear_probe_tells_digits_apart_and_shuffled_labels_not(digits):
    features, test, labels, test_labels = digits
    assert probes.linear_accuracy(features, test, labels, test_labels) > 80
    shuffled = labels[torch.from_numpy(np.random.default_rng(0).permutation(len(labels)))]
    assert probes.linear_accuracy(features, test, shuffled, test_labels) < 25


def test_twice_the_steps_is_what_a_lengthened_run_has():
    job = Job("MoCo v2", BASELINE, 0)
    longer = contrastive.settings(Job("MoCo v2", BASELINE, 0, lengthened=True))
    assert longer == {**contrastive.settings(job), "steps": 2 * contrastive.settings(job)["steps"]}
