"""speed-cuda.png: the same on an H200, eager, compiled and the kernels alone, from the table in speed.md."""

from matplotlib.figure import Figure

from docs.figures.sheet import LETTERS, SERIES, chart, ratio_axis, shape_names
from docs.figures.tables import Row, read_table

MARKS = {
    "a step, eager": (SERIES[1], "o"),
    "a step, torch.compile": (SERIES[2], "s"),
    "a step, reduce-overhead": (SERIES[3], "D"),
    "its kernels alone, eager": (SERIES[0], "^"),
}


def draw() -> tuple[Figure, dict[str, dict[str, float]]]:
    """The figure and its numbers."""
    rows = read_table("docs/speed.md", "reduce-overhead", "kernels alone: ours")
    numbers = {row["shape"]: _ratios(row) for row in rows}
    figure, axes = chart(6.6)
    for name, (colour, mark) in MARKS.items():
        ratios = [of_shape[name] for of_shape in numbers.values()]
        axes.plot(ratios, range(len(rows)), mark, color=colour, label=name, markersize=6, alpha=0.9)
    ratio_axis(axes)
    axes.set_xscale("log")
    ticks = (0.5, 1, 2, 5, 10)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.grid(color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    shape_names(axes, [*numbers])
    figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=LETTERS - 1)
    return figure, numbers


def _ratios(row: Row) -> dict[str, float]:
    """Of torch's to ours: as the table has them, or of its milliseconds."""
    graphed = float(row["reduce-overhead"]) / float(row["ours"])
    step, compiled, kernels = (row[name] for name in ("eager / ours", "compile / ours", "eager / ours again"))
    values = (float(step), float(compiled), round(graphed, 2), float(kernels))
    return dict(zip(MARKS, values, strict=True))
