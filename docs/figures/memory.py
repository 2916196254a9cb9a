"""memory.png: the most memory that a training step takes, ours and torch's, from the table in README.md."""

from matplotlib.figure import Figure

from docs.figures.sheet import LETTERS, SERIES, chart, pair_of_bars, shape_names
from docs.figures.tables import read_table

PEAK = "peak ours, torch's"


def draw() -> tuple[Figure, dict[str, list[float]]]:
    """The figure and its numbers; a shape that was too small to tell is left out."""
    rows = [row for row in read_table("README.md", PEAK) if "," in row[PEAK]]
    numbers = {row["shape"]: [float(peak) for peak in row[PEAK].split(",")] for row in rows}
    figure, axes = chart(6.6)
    for number, name in enumerate(("ours", "torch's layer")):
        lengths = {place: peaks[number] for place, peaks in enumerate(numbers.values())}
        pair_of_bars(axes, number, lengths, 1, color=SERIES[number], label=name)
    shape_names(axes, [*numbers])
    axes.margins(x=0.1)
    axes.set_xlabel("peak memory of a step, in floats\nfor each element of the input", fontsize=LETTERS)
    figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=LETTERS)
    return figure, numbers
