"""The result of a run: a row for each shape, as a table, as JSON and as a picture."""

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.table import Table

from batchformer._extension import BUILT_FOR
from batchformer.benchmark.competitors import COMPILED, EAGER, OURS, OWN_KEYS, PRODUCTS
from batchformer.benchmark.flops import Flops
from batchformer.benchmark.timing import Times


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

    def ratio(self, numerator: str, denominator: str, part: str = "step") -> float | None:
        """Ratio of the medians of two competitors."""
        if numerator not in self.times or denominator not in self.times:
            return None
        return self.times[numerator][part].median / self.times[denominator][part].median


def machine(device: torch.device, threads: int) -> dict[str, str]:
    """What the numbers depend on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {
        "device": name,
        "threads": str(threads),
        "torch": torch.__version__,
        "built for torch": BUILT_FOR,
        "cpu capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
    }


def table(rows: Sequence[Row]) -> Table:
    """Milliseconds, ratios and memory of every shape."""
    compiled = any(COMPILED in row.times for row in rows)
    own_keys = any(OWN_KEYS in row.times for row in rows)
    result = Table(box=None, header_style="bold", pad_edge=False)
    result.add_column("shape", no_wrap=True)
    result.add_column("path\nof ours")
    for heading in ("ours", "eager", *(["compile"] if compiled else []), "products"):
        result.add_column(f"{heading}\nms", justify="right")
    for heading in (
        "eager\n/ ours",
        "ours /\nproducts",
        "forward:\neager / ours",
        *(["ours /\nown keys"] if own_keys else []),
        "share of\nFMA peak",
        "saved ours,\neager",
        "peak ours,\neager",
    ):
        result.add_column(heading, justify="right")
    for row in rows:
        names = (OURS, EAGER, *([COMPILED] if compiled else []), PRODUCTS)
        result.add_row(
            row.shape,
            row.path,
            *(_milliseconds(row, name) for name in names),
            _number(row.ratio(EAGER, OURS)),
            _number(row.ratio(OURS, PRODUCTS)),
            _number(row.ratio(EAGER, OURS, "forward")),
            *([_number(row.ratio(OURS, OWN_KEYS))] if own_keys else []),
            _number(row.fma_share.get(OURS)),
            f"{_number(row.saved.get(OURS), 1)}, {_number(row.saved.get(EAGER), 1)}",
            f"{_number(row.peak.get(OURS), 1)}, {_number(row.peak.get(EAGER), 1)}",
        )
    return result


def write_json(path: Path, rows: Sequence[Row], facts: dict[str, str], options: dict[str, str]) -> None:
    """Write everything that was measured, on what and how; times in seconds."""
    document = {"machine": facts, "options": options, "rows": [asdict(row) for row in rows]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")


def draw(path: Path, rows: Sequence[Row], title: str) -> None:
    """Write bars for each shape, as multiples of its bare matrix products."""
    colours = {OURS: "#0072b2", EAGER: "#999999", COMPILED: "#e69f00"}
    names = [name for name in colours if any(name in row.times for row in rows)]
    figure = Figure(figsize=(10, 0.55 * len(rows) + 1.6))
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
        loc="upper center", bbox_to_anchor=(0.5, -0.75 / figure.get_figheight()), ncols=3, frameon=False
    )
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, bbox_inches="tight")


def _milliseconds(row: Row, name: str) -> str:
    return f"{1e3 * row.times[name]['step'].median:.1f}" if name in row.times else "-"


def _number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
