"""Picture of the relations in a batch: who attends to whom, sorted by class."""

from pathlib import Path

import torch
from torch import Tensor

import batchformer as bf
from longtail.data import Data
from longtail.figures import save
from longtail.groups import ranking
from longtail.training import Run

IMAGES = 120


def draw_relations(path: Path, run: Run) -> None:
    """Who attends to whom among test images, a panel a head, classes from the most frequent to the rarest."""
    x, y = _some_of_every_class(run.data)
    with torch.no_grad():
        features = run.model.features(x)  # [N, C], the model is in evaluation
    figure = bf.plot_relations(
        (run.model.batchformer, features),
        y,
        counts=run.data.counts,
        title=f"Relations of {len(y)} test images after training",
    )
    save(figure, path)


def _some_of_every_class(data: Data) -> tuple[Tensor, Tensor]:
    """Up to 120 test images and their labels: equally many of each class, most frequent classes first."""
    ranked = ranking(data.counts)[:IMAGES]
    wanted = {label: IMAGES // len(ranked) for label in ranked}
    images: dict[int, list[Tensor]] = {label: [] for label in ranked}
    for x, y in data.test_batches():
        for image, label in zip(x, y.tolist(), strict=True):
            if len(images.get(label, ())) < wanted.get(label, 0):
                images[label].append(image)
        if all(len(images[label]) == wanted[label] for label in ranked):
            break
    labels = [label for label in ranked for _ in images[label]]
    return torch.stack([image for label in ranked for image in images[label]]), torch.tensor(labels)
