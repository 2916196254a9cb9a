"""The optimizers of the tables: which parameters, which learning rate, and losses that are not finite."""

import math

import pytest
import torch
from torch import nn

import batchformer as bf
from examples.tables.arms import ATTEND, insert
from examples.tables.optimization import (
    ADAMW,
    BATCHFORMER_WEIGHT_DECAY,
    CONSTANT,
    SGD,
    WARM_UP,
    DivergenceError,
    Optimization,
    Recipe,
    learning_rate_factor,
)


def attached(arm: str) -> tuple[nn.Module, bf.Attachment | None]:
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3))
    return model, insert(model, arm, before="1", nhead=2)


@pytest.mark.parametrize("optimizer", [SGD, ADAMW])
@pytest.mark.parametrize("arm", ["baseline", *ATTEND])
def test_every_parameter_is_in_the_optimizer_once(arm, optimizer):
    model, attachment = attached(arm)
    made = Optimization(model, Recipe(10, 2, 0.1, 0.01, optimizer))
    groups = made.optimizer.param_groups
    held = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(held) == sorted(map(id, model.parameters()))
    inside = {id(parameter) for parameter in attachment.parameters()} if attachment else set()
    for group in groups:
        decay = BATCHFORMER_WEIGHT_DECAY if id(group["params"][0]) in inside and optimizer == SGD else 0.01
        assert group["weight_decay"] == decay


def test_the_learning_rate_rises_and_falls_to_nearly_nothing():
    steps = 50
    factors = [learning_rate_factor(step, steps) for step in range(steps)]
    warm_up = math.ceil(WARM_UP * steps)
    assert factors[:warm_up] == pytest.approx([(step + 1) / warm_up for step in range(warm_up)])
    assert factors[warm_up:] == sorted(factors[warm_up:], reverse=True)
    assert 0 < factors[-1] < 0.01


def test_a_constant_schedule_stays_after_the_warm_up():
    factors = [learning_rate_factor(step, 50, CONSTANT) for step in range(50)]
    assert factors == [*(learning_rate_factor(step, 50) for step in range(5)), *[1.0] * 45]


def test_gradients_are_clipped_to_the_norm_of_the_recipe():
    model, _ = attached("baseline")
    made = Optimization(model, Recipe(8, 2, 0.1, 0.0, clip=0.5))
    made.step(1e3 * model(torch.randn(2, 4)).square().mean())
    assert nn.utils.get_total_norm([p.grad for p in model.parameters()]) == pytest.approx(0.5, rel=1e-4)


def test_the_schedule_is_stepped_at_every_step():
    model, _ = attached("baseline")
    made = Optimization(model, Recipe(8, 2, 0.1, 0.0))
    seen = []
    for _ in range(8):
        seen.append(made.optimizer.param_groups[0]["lr"])
        made.step(model(torch.randn(2, 4)).square().mean())
    assert seen == pytest.approx([0.1 * learning_rate_factor(step, 8) for step in range(8)])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_ends_the_run_before_the_update(value):
    model, _ = attached("baseline")
    made = Optimization(model, Recipe(8, 2, 0.1, 0.0))
    made.step(model(torch.randn(2, 4)).square().mean())
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(DivergenceError, match=f"got {value} in step 2"):
        made.step(model(torch.randn(2, 4)).sum() * value)
    assert all(map(torch.equal, before, model.parameters()))
