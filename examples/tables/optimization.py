"""How networks are trained: optimizer, learning rate over the steps, clipping."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

SGD, ADAMW = "SGD", "AdamW"  # SGD with Nesterov momentum
COSINE, CONSTANT = "cosine", "constant"  # after a linear warm-up
WARM_UP = 0.1  # of the steps
BATCHFORMER_WEIGHT_DECAY = 5e-4  # as in the official long-tailed runs


class DivergenceError(ArithmeticError):
    """Raised when the loss of a training is not finite."""


@dataclass(frozen=True)
class Recipe:
    """How a network is trained."""

    steps: int
    batch_size: int
    learning_rate: float  # after the warm-up
    weight_decay: float  # of the model; BatchFormer has its own under SGD, as in the official runs
    optimizer: str = SGD
    schedule: str = COSINE
    clip: float | None = None  # the largest norm of the gradients

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "Recipe":
        """The recipe in the settings of a run, which may have other entries, too."""
        names = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in settings.items() if name in names})


class Optimization:
    """An optimizer with its schedule; `step` does all of a training step after the loss.

    Args:
        model: what is trained, with the child `batchformer` if something is attached.
        recipe: how to train.
    """

    def __init__(self, model: nn.Module, recipe: Recipe) -> None:
        inside = {id(parameter) for name, parameter in model.named_parameters() if "batchformer." in name}
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        of_module = BATCHFORMER_WEIGHT_DECAY if recipe.optimizer == SGD else recipe.weight_decay
        groups = [
            {
                "params": [p for p in self._parameters if id(p) not in inside],
                "weight_decay": recipe.weight_decay,
            },
            {"params": [p for p in self._parameters if id(p) in inside], "weight_decay": of_module},
        ]
        groups = [group for group in groups if group["params"]]
        options: dict[str, Any] = {"momentum": 0.9, "nesterov": True} if recipe.optimizer == SGD else {}
        make = getattr(torch.optim, recipe.optimizer)
        self.optimizer: torch.optim.Optimizer = make(groups, recipe.learning_rate, fused=True, **options)
        self._schedule = LambdaLR(
            self.optimizer, lambda step: learning_rate_factor(step, recipe.steps, recipe.schedule)
        )
        self._clip = recipe.clip

    def step(self, loss: torch.Tensor) -> None:
        """Backward, the update, and the next learning rate.

        Raises:
            DivergenceError: the loss is not finite; the metrics of such a run would look like any others.
        """
        if not loss.isfinite():
            step = self._schedule.last_epoch + 1
            raise DivergenceError(f"loss: expected a finite number, got {loss.item()} in step {step}")
        self.optimizer.zero_grad()
        loss.backward()
        if self._clip is not None:
            nn.utils.clip_grad_norm_(self._parameters, self._clip)
        self.optimizer.step()
        self._schedule.step()


def descend(model: nn.Module, losses: Iterable[torch.Tensor], recipe: Recipe) -> None:
    """Train a model where it is, and leave it in evaluation, on the CPU.

    Args:
        model: what is trained.
        losses: one for each step, computed when it is requested, which is after the step before.
        recipe: how to train.
    """
    model.train()
    optimization = Optimization(model, recipe)
    for loss in losses:
        optimization.step(loss)
    model.eval().cpu()


def device_of(model: nn.Module) -> torch.device:
    """Where the weights of a model are."""
    return next(model.parameters()).device


def learning_rate_factor(step: int, steps: int, schedule: str = COSINE) -> float:
    """Factor of the learning rate at `step` (from 0): linear warm-up to 1, then a cosine down to 0, or 1."""
    warm_up = math.ceil(WARM_UP * steps)
    if step < warm_up:
        return (step + 1) / warm_up
    if schedule == CONSTANT:
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up + 1) / (steps - warm_up + 1)))
