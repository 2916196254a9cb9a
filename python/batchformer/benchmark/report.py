"""The result of a run: a row for each shape, as a table, as JSON and as a picture."""

import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.table import Table

from batchformer._extension import BUILT_FOR
from batchformer.benchmark.competitors import COMPILED, EAGER, GRAPHED, OURS, OWN_KEYS, PRODUCTS
from batchformer.benchmark.flops import Flops
from batchformer.benchmark.launches import Launches
from batchformer.benchmark.timing import Times
from batchformer.hardware import processor


@dataclass(frozen=True)
class Row:
    """What was measured of one shape; a competitor that did not run is not in the dicts."""

    shape: str
    path: str  # which implementation ran our layer
    times: dict[str, dict[str, Times]]
    saved: dict[str, float]  # floats for each element of the input, M C
    peak: dict[str, float]
    flops: Flops
    fma_share: dict[str, float]  # of the processor's peak, that a step reaches
    dtype: str = "float32"
    first: dict[str, float] = field(default_factory=dict)  # seconds of the first step, on a device
    launches: dict[str, Launches] = field(default_factory=dict)  # on a device
    declined: list[str] = field(default_factory=list)  # why our kernels for a device did not run

    def ratio(self, numerator: str, denominator: str, part: str = "step") -> float | None:
        """Ratio of the medians of two competitors."""
        above, below = (self.times.get(name, {}).get(part) for name in (numerator, denominator))
        return above.median / below.median if above and below else None


def machine(device: torch.device, threads: int) -> dict[str, str]:
    """What the numbers depend on."""
    on_device = {}
    if device.type == "cuda":
        on_device = {"cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version())}
    return {
        "device": torch.cuda.get_device_name(device) if on_device else processor(),
        **on_device,
        "threads": str(threads),
        "torch": torch.__version__,
        "built for torch": BUILT_FOR,
        "cpu capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
    }


Cell = Callable[[Row], str]


def _columns(*, on_device: bool) -> list[tuple[str, Cell]]:
    """Heading and cell of each column; milliseconds with more digits where steps are short."""
    digits = 3 if on_device else 1
    names = (OURS, EAGER, COMPILED, GRAPHED, PRODUCTS)
    return [
        ("path\nof ours", lambda row: row.path),
        *((f"{_heading(name)}\nms", partial(_milliseconds, name=name, digits=digits)) for name in names),
        *(
            (f"{_heading(name)}\n/ ours", partial(_ratio, of=name, to=OURS))
            for name in (EAGER, COMPILED, GRAPHED)
            if on_device or name == EAGER
        ),
        ("ours /\nproducts", partial(_ratio, of=OURS, to=PRODUCTS)),
        ("forward:\neager / ours", partial(_ratio, of=EAGER, to=OURS, part="forward")),
        ("ours /\nown keys", partial(_ratio, of=OURS, to=OWN_KEYS)),
        ("share of\nFMA peak", lambda row: _number(row.fma_share.get(OURS))),
        ("kernels ours,\neager, compile", _kernels),
        ("busy ours,\neager, ms", _busy),
        ("saved ours,\neager", lambda row: _pair(row.saved)),
        ("peak ours,\neager", lambda row: _pair(row.peak)),
        ("first step, s:\nours, eager, compile", _first),
    ]


def table(rows: Sequence[Row]) -> Table:
    """Milliseconds, ratios and memory of every shape; a column without a number is left out."""
    result = Table(box=None, header_style="bold", pad_edge=False)
    result.add_column("shape", no_wrap=True)
    columns = [[row.shape for row in rows]]
    for heading, cell in _columns(on_device=any(row.launches or row.first for row in rows)):
        cells = [cell(row) for row in rows]
        if any(text.strip("-, ") for text in cells):
            result.add_column(heading, justify="left" if heading.startswith("path") else "right")
            columns.append(cells)
    for cells_of_row in zip(*columns, strict=True):
        result.add_row(*cells_of_row)
    return result


def write_json(path: Path, rows: Sequence[Row], facts: dict[str, str], options: dict[str, str]) -> None:
    """Write everything that was measured, on what and how; times in seconds."""
    document = {"machine": facts, "options": options, "rows": [asdict(row) for row in rows]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")


def draw(path: Path, rows: Sequence[Row], title: str) -> None:
    """Write bars for each shape, as multiples of its bare matrix products."""
    colours = {OURS: "#0072b2", EAGER: "#999999", COMPILED: "#e69f00", GRAPHED: "#009e73"}
    names = [name for name in colours if any(name in row.times for row in rows)]
    figure = Figure(figsize=(10, max(0.55, 0.18 * len(names)) * len(rows) + 1.6))
    axes = figure.subplots()
    height = 0.8 / len(names)
    places = np.arange(len(rows))
    for number, name in enumerate(names):
        ratios = [row.ratio(name, PRODUCTS) for row in rows]
        lengths = [0.0 if ratio is None else ratio for ratio in ratios]
        bars = axes.barh(places + number * height, lengths, height, color=colours[name], label=name)
        labels = axes.bar_label(bars, [_number(ratio) for ratio in ratios], padding=3, fontsize=8)
        for label in labels:
            label.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.5})  # over the line at 1
    axes.axvline(1, color="black", linewidth=1)
    axes.set_yticks(places + height * (len(names) - 1) / 2, [row.shape for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel("time of a training step, as a multiple of its bare matrix products")
    axes.set_title(title, fontsize=10)
    axes.margins(x=0.1)
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.75 / figure.get_figheight()), ncols=4, frameon=False
    )
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, bbox_inches="tight")


def _heading(name: str) -> str:
    return {GRAPHED: "reduce-\noverhead"}.get(name, name)


def _milliseconds(row: Row, name: str, digits: int) -> str:
    return _number(1e3 * row.times[name]["step"].median, digits) if name in row.times else "-"


def _ratio(row: Row, of: str, to: str, part: str = "step") -> str:
    return _number(row.ratio(of, to, part))


def _pair(values: dict[str, float]) -> str:
    return f"{_number(values.get(OURS), 1)}, {_number(values.get(EAGER), 1)}"


def _kernels(row: Row) -> str:
    ran = (row.launches.get(name) for name in (OURS, EAGER, COMPILED))
    return ", ".join("-" if launches is None else str(launches.kernels) for launches in ran)


def _busy(row: Row) -> str:
    ran = (row.launches.get(name) for name in (OURS, EAGER))
    return ", ".join("-" if launches is None else f"{1e3 * launches.busy:.3f}" for launches in ran)


def _first(row: Row) -> str:
    return ", ".join(_number(row.first.get(name)) for name in (OURS, EAGER, COMPILED))


def _number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
