"""The results of runs on disk, one file a run, written as it ends: what is there is not computed again."""

import json
import os
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import batchformer as bf
from examples.tables.table import Job, Outcome, Table


@dataclass(frozen=True)
class Result:
    """A run with what it gave, and what it cost."""

    job: Job
    outcome: Outcome
    seconds: float
    settings: dict[str, Any]
    versions: dict[str, str]


class Results:
    """The results of one table, in a folder of its own under `root`."""

    def __init__(self, root: Path, table: Table) -> None:
        self._folder = root / table.name
        self._table = table

    def load(self, job: Job) -> Result | None:
        """The result of a job, None if there is none, or one of other settings, which is left where it is."""
        path = self._path(job)
        if not path.exists():
            return None
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["settings"] != self._settings(job):
            return None
        return Result(
            job, Outcome(**stored["outcome"]), stored["seconds"], stored["settings"], stored["versions"]
        )

    def save(self, job: Job, outcome: Outcome, seconds: float) -> Result:
        """Write the result of a job, whole or not at all."""
        result = Result(job, outcome, seconds, self._settings(job), versions())
        document = {
            "job": asdict(job),
            "settings": result.settings,
            "versions": result.versions,
            "seconds": round(seconds, 2),
            "outcome": asdict(outcome),
        }
        path = self._path(job)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(document, allow_nan=False) + "\n", encoding="utf-8")
        partial.replace(path)
        return result

    def load_all(self, jobs: Iterator[Job] | list[Job]) -> list[Result]:
        """The results of those jobs that have one."""
        return [result for job in jobs if (result := self.load(job)) is not None]

    def _settings(self, job: Job) -> dict[str, Any]:
        return json.loads(json.dumps(dict(self._table.settings(job))))  # tuples are lists in a file

    def _path(self, job: Job) -> Path:
        words = [job.arm, str(job.seed)]
        words += [f"{name}={value}" for name, value in job.changes]
        words += ["twice"] * job.lengthened + ["quick"] * job.quick
        return self._folder / job.system / ("-".join(words).replace("/", "_") + ".json")


def versions() -> dict[str, str]:
    """The versions that the numbers depend on."""
    return {
        "batchformer": bf.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
