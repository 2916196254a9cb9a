"""Draws docs/method.png, the README's figure of BatchFormer: `python docs/method.py`."""

from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

INK, GREY, BLUE, ORANGE = "#222222", "#7a7a7a", "#0072b2", "#d55e00"
FILLS = {BLUE: "#dcebf5", ORANGE: "#fae3d6", GREY: "#f0f0f0"}


def box(axes: Axes, x: float, y: float, width: float, height: float, text: str, colour: str) -> None:
    """A rounded box around its text."""
    patch = FancyBboxPatch(
        (x, y),
        width,
        height,
        boxstyle="round,pad=0.02,rounding_size=0.12",
        facecolor=FILLS[colour],
        edgecolor=colour,
        linewidth=1.6,
    )
    axes.add_patch(patch)
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=11, color=INK)


def arrow(
    axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str, bend: float = 0.0
) -> None:
    """An arrow from start to end."""
    style = f"arc3,rad={bend}"
    axes.add_patch(
        FancyArrowPatch(
            start,
            end,
            arrowstyle="-|>",
            mutation_scale=14,
            color=colour,
            linewidth=1.6,
            connectionstyle=style,
        )
    )


def rows(axes: Axes, x: float, y: float, colour: str) -> None:
    """A small batch of feature vectors."""
    for row in range(4):
        for column in range(6):
            axes.add_patch(
                plt.Rectangle(
                    (x + 0.16 * column, y + 0.2 * row),
                    0.15,
                    0.17,
                    facecolor=FILLS[colour],
                    edgecolor=colour,
                    linewidth=0.9,
                )
            )


def main() -> None:
    """Write docs/method.png."""
    figure, axes = plt.subplots(figsize=(10.4, 4.0))
    axes.set_xlim(0, 13)
    axes.set_ylim(0, 5)
    axes.axis("off")

    box(axes, 0.1, 2.65, 1.5, 1.0, "backbone", GREY)
    arrow(axes, (1.65, 3.15), (2.25, 3.15), INK)
    rows(axes, 2.35, 2.77, BLUE)
    axes.text(2.83, 3.75, "features [N, C]", ha="center", fontsize=10, color=INK)

    arrow(axes, (3.4, 3.35), (8.3, 3.9), BLUE, bend=-0.12)
    axes.text(5.6, 4.15, "as they are", ha="center", fontsize=10, color=BLUE)
    arrow(axes, (3.4, 2.95), (4.35, 2.1), ORANGE)
    box(axes, 4.4, 1.25, 2.75, 1.3, "transformer encoder\nover the batch axis", ORANGE)
    axes.text(5.78, 0.8, "each sample attends to all N samples", ha="center", fontsize=10, color=ORANGE)
    arrow(axes, (7.2, 1.95), (8.3, 2.75), ORANGE)

    rows(axes, 8.4, 3.35, BLUE)
    rows(axes, 8.4, 2.4, ORANGE)
    axes.text(8.88, 4.35, "features [2N, C]", ha="center", fontsize=10, color=INK)
    arrow(axes, (9.45, 3.28), (10.1, 3.28), INK)
    box(axes, 10.15, 2.75, 1.35, 1.05, "shared\nclassifier", GREY)
    arrow(axes, (11.55, 3.28), (12.1, 3.28), INK)
    axes.text(12.55, 3.28, "loss on\ntargets\n[2N]", ha="center", va="center", fontsize=10, color=INK)

    axes.plot(
        [3.55, 3.55, 8.0, 8.0, 3.55],
        [0.5, 2.8, 2.8, 0.5, 0.5],
        color=GREY,
        linewidth=1.1,
        linestyle=(0, (4, 3)),
    )
    axes.text(5.78, 0.12, "in training only; at test time it is gone", ha="center", fontsize=10, color=GREY)
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=150, bbox_inches="tight", facecolor="white")


if __name__ == "__main__":
    main()
