"""The long-tailed demo: paired arms, long-tailed digits, losses and the schedule."""

import itertools

import pytest
import torch
from longtail import groups, losses, training
from longtail.digits import LongTailedDigits, exponential_counts
from longtail.models import ARMS, BASELINE, CONTROL, WITH_BATCHFORMER, make_model, small_convnet

CPU = torch.device("cpu")

pytestmark = pytest.mark.usefixtures("one_thread")


def recipe(**changes: object) -> training.Recipe:
    fixed = {"make_features": small_convnet, "steps": 3, "batch_size": 16, "loss": "balanced-softmax"}
    return training.Recipe(**{**fixed, "weight_decay": 5e-3, "device": CPU, **changes})


def test_all_arms_of_a_seed_start_from_the_same_weights():
    models = {arm: make_model(small_convnet, 10, arm, seed=3).state_dict() for arm in ARMS}
    for arm in (WITH_BATCHFORMER, CONTROL):
        for name, weight in models[BASELINE].items():
            assert torch.equal(weight, models[arm][name]), (arm, name)
    for name, weight in models[WITH_BATCHFORMER].items():
        assert torch.equal(weight, models[CONTROL][name]), name
    other = make_model(small_convnet, 10, BASELINE, seed=4).state_dict()
    assert not torch.equal(other["classifier.weight"], models[BASELINE]["classifier.weight"])


def test_all_arms_of_a_seed_are_trained_on_the_same_batches(monkeypatch: pytest.MonkeyPatch):
    seen: dict[str, list[torch.Tensor]] = {}
    forward = training.Recogniser.forward

    def watched(model: training.Recogniser, x: torch.Tensor, y: torch.Tensor | None = None):
        if model.training:
            seen.setdefault(arm, []).extend([x.clone(), y.clone()])
        return forward(model, x, y)

    monkeypatch.setattr(training.Recogniser, "forward", watched)
    data = LongTailedDigits(50, 0, CPU)
    for arm in ARMS:
        training.train(arm, data, recipe())
    assert [len(tensors) for tensors in seen.values()] == [6, 6, 6]
    for batches in zip(*(seen[arm] for arm in ARMS), strict=True):
        assert torch.equal(batches[0], batches[1])
        assert torch.equal(batches[0], batches[2])
    assert not torch.equal(seen[BASELINE][0], seen[BASELINE][2])


def test_the_same_seed_trains_to_the_same_accuracies():
    first, second = (training.train(WITH_BATCHFORMER, LongTailedDigits(50, 0, CPU), recipe()) for _ in "ab")
    assert first.per_class.tolist() == second.per_class.tolist()
    assert first.curve == second.curve


@pytest.mark.parametrize("imbalance", [1, 10, 50, 1000])
def test_class_sizes_follow_the_formula(imbalance: float):
    expected = [max(2, round(124 * imbalance ** (-rank / 9))) for rank in range(10)]
    assert exponential_counts(124, imbalance, 10) == expected
    data = LongTailedDigits(imbalance, 0, CPU)
    assert sorted(data.counts.tolist(), reverse=True) == expected
    _, labels = next(data.test_batches())
    assert labels.bincount().tolist() == [50] * 10


def test_which_class_is_rare_depends_on_the_seed():
    assert len({int(LongTailedDigits(50, seed, CPU).counts.argmin()) for seed in range(8)}) > 1


def test_no_image_is_both_for_training_and_for_testing():
    data = LongTailedDigits(1, 0, CPU)
    train, test = (
        {bytes(image.numpy().tobytes()) for image in images} for images, _ in (data._train, data._test)
    )
    assert len(train) == 1240
    assert not train & test


def test_one_pass_over_the_batches_has_every_training_image_once():
    data = LongTailedDigits(50, 0, CPU)
    total = int(data.counts.sum())
    labels = torch.cat([y for _, y in data.train_batches(total, 1)])
    assert labels.bincount().tolist() == data.counts.tolist()


def test_thirds_and_counts_split_the_classes():
    assert groups.by_thirds(torch.tensor([5, 9, 7, 1, 3, 8, 2, 4, 6, 10])) == {
        "Many": [9, 1, 5],
        "Medium": [2, 8, 0, 7],
        "Few": [4, 6, 3],
    }
    assert groups.by_count(torch.tensor([100, 101, 19, 20])) == {"Many": [1], "Medium": [0, 3], "Few": [2]}


def test_balanced_softmax_is_cross_entropy_where_classes_are_equally_frequent():
    logits, labels = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    balanced = losses.make_loss("balanced-softmax", torch.full((4,), 7))(logits, labels)
    torch.testing.assert_close(balanced, losses.make_loss("cross-entropy", torch.ones(4))(logits, labels))


def test_balanced_softmax_has_the_value_computed_by_hand():
    loss = losses.make_loss("balanced-softmax", torch.tensor([3, 1]))
    # Equal logits leave the prior: -log(3/4) and -log(1/4).
    expected = -torch.tensor([0.75, 0.25]).log()
    torch.testing.assert_close(loss(torch.zeros(2, 2), torch.tensor([0, 1])), expected)


def test_a_class_without_training_images_does_not_break_balanced_softmax():
    logits = torch.randn(2, 3, requires_grad=True)
    losses.make_loss("balanced-softmax", torch.tensor([3, 0, 1]))(
        logits, torch.tensor([0, 2])
    ).sum().backward()
    assert logits.grad.isfinite().all()


def test_the_schedule_is_stepped_at_every_step(monkeypatch: pytest.MonkeyPatch):
    rates: list[float] = []
    make = training.make_optimizer

    def watched(model: torch.nn.Module, how: training.Recipe):
        optimizer, schedule = make(model, how)
        optimizer.register_step_pre_hook(lambda it, *_: rates.append(it.param_groups[0]["lr"]))
        return optimizer, schedule

    monkeypatch.setattr(training, "make_optimizer", watched)
    training.train(BASELINE, LongTailedDigits(50, 0, CPU), recipe(steps=20))
    assert rates[:2] == pytest.approx([training.LEARNING_RATE / 2, training.LEARNING_RATE])
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[1:]))
    assert rates[-1] < 0.02 * training.LEARNING_RATE


@pytest.mark.parametrize("arm", ARMS)
def test_every_parameter_is_in_the_optimizer_once(arm: str):
    model = make_model(small_convnet, 10, arm, seed=0)
    optimizer, _ = training.make_optimizer(model, recipe())
    trained = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(trained) == sorted(id(parameter) for parameter in model.parameters())
