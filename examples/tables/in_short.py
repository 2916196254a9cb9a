"""The primary differences of all tables in one table, which page.py writes into docs/does-it-help.md."""

from collections.abc import Iterable, Mapping

from examples.tables.arms import ARMS, BASELINE, BATCHFORMER, SOFTENED, UNIFORM
from examples.tables.statistics import Difference
from examples.tables.summary import Summary, numbers

BEGIN, END = "<!-- written by python -m examples.tables.page -->\n", "<!-- as far as here -->"
CONTRASTS = (*(f"{arm} - {BASELINE}" for arm in (*ARMS[1:], SOFTENED)), f"{BATCHFORMER} - {UNIFORM}")
NAMES: Mapping[tuple[str, str], str] = {
    ("long_tailed", "Balanced Softmax"): "long-tailed",
    ("long_tailed", "Balanced Softmax, imbalance 50"): "imbalance 50",
    ("long_tailed", "RIDE"): "RIDE",
    ("long_tailed", "PaCo"): "PaCo",
    ("long_tailed", "Balanced Softmax, thin ResNet-18"): "thin ResNet-18",
    ("domains", "ERM"): "unseen domains",
    ("domains", "ERM, weights averaged"): "weights averaged",
    ("compositional", "Base and diacritic"): "zero-shot",
    ("detection", "Deformable DETR"): "Deformable DETR",
    ("detection", "Conditional DETR"): "Conditional DETR",
    ("detection", "DETR"): "DETR",
    ("panoptic", "DETR"): "panoptic DETR",
    ("larger_batches", "one process"): "batches of 8",
    ("larger_batches", "two processes"): "two processes of 8",
    ("contrastive", "MoCo v2"): "MoCo v2",
    ("contrastive", "MoCo v3"): "MoCo v3",
    ("classification", "DeiT, width 32"): "DeiT of width 32",
    ("classification", "DeiT, width 48"): "DeiT of width 48",
    ("classification", "DeiT, width 64"): "DeiT of width 64",
    ("few_shot", "Classifier and contrastive branch"): "few-shot",
}
"""What the page calls the systems of the tables, in its order."""


def rewritten(page: str, summaries: Iterable[Summary]) -> str:
    """The page with its table as the summaries have it.

    Raises:
        ValueError: a page without the two comments around its table.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"page: expected {BEGIN.strip()!r} and {END!r} around its table, got none")
    return before + begin + _table(summaries) + end + after


def _table(summaries: Iterable[Summary]) -> str:
    by_name = {summary.table.name: summary for summary in summaries}
    rows = [["", "n", *CONTRASTS], ["---"] * (2 + len(CONTRASTS))]
    for (table, system), name in NAMES.items():
        summary = by_name.get(table)
        if summary is None or system not in summary.systems:
            continue
        for column in summary.table.primary:
            of_row = [each for each in summary.primary if (each.system, each.column) == (system, column)]
            found = {each.contrast: each for each in of_row if each.contrast in CONTRASTS}
            shown = [_text(found[contrast]) if contrast in found else "" for contrast in CONTRASTS]
            rows.append([f"{name}, {column}", numbers(each.count for each in found.values()), *shown])
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)


def _text(each: Difference) -> str:
    return f"{each.mean:+.1f} ({each.low:+.1f} to {each.high:+.1f})" + " *" * each.holds
