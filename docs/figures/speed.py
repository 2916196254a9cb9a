"""speed.png: how many times as long torch's layer takes, on two processors, from the two tables."""

from matplotlib.figure import Figure

from docs.figures.sheet import LETTERS, SERIES, chart, pair_of_bars, ratio_axis, shape_names
from docs.figures.tables import read_table

RATIO = "torch's / ours"
PROCESSORS = {
    "AMD EPYC, Zen 5": (SERIES[0], ("README.md", RATIO, "peak ours, torch's")),
    "Intel Xeon with AMX": ("#56b4e9", ("docs/speed.md", RATIO, "share of FMA peak")),
}


def draw() -> tuple[Figure, dict[str, dict[str, float]]]:
    """The figure and its numbers."""
    numbers = {
        name: {row["shape"]: float(row[RATIO]) for row in read_table(*table)}
        for name, (_, table) in PROCESSORS.items()
    }
    shapes = [*dict.fromkeys(shape for ratios in numbers.values() for shape in ratios)]
    figure, axes = chart(7.2)
    for number, (name, ratios) in enumerate(numbers.items()):
        lengths = {place: ratios[shape] for place, shape in enumerate(shapes) if shape in ratios}
        pair_of_bars(axes, number, lengths, 2, color=PROCESSORS[name][0], label=name)
    ratio_axis(axes)
    shape_names(axes, shapes)
    axes.margins(x=0.1)
    figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=LETTERS)
    return figure, numbers
