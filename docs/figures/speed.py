"""speed.png: how many times as long torch's layer takes, on two processors, from the two tables."""

from matplotlib.figure import Figure

from docs.figures.sheet import INK, LETTERS, SERIES, chart, shape_names
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
        places = [place + 0.38 * (number - 0.5) for place, shape in enumerate(shapes) if shape in ratios]
        lengths = [ratios[shape] for shape in shapes if shape in ratios]
        bars = axes.barh(places, lengths, 0.36, color=PROCESSORS[name][0], label=name)
        axes.bar_label(bars, [f"{length:.2f}" for length in lengths], padding=3, fontsize=LETTERS - 2)
    axes.axvline(1, color=INK, linewidth=1)
    shape_names(axes, shapes)
    axes.margins(x=0.1)
    axes.set_xlabel("time of torch's layer / time of ours\n(1, the line: equally fast)", fontsize=LETTERS)
    figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=LETTERS)
    return figure, numbers
