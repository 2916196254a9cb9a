"""method.png: BatchFormer for one vector a sample, and below it BatchFormerV2 for a map of tokens."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from docs.figures.sheet import BLUE, GREY, INK, LETTERS, ORANGE, PALE, Point, arrow, box, drawing, write

SAMPLES, COLUMNS = 4, 6
SMALL = {"fontsize": LETTERS - 0.5}


def draw() -> tuple[Figure, None]:
    """The figure; there are no numbers in it."""
    figure, axes = drawing(46.4)
    write(axes, (0.5, 45), "BatchFormer: a vector for each sample", ha="left", fontweight="bold")
    streams(axes, 23.8, "features\n[N, C]", "[2N, C]", tokens=False)
    encoder(axes, 23.8, "each sample attends\nto all N samples")
    box(axes, (0.5, 34.8), (8.8, 5), "backbone", GREY, **SMALL)
    box(axes, (45, 33.8), (10.5, 7), "classifier,\nshared", GREY, **SMALL)

    write(axes, (0.5, 21.4), "BatchFormerV2: a map of tokens for each sample", ha="left", fontweight="bold")
    streams(axes, 0.2, "tokens\n[N, L, C]", "[2N, L, C]", tokens=True)
    encoder(axes, 0.2, "at each position the\nN tokens attend to\none another")
    box(axes, (0.5, 11.2), (8.8, 5), "first\nlayers", GREY, **SMALL)
    box(axes, (45, 9), (10.5, 9), "all further\nlayers,\nshared", GREY, **SMALL)
    write(axes, (7, 5), "rows: images\ncolumns: positions", color=GREY, **SMALL)
    return figure, None


def streams(axes: Axes, bottom: float, size: str, doubled: str, *, tokens: bool) -> None:
    """What both have in common: two ways from the features to whatever is behind, above the bottom."""
    arrow(axes, (9.6, bottom + 13.5), (11.2, bottom + 13.5))
    batch(axes, (11.6, bottom + 11.5), BLUE, tokens=tokens)
    write(axes, (14.6, bottom + 17.3), size, **SMALL)

    arrow(axes, (17.9, bottom + 14), (36.8, bottom + 15.6), BLUE, bend=-0.1)
    write(axes, (26.6, bottom + 17.9), "as they are", color=BLUE, **SMALL)
    arrow(axes, (14.6, bottom + 11.2), (17.5, bottom + 7.6), ORANGE, bend=0.3)
    arrow(axes, (35.2, bottom + 8.4), (37.2, bottom + 10), ORANGE)

    batch(axes, (37.2, bottom + 13.9), BLUE, tokens=tokens)
    batch(axes, (37.2, bottom + 9.3), ORANGE, tokens=tokens)
    write(axes, (40.2, bottom + 7.4), doubled, **SMALL)
    arrow(axes, (43.5, bottom + 13.5), (44.8, bottom + 13.5))
    arrow(axes, (50.2, bottom + (8.6 if tokens else 9.8)), (50.2, bottom + 6.4))
    write(axes, (50.2, bottom + 4), "loss on 2N\ntargets", **SMALL)


def encoder(axes: Axes, bottom: float, about: str) -> None:
    """The module: what is there in training alone."""
    box(axes, (17.9, bottom + 2.8), (17, 9.8), "", ORANGE)
    write(axes, (26.4, bottom + 10.9), "encoder layer", color=ORANGE, fontweight="bold", **SMALL)
    write(axes, (26.4, bottom + 6.5), about, **SMALL)
    write(axes, (26.4, bottom + 1.4), "in training only", color=GREY, **SMALL)


def batch(axes: Axes, corner: Point, colour: str, *, tokens: bool) -> None:
    """A small batch, a sample a row; of tokens the columns are positions, one of which is marked."""
    for row in range(SAMPLES):
        for column in range(COLUMNS):
            cell = (corner[0] + column, corner[1] + row)
            axes.add_patch(
                Rectangle(cell, 0.86, 0.86, facecolor=PALE[colour], edgecolor=colour, linewidth=0.8)
            )
    if tokens:
        marked = (corner[0] + 1.93, corner[1] - 0.07)
        axes.add_patch(Rectangle(marked, 1, SAMPLES, fill=False, edgecolor=INK, linewidth=1.6, zorder=3))
