"""The results as a table in the terminal, as CSV and as JSON."""

import csv
import json
import math
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torchvision
from rich import box
from rich.table import Table

import batchformer as bf
from longtail.groups import COLUMNS
from longtail.models import ARMS
from longtail.summary import Cell
from longtail.training import Run

NONE = "-"


def table(cells: Sequence[Cell]) -> Table:
    """The table: a row an arm, the accuracy in every column, and below it the difference to the baseline."""
    drawn = Table(
        title="Test accuracy (%), below it the paired difference ± its standard error",
        box=box.SIMPLE_HEAD,
    )
    drawn.add_column("", no_wrap=True)
    for column in COLUMNS:
        drawn.add_column(column, justify="right", no_wrap=True)
    for arm in ARMS:
        of_arm = {cell.column: cell for cell in cells if cell.arm == arm}
        drawn.add_row(arm, *(_entry(of_arm[column]) for column in COLUMNS))
    return drawn


def write_csv(path: Path, cells: Iterable[Cell]) -> None:
    """One row for each arm and column: mean, difference and standard error; empty where there is none."""
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["arm", "column", "mean", "difference", "standard_error"])
        for cell in cells:
            numbers = (cell.mean, cell.difference, cell.standard_error)
            rows.writerow([cell.arm, cell.column, *("" if n is None else f"{n:.4f}" for n in numbers)])


def write_json(
    path: Path,
    settings: Mapping[str, Any],
    cells: Iterable[Cell],
    sentences: Sequence[str],
    runs: Iterable[Run],
) -> None:
    """Everything: settings, versions, the table, what is said of it, and every run class by class."""
    document = {
        "settings": dict(settings),
        "versions": versions(),
        "threads": torch.get_num_threads(),
        "summary": [asdict(cell) for cell in cells],
        "sentences": list(sentences),
        "runs": [_as_json(run) for run in runs],
    }
    path.write_text(
        json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
    )


def versions() -> dict[str, str]:
    """The versions that the numbers depend on."""
    return {
        "batchformer": bf.__version__,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "python": platform.python_version(),
    }


def _entry(cell: Cell) -> str:
    mean = NONE if cell.mean is None else f"{cell.mean:.1f}"
    if cell.difference is None:
        return mean
    error = NONE if cell.standard_error is None else f"{cell.standard_error:.1f}"
    return f"{mean}\n{cell.difference:+.1f} ± {error}"


def _as_json(run: Run) -> dict[str, Any]:
    return {
        "arm": run.arm,
        "seed": run.data.seed,
        "training_images_per_class": run.data.counts.tolist(),
        "accuracy_per_class": [None if math.isnan(value) else value for value in run.per_class],
        "groups": {name: list(labels) for name, labels in run.data.groups.items()},
        "curve": vars(run.curve),
    }
