"""Optimizers and their schedule: a linear warm-up, then a cosine."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

WARM_UP = 0.1  # of the steps
BATCHFORMER_WEIGHT_DECAY = 5e-4  # that of the official long-tailed runs


class DivergenceError(ArithmeticError):
    """A training whose loss is no finite number."""


@dataclass(frozen=True)
class Recipe:
    """How long and how fast a network is trained."""

    steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "Recipe":
        """That of the settings of a run, which may have more than a recipe."""
        return cls(**{field.name: settings[field.name] for field in fields(cls)})


class Optimization:
    """An optimizer with its schedule; `step` does the whole of a training step after the loss is there.

    Args:
        model: what is trained, with the child `batchformer` if something is attached.
        steps: how many there will be.
        learning_rate: after the warm-up.
        weight_decay: of the model; BatchFormer has its own under SGD, as in the official runs.
        adam: AdamW, else SGD with Nesterov momentum.
    """

    def __init__(
        self, model: nn.Module, *, steps: int, learning_rate: float, weight_decay: float, adam: bool = False
    ) -> None:
        inside = {id(parameter) for name, parameter in model.named_parameters() if "batchformer." in name}
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        groups = [
            {"params": [p for p in trained if id(p) not in inside], "weight_decay": weight_decay},
            {
                "params": [p for p in trained if id(p) in inside],
                "weight_decay": weight_decay if adam else BATCHFORMER_WEIGHT_DECAY,
            },
        ]
        groups = [group for group in groups if group["params"]]
        if adam:
            self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(groups, learning_rate, fused=True)
        else:
            self.optimizer = torch.optim.SGD(groups, learning_rate, momentum=0.9, nesterov=True, fused=True)
        self._schedule = LambdaLR(self.optimizer, lambda step: learning_rate_factor(step, steps))

    def step(self, loss: torch.Tensor, clip: float | None = None) -> None:
        """Backward, the update, and the next learning rate; gradients clipped to the norm `clip` if given.

        Raises:
            DivergenceError: a loss that is no finite number; the metrics of such a run look like others.
        """
        if not loss.isfinite():
            step = self._schedule.last_epoch + 1
            raise DivergenceError(f"loss: expected a finite number, got {loss.item()} in step {step}")
        self.optimizer.zero_grad()
        loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(self._parameters(), clip)
        self.optimizer.step()
        self._schedule.step()

    def _parameters(self) -> Iterable[nn.Parameter]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]


def descend(
    model: nn.Module,
    losses: Iterable[torch.Tensor],
    recipe: Recipe,
    *,
    adam: bool = False,
    clip: float | None = None,
) -> None:
    """Train a model, and leave it in evaluation.

    Args:
        model: what is trained.
        losses: one a step, each computed when it is asked for, which is after the step before.
        recipe: how to train.
        adam: see `Optimization`.
        clip: the norm of the gradients, at most.
    """
    model.train()
    optimization = Optimization(
        model,
        steps=recipe.steps,
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        adam=adam,
    )
    for loss in losses:
        optimization.step(loss, clip)
    model.eval()


def learning_rate_factor(step: int, steps: int) -> float:
    """Share of the learning rate at `step` (from 0): a linear warm-up to 1, then a cosine down to 0."""
    warm_up = math.ceil(WARM_UP * steps)
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up + 1) / (steps - warm_up + 1)))
