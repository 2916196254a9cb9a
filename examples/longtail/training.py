"""One arm on one seed: training, and the accuracy of each class."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from longtail.data import Data
from longtail.losses import make_loss
from longtail.models import MakeFeatures, Recogniser, make_model

LEARNING_RATE = 0.1
MOMENTUM = 0.9
# That of the official long-tailed runs. What suits the small ConvNet, ten times as much, leaves the attention
# within 7 % of uniform.
BATCHFORMER_WEIGHT_DECAY = 5e-4
WARM_UP = 0.1  # of the steps
EVALUATIONS = 12  # of the curve, the last one after the last step


@dataclass(frozen=True)
class Recipe:
    """How to train, the same for every arm and seed."""

    make_features: MakeFeatures
    steps: int
    batch_size: int
    loss: str
    weight_decay: float
    device: torch.device


@dataclass
class Curve:
    """What was seen on the way: the step, the training loss since the last entry, the test accuracy in %."""

    step: list[int] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Run:
    """One arm on one seed, trained."""

    arm: str
    data: Data
    per_class: NDArray[np.float64]  # [K], accuracy in % on the test set; nan for a class it lacks
    curve: Curve
    model: Recogniser


def train(arm: str, data: Data, recipe: Recipe, advance: Callable[[], None] = lambda: None) -> Run:
    """The trained model of one arm, with its accuracy after the last step; nothing is chosen on the way.

    The loss of the curve is that of the original stream, which every arm has; what is minimised is the mean
    over both streams.

    Args:
        arm: one of the `ARMS`.
        data: of one seed; the model is drawn from the same seed.
        recipe: how to train.
        advance: called after every step.
    """
    model = make_model(recipe.make_features, len(data.counts), arm, data.seed).to(recipe.device)
    loss = make_loss(recipe.loss, data.counts.to(recipe.device))
    optimizer, schedule = make_optimizer(model, recipe)
    curve = Curve()
    evaluate_at = {math.ceil(recipe.steps * part / EVALUATIONS) for part in range(1, EVALUATIONS + 1)}
    seen: list[Tensor] = []
    for step, (x, y) in enumerate(data.train_batches(recipe.steps, recipe.batch_size), start=1):
        logits, labels = model(x, y)
        losses = loss(logits, labels)  # [2N], the first N of the original stream; [N] without BatchFormer
        optimizer.zero_grad()
        losses.mean().backward()
        optimizer.step()
        schedule.step()
        seen.append(losses.detach()[: len(x)].mean())
        if step in evaluate_at:
            per_class = accuracy_per_class(model, data)
            curve.step.append(step)
            curve.loss.append(torch.stack(seen).mean().item())
            curve.accuracy.append(float(np.nanmean(per_class)))
            seen.clear()
        advance()
    return Run(arm, data, per_class, curve, model.eval())


def make_optimizer(model: Recogniser, recipe: Recipe) -> tuple[torch.optim.Optimizer, LambdaLR]:
    """SGD over all parameters, and its schedule, to be stepped once a step."""
    shared = [*model.features.parameters(), *model.classifier.parameters()]
    groups: list[dict[str, Any]] = [{"params": shared, "weight_decay": recipe.weight_decay}]
    if model.batchformer is not None:
        between = list(model.batchformer.parameters())
        groups.append({"params": between, "weight_decay": BATCHFORMER_WEIGHT_DECAY})
    optimizer = torch.optim.SGD(
        groups,
        LEARNING_RATE,
        momentum=MOMENTUM,
        nesterov=True,
        fused=True,
    )
    return optimizer, LambdaLR(optimizer, lambda step: learning_rate_factor(step, recipe.steps))


def learning_rate_factor(step: int, steps: int) -> float:
    """Share of the learning rate at `step` (from 0): a linear warm-up to 1, then a cosine down to 0."""
    warm_up = math.ceil(WARM_UP * steps)
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up + 1) / (steps - warm_up + 1)))


def accuracy_per_class(model: Recogniser, data: Data) -> NDArray[np.float64]:
    """Accuracy `[K]` of each class in %, in evaluation; nan for a class without test images."""
    classes = len(data.counts)
    right, total = torch.zeros(classes), torch.zeros(classes)
    model.eval()
    with torch.no_grad():
        for x, y in data.test_batches():
            hits = model(x)[0].argmax(1) == y
            total += y.bincount(minlength=classes).cpu()
            right += y[hits].bincount(minlength=classes).cpu()
    model.train()
    return (100 * right / total).double().numpy()
