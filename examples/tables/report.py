"""The results of a table: in the terminal, as CSV, as JSON, and as pictures."""

import csv
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table as Drawn

from examples.tables.figures import draw_differences, draw_relations
from examples.tables.record import as_document, write_record
from examples.tables.results import Result
from examples.tables.sentences import sentences
from examples.tables.statistics import Difference
from examples.tables.summary import Cell, Summary, numbers, summarise
from examples.tables.table import Table

WIDTH = 80  # of a terminal
EDGES = 3  # of a column: a space on each side, and one between columns
NONE = "-"
HOLDS = "*"


def report(table: Table, results: Sequence[Result], folder: Path, console: Console) -> None:
    """Print a table and its conclusions, and write all of it into the folder."""
    summary = summarise(table, results)
    show(summary, console)
    if not summary.cells:
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(folder / "means.csv", summary.cells)
    write_csv(folder / "differences.csv", [*summary.differences, *summary.convergence])
    said = {"summary": as_json(summary), "sentences": sentences(summary)}
    write_record(folder / "results.json", as_document(table, results) | said)
    drawn = [draw_differences(folder / "differences.png", summary)]
    drawn.append(draw_relations(folder / "relations.png", table, results))
    pictures = " and ".join(path.name for path in drawn if path)
    console.print(
        f"In {folder}: means.csv, differences.csv, results.json{', ' * bool(pictures)}{pictures}.",
        soft_wrap=True,
        markup=False,
    )


def show(summary: Summary, console: Console) -> None:
    """Print the systems one after the other, then the sentences."""
    console.print(f"\n[bold]{escape(summary.table.title)}[/bold]")
    head = ["", "n", *summary.table.columns]
    for system in summary.systems:
        console.print(f"\n[bold]{escape(system)}[/bold]: means ± standard errors")
        _print([head, *mean_rows(summary, system)], console)
        if summary.of(system):
            console.print(f"  paired differences with 95 % intervals ({HOLDS} holds after Holm's correction)")
            rows = difference_rows(summary, system, lambda each: difference_text(each, "\n"))
            _print([head, *([name.replace(" - ", "\n- "), *rest] for name, *rest in rows)], console)
    if summary.entropies:
        console.print("\nEntropy of the attention over that of even attention:")
        for system in dict.fromkeys(each.system for each in summary.entropies):
            of_system = [each for each in summary.entropies if each.system == system]
            arms = ", ".join(f"{each.arm} {each.mean:.4f}" for each in of_system)
            console.print(f"  {system}: {arms}", markup=False)
    console.print()
    for sentence in sentences(summary):
        console.print(f"- {sentence}", markup=False)


def write_csv(path: Path, rows: Iterable[Cell | Difference]) -> None:
    """Write one row for each cell or difference; a field without a number is empty."""
    fields = [{name: _text(value) for name, value in asdict(row).items()} for row in rows]
    with path.open("w", newline="", encoding="utf-8") as file:
        if fields:
            writer = csv.DictWriter(file, list(fields[0]))
            writer.writeheader()
            writer.writerows(fields)


def as_json(summary: Summary) -> dict[str, Any]:
    """The summary in types that JSON has; None where there is no number."""
    parts = ("cells", "differences", "convergence", "entropies")
    return {
        part: [
            {name: _or_none(value) for name, value in asdict(each).items()} for each in getattr(summary, part)
        ]
        for part in parts
    }


def mean_rows(summary: Summary, system: str) -> list[list[str]]:
    """Rows of texts, one for each arm: its name, n, and each column."""
    rows = []
    for arm in summary.table.arms:
        cells = [summary.cell(system, arm, column) for column in summary.table.columns]
        if any(cells):
            rows.append([arm, numbers(cell.count for cell in cells if cell), *map(mean_text, cells)])
    return rows


def difference_rows(
    summary: Summary, system: str, text: Callable[[Difference | None], str]
) -> list[list[str]]:
    """Rows of texts, one for each comparison: its name, n, and each column, as `text` has it."""
    rows = []
    found = summary.of(system)
    for contrast in dict.fromkeys(each.contrast for each in found):
        by_column = {each.column: each for each in found if each.contrast == contrast}
        entries = [text(by_column.get(column)) for column in summary.table.columns]
        rows.append([contrast, numbers(each.count for each in by_column.values()), *entries])
    return rows


def mean_text(cell: Cell | None) -> str:
    """A mean and its standard error."""
    if cell is None:
        return NONE
    return f"{cell.mean:.1f} ± {_number(cell.standard_error, '.1f')}"


def difference_text(each: Difference | None, between: str, form: str = ".1f") -> str:
    """A difference, with a mark if it is significant, and its interval."""
    if each is None:
        return NONE
    interval = f"{each.low:+{form}} to {each.high:+{form}}" if each.has_interval else NONE
    return f"{each.mean:+{form}}{HOLDS * each.holds}{between}{interval}"


def _print(rows: list[list[str]], console: Console) -> None:
    """Print rows as tables, with as many columns in each as fit into 80."""
    heads = rows[0]
    widths = [
        max(_width(row[place], head=row is heads) for row in rows) + EDGES for place in range(len(heads))
    ]
    for places in _that_fit(widths):
        drawn = Drawn(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1))
        for place in (0, 1, *places):
            drawn.add_column(
                escape(heads[place]),
                justify="left" if place == 0 else "right",
                min_width=widths[place] - EDGES,
                no_wrap=place < 2,
            )
        for row in rows[1:]:
            drawn.add_row(*(escape(row[place]) for place in (0, 1, *places)))
        console.print(drawn)


def _that_fit(widths: Sequence[int]) -> list[list[int]]:
    """The columns of each printed table, by index; the first two columns are in all tables."""
    tables: list[list[int]] = []
    left = 0
    for place, width in enumerate(widths[2:], start=2):
        if not tables or width > left:
            tables.append([])
            left = WIDTH - widths[0] - widths[1]
        tables[-1].append(place)
        left -= width
    return tables


def _width(text: str, head: bool) -> int:
    """The width of the widest line; a header is broken between its words."""
    return max(map(len, text.split() if head else text.split("\n")), default=0)


def _number(value: float, form: str) -> str:
    return NONE if math.isnan(value) else format(value, form)


def _text(value: Any) -> Any:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return value


def _or_none(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value
