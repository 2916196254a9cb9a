"""Picture of the relations in a batch: who attends to whom, sorted by class."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import batchformer as bf
from longtail.data import Data
from longtail.figures import POINTS, make_figure, save
from longtail.groups import ranking
from longtail.training import Run

IMAGES = 120


def draw_relations(path: Path, run: Run) -> None:
    """Who attends to whom among test images, a panel a head, classes from the most frequent to the rarest."""
    x, y = _some_of_every_class(run.data)
    with torch.no_grad():
        features = run.model.features(x)  # [N, C], the model is in evaluation
    heads = bf.relations(run.model.batchformer, features)  # [H, N, N]
    evenness = heads * len(x)  # [H, N, N], 1 where attention is spread evenly
    figure, panels = make_figure(8.6, 7.6, nrows=2, ncols=(len(heads) + 1) // 2, sharex=True, sharey=True)
    reach = max(float(np.quantile(abs(evenness - 1), 0.995)), 0.01)
    edges = np.flatnonzero(np.diff(y.numpy())) + 1
    starts, ends = np.array([0, *edges]), np.array([*edges, len(y)])
    own_class = (y[:, None] == y[None, :]).numpy()  # [N, N]
    for head, (axes, share) in enumerate(zip(panels.flat, evenness, strict=True), start=1):
        picture = axes.imshow(share, vmin=1 - reach, vmax=1 + reach, cmap="PuOr_r", interpolation="nearest")
        for edge in edges if len(edges) < POINTS else ():
            axes.axhline(edge - 0.5, color="black", linewidth=0.4)
            axes.axvline(edge - 0.5, color="black", linewidth=0.4)
        own = 100 * (share * own_class).sum(1).mean() / len(x)
        axes.set_title(f"head {head}: {own:.1f} % on the own class", fontsize=10)
        if len(starts) <= POINTS:
            names = [f"{int(y[start])} ({int(run.data.counts[y[start]])})" for start in starts]
            axes.set_xticks((starts + ends - 1) / 2, names, rotation=90)
            axes.set_yticks((starts + ends - 1) / 2, names)
            axes.tick_params(length=0, labelsize=8)
    evenly = 100 * own_class.mean()
    figure.colorbar(
        picture,
        ax=panels,
        label="attention of the row's image to the column's (1: spread evenly)",
        extend="both",
    )
    figure.suptitle(
        f"Relations of {len(y)} test images after training; spread evenly: {evenly:.1f} % on the own class",
        fontsize=11,
    )
    figure.supxlabel("attended image: its class (training images of the class)", fontsize=10)
    figure.supylabel("attending image: its class", fontsize=10)
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
