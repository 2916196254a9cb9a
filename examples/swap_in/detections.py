"""What the DETR family has in common: a random batch, and its trials in stock code and in transformers."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from trial import Trial

import batchformer as bf


def images(samples: int = 3, size: int = 64) -> list[Tensor]:
    """`samples` images, the last one narrower than the others, so that there is padding."""
    return [torch.randn(3, size, size - (16 if i == samples - 1 else 0)) for i in range(samples)]


def targets(samples: int = 3, size: int = 64, *, labels: str = "labels") -> list[dict[str, Tensor]]:
    """Two boxes an image (cx, cy, w, h in 0..1), with masks; image 1 has none."""
    found = []
    for i in range(samples):
        boxes = 0 if i == 1 else 2
        found.append(
            {
                labels: torch.randint(1, 5, (boxes,)),
                "boxes": 0.25 + 0.2 * torch.rand(boxes, 4),
                "masks": torch.rand(boxes, size, size) > 0.5,
            }
        )
    return found


def stock_trial(name: str, preset: str, built: Any, nested: Callable[[list[Tensor]], Any]) -> Trial:
    """Of (model, criterion, ...) as build_model() of a checkout gives them, and its NestedTensors."""
    model, criterion, *_ = built
    batch, labels = nested(images()), targets()

    def loss(model: nn.Module, criterion: Any) -> Tensor:
        """What engine.py of the checkout does with a batch."""
        criterion.train()
        losses = criterion(model(batch), labels)
        weights = criterion.weight_dict
        return sum(losses[name] * weights[name] for name in losses if name in weights)

    return Trial(
        name=name,
        model=model,
        attach=lambda model: bf.attach(model, preset),
        criterion=criterion,
        loss=loss,
        evaluate=lambda model: model(batch)["pred_logits"],
    )


def transformers_trial(name: str, model: nn.Module) -> Trial:
    """Of a model of transformers, which takes the labels and computes the loss inside."""
    pixel_values, labels = torch.randn(3, 3, 64, 64), targets(labels="class_labels")
    mask = torch.ones(3, 64, 64, dtype=torch.long)
    mask[2, :, 48:] = 0  # padding
    return Trial(
        name=f"transformers {name}",
        model=model,
        attach=bf.attach,
        loss=lambda model, _: model(pixel_values=pixel_values, pixel_mask=mask, labels=labels).loss,
        evaluate=lambda model: model(pixel_values=pixel_values, pixel_mask=mask).logits,
    )
