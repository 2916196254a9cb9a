"""The long-tailed table on other images: scikit-learn's digits, or your own, named by lists."""

import functools
import hashlib
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from examples.tables.accuracy import accuracy_of_classes
from examples.tables.arms import insert, wrap
from examples.tables.long_tailed.digits import LongTailedDigits
from examples.tables.long_tailed.groups import COLUMNS, Groups, group_columns
from examples.tables.long_tailed.image_lists import read_lists
from examples.tables.long_tailed.images import ListedImages, Loading
from examples.tables.long_tailed.measuring import (
    CALIBRATED,
    CALIBRATED_COLUMNS,
    Predicted,
    calibrated_accuracy,
)
from examples.tables.long_tailed.systems import balanced_softmax
from examples.tables.optimization import Recipe, descend
from examples.tables.relating import related
from examples.tables.table import Job, Outcome, Table

ARCHITECTURES = ("resnet18", "resnet50")
LOSSES = ("balanced-softmax", "cross-entropy")
LEARNING_RATE = 0.1
RELATED = 128  # images of the batch whose attention is measured


class Data(Protocol):
    """The images of one seed. Each call of a method starts its random draws anew."""

    counts: Tensor  # [K], training images of each class
    groups: Groups  # the classes called Many, Medium and Few

    def train_batches(self, steps: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Images `[N, C, H, W]` and labels `[N]`, augmented, one pair a step; the same at every call."""
        ...

    def test_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Images `[N, C, H, W]` and labels `[N]` of the whole test set."""
        ...

    def validation_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The same of the validation set; only of a source that has one."""
        ...


@dataclass(frozen=True)
class Digits:
    """scikit-learn's handwritten digits, made long-tailed."""

    imbalance: float = 50.0  # training images of the most frequent class over those of the rarest

    @property
    def validated(self) -> bool:
        """Whether there are validation images."""
        return True

    def data(self, seed: int) -> Data:
        """The images of a seed."""
        return LongTailedDigits(self.imbalance, seed)

    def model(self, classes: int) -> nn.Module:
        """A ConvNet from digits `[N, 1, 8, 8]` to logits; BatchFormer goes in before "fc"."""
        channels = (1, 16, 32, 64)
        blocks: list[nn.Module] = []
        for block, (narrow, wide) in enumerate(itertools.pairwise(channels)):
            blocks += [nn.Conv2d(narrow, wide, 3, padding=1, bias=False), nn.BatchNorm2d(wide), nn.ReLU()]
            if block < 2:
                blocks.append(nn.MaxPool2d(2))  # 8 -> 4 -> 2 pixels
        network = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        network.add_module("fc", nn.Linear(channels[-1], classes))
        return network


@dataclass(frozen=True)
class Listed:
    """Images named by lists, and the torchvision ResNet that learns them."""

    root: Path  # the folder that the paths in the lists are relative to
    train_list: Path
    test_list: Path
    architecture: str = "resnet18"
    image_size: int = 224  # pixels
    workers: int = 0  # processes that load images
    validation_list: Path | None = None

    @property
    def validated(self) -> bool:
        """Whether there are validation images."""
        return self.validation_list is not None

    def data(self, seed: int) -> Data:
        """The images of a seed.

        Raises:
            ListError: see `read_lists`.
        """
        lists = _read(self.root, self.train_list, self.test_list, self.validation_list)
        return ListedImages(lists, Loading(self.image_size, 128, self.workers), seed)

    def model(self, classes: int) -> nn.Module:
        """The ResNet, not pretrained; BatchFormer goes in before "fc"."""
        import torchvision

        return torchvision.models.get_model(self.architecture, weights=None, num_classes=classes)


_read = functools.cache(read_lists)


@dataclass(frozen=True)
class Training:
    """How the networks are trained."""

    steps: int = 600
    batch_size: int = 128
    loss: str = LOSSES[0]
    # Chosen for the baseline on digits, on seeds 100 to 103, with 124 images of the most
    # frequent one; that of the official runs is 5e-4.
    weight_decay: float = 5e-3


def table_of(source: Digits | Listed, training: Training) -> Table:
    """The table of a source, as the program of the tables takes it."""
    name = "digits" if isinstance(source, Digits) else "own_images"
    return Table(
        name=name,
        title="Long-tailed recognition, " + name.replace("_", " "),
        systems=(training.loss,),
        columns=CALIBRATED_COLUMNS if source.validated else COLUMNS,
        primary=("All", CALIBRATED) if source.validated else ("All",),
        settings=functools.partial(_settings, source, training),
        train=functools.partial(_train, source, training),
        paper="",
    )


def _settings(source: Digits | Listed, training: Training, job: Job) -> Mapping[str, Any]:
    chosen = asdict(training) | {name: str(value) for name, value in asdict(source).items()}
    chosen.pop("workers", None)  # they change no result
    if isinstance(source, Listed):  # a list may be edited between two runs
        for name in ("train_list", "test_list", "validation_list"):
            if path := getattr(source, name):
                chosen[name] = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    return job.adapted(chosen, quick={"steps": min(20, training.steps)})


def _train(source: Digits | Listed, training: Training, job: Job) -> Outcome:
    chosen = _settings(source, training, job)
    data = source.data(job.seed)
    counts = data.counts.to(job.device)
    torch.manual_seed(job.seed)
    model = source.model(len(counts)).to(job.device)
    attachment = insert(model, job.arm, before="fc")
    # -inf for a class without images, which the loss then ignores
    log_prior = (counts / counts.sum()).log()  # [K]
    balanced = training.loss == "balanced-softmax"
    criterion = wrap(attachment, balanced_softmax(log_prior if balanced else torch.zeros_like(log_prior)))
    drawn = data.train_batches(chosen["steps"], chosen["batch_size"])
    losses = (criterion(model(x.to(job.device)), y.to(job.device)) for x, y in drawn)
    descend(model, losses, Recipe.of(chosen | {"learning_rate": LEARNING_RATE}))
    model.to(job.device)  # the test set may be large
    test = _predict(model, data.test_batches(), job.device)
    metrics = group_columns(accuracy_of_classes(*test), data.groups)
    if source.validated:
        validation = _predict(model, data.validation_batches(), job.device)
        metrics[CALIBRATED] = calibrated_accuracy(test, validation, data.counts)
    first, _ = next(data.test_batches())
    return Outcome(metrics, **related(attachment, first[:RELATED].to(job.device), job))


def _predict(model: nn.Module, batches: Iterator[tuple[Tensor, Tensor]], device: str) -> Predicted:
    with torch.no_grad():
        pairs = [(model(x.to(device)).cpu(), y) for x, y in batches]
    logits, labels = map(torch.cat, zip(*pairs, strict=True))
    return Predicted(logits, labels)
