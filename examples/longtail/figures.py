"""Pictures of the results: accuracy against class size, and training curves."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from longtail.groups import ranking
from longtail.models import ARMS, BASELINE, CONTROL, WITH_BATCHFORMER
from longtail.summary import standard_error
from longtail.training import Run

# Okabe and Ito's palette, safe for colour-blind readers; the markers differ as well.
COLOURS = {BASELINE: "#000000", WITH_BATCHFORMER: "#0072B2", CONTROL: "#E69F00"}
MARKERS = {BASELINE: "o", WITH_BATCHFORMER: "s", CONTROL: "^"}
ASIDE = {BASELINE: 1.0, WITH_BATCHFORMER: 0.965, CONTROL: 1.035}  # so that error bars do not hide each other

POINTS = 30  # more classes than this share points with the classes next to them in size


def draw_accuracy(path: Path, runs: Sequence[Run]) -> None:
    """Accuracy by class size, and below it the difference to the baseline; means over seeds."""
    figure, (above, below) = make_figure(7.2, 6.0, nrows=2, sharex=True, height_ratios=[3, 2])
    baseline = _by_rank(runs, BASELINE, lambda run: run.per_class)  # [seeds, points]
    images = _by_rank(runs, BASELINE, lambda run: run.data.counts.double().numpy()).mean(0)  # [points]
    for arm in ARMS:
        accuracy = _by_rank(runs, arm, lambda run: run.per_class)  # [seeds, points]
        style = {
            "color": COLOURS[arm],
            "marker": MARKERS[arm],
            "markersize": 5,
            "capsize": 2,
            "linewidth": 1.2,
        }
        _points(above, images * ASIDE[arm], accuracy, label=arm, **style)
        if arm != BASELINE:
            _points(below, images * ASIDE[arm], accuracy - baseline, **style)
    below.axhline(0, color=COLOURS[BASELINE], linewidth=1)
    below.set_xscale("log")
    below.xaxis.set_major_formatter("{x:g}")
    below.set_xticks([tick for tick in _round_numbers() if images.min() * 0.9 <= tick <= images.max() * 1.1])
    below.xaxis.set_minor_locator(NullLocator())
    below.set_xlabel("training images of the class")
    above.set_ylabel("accuracy on the test set (%)")
    below.set_ylabel("difference to the\nbaseline (points)")
    figure.suptitle(f"Accuracy of a class by its number of training images, {_seeds(runs)}", fontsize=11)
    _legend(figure, above)
    save(figure, path)


def draw_curves(path: Path, runs: Sequence[Run]) -> None:
    """Training loss and test accuracy by step; means over seeds."""
    figure, (left, right) = make_figure(9.0, 3.8, ncols=2)
    for arm in ARMS:
        curves = [run.curve for run in runs if run.arm == arm]
        for axes, lines in (
            (left, [curve.loss for curve in curves]),
            (right, [curve.accuracy for curve in curves]),
        ):
            style = {"color": COLOURS[arm], "marker": MARKERS[arm], "markersize": 4, "linewidth": 1.2}
            _points(axes, np.array(curves[0].step), np.array(lines), label=arm, capsize=2, **style)
    left.set_yscale("log")
    left.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    left.yaxis.set_major_formatter("{x:g}")
    left.yaxis.set_minor_locator(NullLocator())
    left.set_ylabel("training loss, original stream")
    right.set_ylabel("accuracy on the test set (%)")
    for axes in (left, right):
        axes.set_xlabel("training step")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
    figure.suptitle(f"Training, {_seeds(runs)}", fontsize=11)
    _legend(figure, left)
    save(figure, path)


def make_figure(width: float, height: float, **grid: Any) -> tuple[Figure, Any]:
    """A figure of that many inches with its panels; `grid` is what Figure.subplots takes.

    Not by pyplot, which would keep every figure and may want a screen.
    """
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1)  # inches
    panels = figure.subplots(**grid)
    for axes in np.ravel(panels):
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panels


def save(figure: Figure, path: Path) -> None:
    """Write the figure as PNG."""
    figure.savefig(path, dpi=150, bbox_inches="tight", facecolor="white")


def _points(axes: Axes, x: NDArray[np.float64], values: NDArray[np.float64], **style: Any) -> None:
    """Draw the mean of values [seeds, points] at x [points], with standard errors if there are any."""
    error = standard_error(values)  # [points]
    axes.errorbar(x, values.mean(0), yerr=None if np.isnan(error).all() else error, **style)
    axes.grid(alpha=0.25, linewidth=0.6)


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)


def _by_rank(
    runs: Sequence[Run], arm: str, per_class: Callable[[Run], NDArray[np.float64]]
) -> NDArray[np.float64]:
    """A value of each class `[seeds, points]`, from the most frequent class to the rarest."""
    ranked = [per_class(run)[ranking(run.data.counts)] for run in runs if run.arm == arm]  # seeds times [K]
    parts = np.array_split(np.array(ranked), min(POINTS, len(ranked[0])), axis=1)
    return np.stack([part.mean(1) for part in parts], axis=1)


def _round_numbers() -> list[int]:
    return [digit * 10**power for power in range(6) for digit in (1, 2, 5)]


def _seeds(runs: Sequence[Run]) -> str:
    number = len({run.data.seed for run in runs})
    return f"mean ± standard error of {number} seeds" if number > 1 else "one seed"
