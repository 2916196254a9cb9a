"""Long-tailed recognition: letters of which a few are frequent and most are rare."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from examples.tables.accuracy import accuracy_of_classes, mean_accuracy
from examples.tables.arms import ARMS, SOFTENED, insert
from examples.tables.calibration import best_multiple
from examples.tables.draws import generator
from examples.tables.letters import CLASSES, Images, Recipe, draw, fit, in_every_face, predict, random_faces
from examples.tables.network import ConvNet
from examples.tables.relating import attention, relative_entropy
from examples.tables.table import Job, Outcome, Table

IMBALANCE = {"Balanced Softmax, imbalance 100": 100, "Balanced Softmax, imbalance 50": 50}
RECIPE = Recipe(steps=600, batch_size=128, learning_rate=0.3, weight_decay=5e-4)
MULTIPLES = [step / 10 for step in range(-15, 16)]  # of the log prior


def settings(job: Job) -> Mapping[str, Any]:
    """All that decides the numbers of a run."""
    chosen = asdict(RECIPE) | {"most": 200, "imbalance": IMBALANCE[job.system], "tested": 2}
    if job.quick:
        chosen |= {"steps": 10, "most": 20, "tested": 1}
    if job.lengthened:
        chosen["steps"] *= 2
    return chosen | dict(job.changes)


def train(job: Job) -> Outcome:
    """One run."""
    chosen = settings(job)
    images, counts = long_tailed_letters(job.seed, chosen["most"], chosen["imbalance"])
    log_prior = (counts / counts.sum()).log()  # [K]

    torch.manual_seed(job.seed)
    model = ConvNet(CLASSES).to(memory_format=torch.channels_last)
    attachment = insert(model, job.arm, before="classifier")

    def balanced_softmax(logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits + log_prior, labels)

    fit(model, job.arm, attachment, balanced_softmax, images, Recipe.of(chosen), job.seed)

    test, validation = (
        in_every_face(torch.arange(CLASSES), chosen["tested"], generator(job.seed, purpose))
        for purpose in ("test", "validation")
    )
    logits = predict(model, test.x)
    multiple = best_multiple(predict(model, validation.x), validation.y, log_prior, MULTIPLES, mean_accuracy)
    metrics = columns(accuracy_of_classes(logits, test.y), counts)
    metrics["All, calibrated"] = mean_accuracy(logits + multiple * log_prior, test.y)
    heads = attention(attachment, test.x[:: len(test) // CLASSES])
    return Outcome(metrics, None if heads is None else relative_entropy(heads))


def long_tailed_letters(seed: int, most: int, imbalance: float) -> tuple[Images, Tensor]:
    """Training images, and how many there are of each class `[K]`; which class is rare is drawn."""
    draws = generator(seed, "split")
    profile = torch.tensor(class_sizes(most, imbalance, CLASSES))
    counts = profile[torch.randperm(CLASSES, generator=draws)]
    y = torch.arange(CLASSES).repeat_interleave(counts)
    return Images(draw(y, random_faces(len(y), draws), draws), y), counts


def class_sizes(most: int, imbalance: float, classes: int) -> list[int]:
    """Training images of each class, most frequent first: n_max * imbalance^(-rank / (K - 1)), at least 2.

    Source: Cui et al., "Class-balanced loss based on effective number of samples" (CVPR 2019), section 5.1.

    Example:
        >>> class_sizes(100, 100, 3)
        [100, 10, 2]
    """
    shares = (imbalance ** (-rank / (classes - 1)) for rank in range(classes))
    return [max(round(most * share), 2) for share in shares]


def columns(accuracies: Tensor, counts: Tensor) -> dict[str, float]:
    """All, Many, Medium and Few: thirds of the classes, by their number of training images."""
    ranked = accuracies[counts.argsort(descending=True, stable=True)]
    third = len(ranked) // 3
    parts = {"All": ranked, "Many": ranked[:third], "Medium": ranked[third:-third], "Few": ranked[-third:]}
    return {name: part.mean().item() for name, part in parts.items()}


TABLE = Table(
    name="long_tailed",
    title="Long-tailed recognition",
    systems=tuple(IMBALANCE),
    columns=("All", "Many", "Medium", "Few", "All, calibrated"),
    primary=("All", "All, calibrated"),
    arms=(*ARMS, SOFTENED),
    settings=settings,
    train=train,
    paper="",
    grid={"learning_rate": (0.1, 0.2, 0.3, 0.5), "weight_decay": (1e-4, 5e-4, 2e-3)},
)
