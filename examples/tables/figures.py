"""Pictures of a table: its paired differences with their intervals, and the relations of a trained module."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

import batchformer as bf
from examples.tables.arms import ALONE, BASELINE, BATCHFORMER, SOFTENED, UNIFORM
from examples.tables.long_tailed.groups import GROUPS
from examples.tables.record import related_run
from examples.tables.results import Result
from examples.tables.statistics import Difference
from examples.tables.summary import Summary, numbers
from examples.tables.table import Table

# Okabe and Ito's palette, safe for colour-blind readers; the markers differ as well.
COLOURS = {BATCHFORMER: "#0072B2", UNIFORM: "#E69F00", ALONE: "#009E73", SOFTENED: "#CC79A7"}
MARKERS = {BATCHFORMER: "s", UNIFORM: "^", ALONE: "v", SOFTENED: "D"}
OTHERS = ("#D55E00", "#56B4E9", "#000000")  # of arms that only one table has
CHOOSING = {"color": "#0072B2", "markerfacecolor": "white"}  # BatchFormer against uniform

WIDTH = 5.6  # inches; on a telephone, 340 pixels wide, letters of 11 points are then 9 pixels high
POINTS = 11
TITLE = 46  # letters of a title in a line
ORDER = (*GROUPS, "Seen", "Unseen")  # of the classes of samples


def draw_differences(path: Path, summary: Summary) -> Path | None:
    """Paired differences with 95 % intervals, a panel for each system and primary column; None without."""
    if not summary.primary:
        return None
    systems, columns = summary.systems, summary.table.primary
    orders = {system: summary.table.contrasts_of(system) for system in systems}
    shown = [(system, column) for system in systems for column in columns]
    heights = [0.3 * len(orders[system]) + 0.8 for system, _ in shown]  # inches
    figure = Figure(figsize=(WIDTH, sum(heights) + 0.9), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.06)  # inches
    panels = figure.subplots(len(shown), sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for (system, column), axes in zip(shown, panels, strict=True):
        found = [each for each in summary.primary if (each.system, each.column) == (system, column)]
        _draw(axes, found, orders[system], summary.table.arms)
        axes.set_title(textwrap.fill(f"{system}: {column}", TITLE), fontsize=POINTS, loc="left")
    panels[-1].set_xlabel("difference (points)", fontsize=POINTS)
    figure.suptitle(textwrap.fill(_title(summary), TITLE), fontsize=POINTS + 1)
    save(figure, path)
    return path


def _draw(axes: Axes, found: Sequence[Difference], order: list[tuple[str, str]], arms: Sequence[str]) -> None:
    """The contrasts from top to bottom, the difference from left to right."""
    axes.axvline(0, color="black", linewidth=0.8)
    for each in found:
        place = order.index((each.first, each.second))
        error = [[each.mean - each.low], [each.high - each.mean]] if each.has_interval else None
        style = _style(each, arms)
        axes.errorbar(each.mean, place, xerr=error, markersize=6, capsize=3, linewidth=1.4, **style)
    axes.set_yticks(range(len(order)), [f"{first} - {second}" for first, second in order])
    axes.set_ylim(len(order) - 0.5, -0.5)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.xaxis.set_tick_params(labelbottom=True)
    axes.tick_params(labelsize=POINTS - 1)
    axes.grid(axis="x", alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _style(each: Difference, arms: Sequence[str]) -> dict[str, Any]:
    if each.second != BASELINE:
        return {"marker": MARKERS[BATCHFORMER], **CHOOSING}
    own = [arm for arm in arms if arm not in COLOURS and arm != BASELINE]
    colours = COLOURS | {arm: OTHERS[place % len(OTHERS)] for place, arm in enumerate(own)}
    return {"color": colours[each.first], "marker": MARKERS.get(each.first, "o")}


def _title(summary: Summary) -> str:
    if summary.quick:
        return f"{summary.table.title}: a try, numbers without meaning"
    counts = {each.count for each in summary.primary}
    if max(counts) == 1:
        return f"{summary.table.title}: one seed, no interval"
    return f"{summary.table.title}: paired differences, 95 % intervals, {numbers(counts, ' to ')} seeds"


def draw_relations(path: Path, table: Table, results: Sequence[Result]) -> Path | None:
    """The attention between the samples of one batch, by class; None if no run has it."""
    run = related_run(results)
    if run is None:
        return None
    matrix, labels = np.array(run.outcome.relations), run.outcome.labels or []
    of_run = f"{table.title}, {run.job.system}, seed {run.job.seed}: {len(matrix)} samples"
    names = sorted(set(labels), key=lambda label: ORDER.index(label) if label in ORDER else len(ORDER))
    places = [names.index(label) for label in labels]
    title = textwrap.fill(of_run, TITLE)
    figure = bf.plot_relations(matrix, places, class_names=names, title=title)
    panel = figure.axes[0]
    panel.set_title(panel.get_title().replace("head 1", "mean over the heads"), fontsize=10)
    save(figure, path)
    return path


def save(figure: Figure, path: Path) -> None:
    """Write the figure as PNG."""
    figure.savefig(path, dpi=150, bbox_inches="tight", facecolor="white")
