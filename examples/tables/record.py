"""All results of a table in one small file, from which a report and its page are made without a run."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from examples.tables.results import Result
from examples.tables.table import Job, Outcome, Table

UNIT = 1e-5  # relations are whole multiples of it in a file
OF_JOB = ("system", "arm", "seed", "size", "lengthened", "device")


def as_document(table: Table, results: Sequence[Result]) -> dict[str, Any]:
    """The results in types that JSON has: each different setting and origin once, and one run's relations."""
    kept = [result for result in results if not result.job.changes]
    settings: list[dict[str, Any]] = []
    origins: list[dict[str, Any]] = []
    runs = [
        {
            **{name: getattr(result.job, name) for name in OF_JOB},
            "metrics": dict(result.outcome.metrics),
            "entropy": result.outcome.entropy,
            "diverged": result.outcome.diverged,
            "seconds": result.seconds,
            "settings": _place(result.settings, settings),
            "origin": _place({"versions": result.versions, "origin": result.origin}, origins),
        }
        for result in kept
    ]
    relations = None
    if (related := related_run(kept)) is not None:
        relations = {
            "run": kept.index(related),
            "unit": UNIT,
            "matrix": _in_units(related.outcome.relations),
            "untrained": _in_units(related.outcome.untrained_relations),
            "labels": related.outcome.labels,
        }
    return {
        "table": table.name,
        "settings": settings,
        "origins": origins,
        "relations": relations,
        "runs": runs,
    }


def related_run(results: Sequence[Result]) -> Result | None:
    """The run whose relations are drawn: of those from before training, too, or else the first."""
    having = [result for result in results if result.outcome.relations is not None]
    both = [result for result in having if result.outcome.untrained_relations is not None]
    return next(iter(both + having), None)


def write_record(path: Path, document: Mapping[str, Any]) -> None:
    """Write a document, one run on each line."""
    rest = {name: value for name, value in document.items() if name != "runs"}
    head = json.dumps(rest, ensure_ascii=False, allow_nan=False)
    runs = ",\n".join(json.dumps(run, ensure_ascii=False, allow_nan=False) for run in document["runs"])
    path.write_text(f'{head[:-1]}, "runs": [\n{runs}\n]}}\n', encoding="utf-8")


def read_record(path: Path) -> list[Result]:
    """The results of a file of `write_record`."""
    document = json.loads(path.read_text(encoding="utf-8"))
    results = []
    for run in document["runs"]:
        origin = document["origins"][run["origin"]]
        results.append(
            Result(
                Job(**{name: run[name] for name in OF_JOB if name in run}),
                Outcome(run["metrics"], run["entropy"], diverged=run["diverged"]),
                run["seconds"],
                document["settings"][run["settings"]],
                origin["versions"],
                origin["origin"],
            )
        )
    if (relations := document["relations"]) is not None:
        unit, of = relations["unit"], results[relations["run"]]
        outcome = replace(
            of.outcome,
            relations=_from_units(relations["matrix"], unit),
            untrained_relations=_from_units(relations.get("untrained"), unit),
            labels=relations["labels"],
        )
        results[relations["run"]] = replace(of, outcome=outcome)
    return results


def _in_units(matrix: list[list[float]] | None) -> list[list[int]] | None:
    return None if matrix is None else [[round(share / UNIT) for share in row] for row in matrix]


def _from_units(matrix: list[list[int]] | None, unit: float) -> list[list[float]] | None:
    return None if matrix is None else [[share * unit for share in row] for row in matrix]


def _place(value: dict[str, Any], values: list[dict[str, Any]]) -> int:
    """The index of a value in the list of different ones; a new value is added."""
    if value not in values:
        values.append(value)
    return values.index(value)
