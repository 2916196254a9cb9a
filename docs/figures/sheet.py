"""What all figures share: width, letters, colours, boxes and arrows, and how they are saved.

A telephone shows a figure 340 pixels wide. So that its letters are then 9 pixels high, they are 11 points on
a width of 5.6 inches, whatever is drawn.
"""

import json
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

DOCS = Path(__file__).parents[1]
WIDTH = 5.6  # inches
UNIT = 0.1  # inches, of the axes of drawings
LETTERS = 11  # points
INK, GREY, BLUE, ORANGE = "#222222", "#6b6b6b", "#0072b2", "#c04f00"
PALE = {BLUE: "#dcebf5", ORANGE: "#fae3d6", GREY: "#f0f0f0"}
SERIES = ("#0072b2", "#999999", "#e69f00", "#009e73")  # told apart by the colour-blind, too

Point = tuple[float, float]


def drawing(height: float) -> tuple[Figure, Axes]:
    """A figure, and axes over all of it: 56 units wide, as many high as asked for."""
    figure = Figure(figsize=(WIDTH, height * UNIT))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, WIDTH / UNIT)
    axes.set_ylim(0, height)
    axes.axis("off")
    return figure, axes


def chart(height: float) -> tuple[Figure, Axes]:
    """A figure with ordinary axes, height in inches."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=LETTERS - 1)
    return figure, axes


def box(axes: Axes, corner: Point, size: Point, text: str, colour: str, **style: Any) -> None:
    """A rounded box around its text; corner is the lower left one."""
    patch = FancyBboxPatch(
        corner,
        *size,
        boxstyle="round,pad=0,rounding_size=0.9",
        facecolor=PALE[colour],
        edgecolor=colour,
        linewidth=1.4,
    )
    axes.add_patch(patch)
    middle = (corner[0] + size[0] / 2, corner[1] + size[1] / 2)
    write(axes, middle, text, **style)


def write(axes: Axes, place: Point, text: str, **style: Any) -> None:
    """Text around a place."""
    style = {"ha": "center", "va": "center", "fontsize": LETTERS, "color": INK, **style}
    axes.text(*place, text, linespacing=1.15, **style)


def arrow(axes: Axes, start: Point, end: Point, colour: str = INK, bend: float = 0.0) -> None:
    """An arrow."""
    patch = FancyArrowPatch(
        start,
        end,
        arrowstyle="-|>",
        mutation_scale=12,
        color=colour,
        linewidth=1.4,
        shrinkA=0,
        shrinkB=0,
        connectionstyle=f"arc3,rad={bend}",
    )
    axes.add_patch(patch)


def pair_of_bars(axes: Axes, number: int, lengths: dict[int, float], digits: int, **style: Any) -> None:
    """The first (0) or the second (1) bar of rows of the chart, each with its length, by the rows' places."""
    places = [place + 0.38 * (number - 0.5) for place in lengths]
    bars = axes.barh(places, [*lengths.values()], 0.36, **style)
    texts = [f"{length:.{digits}f}" for length in lengths.values()]
    axes.bar_label(bars, texts, padding=3, fontsize=LETTERS - 2)


def ratio_axis(axes: Axes) -> None:
    """The axis of torch's time by ours, and the line of equal ones."""
    axes.axvline(1, color=INK, linewidth=1)
    axes.set_xlabel("time of torch's layer / time of ours\n(1, the line: equally fast)", fontsize=LETTERS)


def shape_names(axes: Axes, names: list[str]) -> None:
    """A row of the chart for each shape, from above: its name in one line, its sizes in the next."""
    axes.set_yticks(range(len(names)), [name.replace(" N=", "\nN=") for name in names])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(names) - 0.4, -0.6)


def save(path: Path, figure: Figure, numbers: Any = None) -> None:
    """Write a PNG that holds the numbers that were drawn, so that a test sees when it is out of date."""
    metadata = {"Software": None}  # else the bytes change with matplotlib's version
    if numbers is not None:
        metadata["Description"] = json.dumps(numbers)
    with rc_context({"savefig.facecolor": "white"}):
        figure.savefig(path, dpi=150, metadata=metadata)
