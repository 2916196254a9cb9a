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
OTHERS = (  # colours and markers of arms that only one table has
    ("#D55E00", "o"),
    ("#56B4E9", "P"),
    ("#000000", "X"),
    ("#D55E00", "<"),
    ("#56B4E9", ">"),
    ("#000000", "p"),
)

WIDTH = 5.6  # inches; on a telephone, 340 pixels wide, letters of 11 points are then 9 pixels high
POINTS = 11
TITLE, NAME = 46, 28  # letters of a title and of a comparison in a line
ORDER = (*GROUPS, "Seen", "Unseen")  # of the classes of samples


def draw_differences(path: Path, summary: Summary) -> Path | None:
    """Paired differences with 95 % intervals, a panel for each system and primary column; None without."""
    if not summary.primary:
        return None
    systems, columns = summary.systems, summary.table.primary
    orders = {system: summary.table.contrasts_of(system) for system in systems}
    shown = [(system, column) for system in systems for column in columns]
    names = {system: [textwrap.fill(f"{a} - {b}", NAME) for a, b in orders[system]] for system in systems}
    row = 0.45 if any("\n" in name for each in names.values() for name in each) else 0.3  # inches
    heights = [row * len(orders[system]) + 0.8 for system, _ in shown]
    figure = Figure(figsize=(WIDTH, sum(heights) + 0.9), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.06)  # inches
    panels = figure.subplots(len(shown), sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for (system, column), axes in zip(shown, panels, strict=True):
        found = [each for each in summary.primary if (each.system, each.column) == (system, column)]
        _draw(axes, found, orders[system], summary.table.arms)
        axes.set_yticks(range(len(names[system])), names[system])
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
        if each.holds:
            axes.annotate(
                "*", (each.high, place), (5, -3), textcoords="offset points", va="center", fontsize=POINTS + 3
            )
    axes.margins(x=0.08)  # room for the asterisks
    axes.set_ylim(len(order) - 0.5, -0.5)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.xaxis.set_tick_params(labelbottom=True)
    axes.tick_params(labelsize=POINTS - 1)
    axes.grid(axis="x", alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _style(each: Difference, arms: Sequence[str]) -> dict[str, Any]:
    own = [arm for arm in arms if arm not in COLOURS and arm != BASELINE]
    others = {arm: OTHERS[place % len(OTHERS)] for place, arm in enumerate(own)}
    colour, marker = others.get(each.first) or (COLOURS[each.first], MARKERS[each.first])
    against_arm = {} if each.second == BASELINE else {"markerfacecolor": "white"}
    return {"color": colour, "marker": marker, **against_arm}


def _title(summary: Summary) -> str:
    if summary.quick:
        return f"{summary.table.title}: a try, numbers without meaning"
    counts = {each.count for each in summary.primary}
    if max(counts) == 1:
        return f"{summary.table.title}: one seed, no interval"
    return (
        f"{summary.table.title}: paired differences, 95\u00a0% intervals, {numbers(counts, ' to ')} seeds; "
        f"*\u00a0holds after Holm's correction"
    )


def draw_relations(path: Path, table: Table, results: Sequence[Result]) -> Path | None:
    """The attention between the samples of one batch, by class, before and after training; None without."""
    run = related_run(results)
    if run is None:
        return None
    outcome = run.outcome
    stages = {"untrained": outcome.untrained_relations, "trained": outcome.relations}
    stages = {stage: matrix for stage, matrix in stages.items() if matrix is not None}
    labels = outcome.labels or []
    names = sorted(set(labels), key=lambda label: ORDER.index(label) if label in ORDER else len(ORDER))
    shares = [labels.count(name) / len(labels) for name in names]
    kind = "group" if {*names} <= {*ORDER} else "class"
    title = (
        f"{table.title}, {run.job.system}, seed {run.job.seed}: {len(labels)} samples, mean of the heads; "
        f"spread evenly: {100 * sum(share**2 for share in shares):.1f} % on the own {kind}"
    )
    figure = Figure(figsize=(4.6, 3.6 * len(stages) + 0.8), layout="constrained")  # inches
    panels = figure.subplots(len(stages), squeeze=False)[:, 0]
    places = [names.index(label) for label in labels]
    bf.plot_relations(np.array([*stages.values()]), places, class_names=names, axes=panels)
    for number, (stage, panel) in enumerate(zip(stages, panels, strict=True), start=1):
        told = panel.get_title().replace(f"head {number}", stage).replace("class", kind)
        panel.set_title(told, fontsize=10)
    figure.suptitle(textwrap.fill(title, TITLE), fontsize=POINTS)
    figure.supxlabel(f"attended sample: its {kind}", fontsize=10)
    figure.supylabel(f"attending sample: its {kind}", fontsize=10)
    save(figure, path)
    return path


def save(figure: Figure, path: Path) -> None:
    """Write the figure as PNG."""
    figure.savefig(path, dpi=150, bbox_inches="tight", facecolor="white")
