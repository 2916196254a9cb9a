"""The results of runs on disk, one file for each run, written when it ends and not computed again."""

import functools
import json
import math
import os
import platform
import subprocess
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import batchformer as bf
from batchformer.hardware import processor
from examples.tables.code import digest
from examples.tables.table import CPU, CUDA, Job, Outcome, Table

PACKAGES = ("lightly", "matplotlib", "numpy", "pillow", "scikit-learn", "timm", "torchvision", "transformers")


@dataclass(frozen=True)
class Result:
    """A run with its outcome and its cost."""

    job: Job
    outcome: Outcome
    seconds: float
    settings: dict[str, Any]
    versions: dict[str, str]
    origin: dict[str, str]


class Results:
    """The results of one table and device, in a folder of its own under `root`."""

    def __init__(self, root: Path, table: Table, device: str = CPU) -> None:
        self.folder = (root if device == CPU else root / device) / table.name
        self._table = table

    def load(self, job: Job) -> Result | None:
        """The result of a job, None if there is none, or one of other settings, code or versions."""
        path = self._path(job)
        if not path.exists():
            return None
        return self._checked(job, json.loads(path.read_text(encoding="utf-8")))

    def save(self, job: Job, outcome: Outcome, seconds: float) -> Result:
        """Write the result of a job, whole or not at all; a metric that is not finite becomes None."""
        metrics = {name: _known(value) for name, value in outcome.metrics.items()}
        outcome = replace(outcome, metrics=metrics, entropy=_known(outcome.entropy))
        result = Result(job, outcome, round(seconds, 2), self._settings(job), versions(), origin(job.device))
        document = {
            "job": asdict(job),
            "settings": result.settings,
            "versions": result.versions,
            "origin": result.origin,
            "seconds": result.seconds,
            "outcome": asdict(outcome),
        }
        path = self._path(job)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(document, allow_nan=False) + "\n", encoding="utf-8")
        partial.replace(path)
        return result

    def load_all(self, jobs: Iterable[Job]) -> list[Result]:
        """The results of those jobs that have one."""
        return [result for job in jobs if (result := self.load(job)) is not None]

    def at_full_length(self) -> list[Result]:
        """All results with the table's own settings, from any command but --quick."""
        found = []
        for path in sorted(self.folder.glob("*/*.json")):
            stored = json.loads(path.read_text(encoding="utf-8"))
            if "job" not in stored or stored["job"].pop("changes"):
                continue
            job = Job(**stored["job"])
            if not job.quick and job.system in self._table.systems:
                result = self._checked(job, stored)
                found += [] if result is None else [result]
        return sorted(found, key=lambda result: result.job.seed)

    def _checked(self, job: Job, stored: dict[str, Any]) -> Result | None:
        """The result that a file has of a job, None if it does not fit."""
        names = ("seconds", "settings", "versions", "origin")
        result = Result(job, Outcome(**stored["outcome"]), *(stored[name] for name in names))
        return result if self.fits(result) else None

    def fits(self, result: Result, also_code: bool = True) -> bool:
        """Whether a run of this checkout would have the settings of the result, and its code and versions."""
        own = self._settings(result.job)
        if also_code:
            return (result.settings, result.versions) == (own, versions())
        return result.settings | {"code": None} == own | {"code": None}

    def _settings(self, job: Job) -> dict[str, Any]:
        settings = dict(self._table.settings(job)) | {"code": digest(self._table.module)}
        if job.device != CPU:
            settings["device"] = job.device
        return json.loads(json.dumps(settings))  # tuples are lists in a file

    def _path(self, job: Job) -> Path:
        words = [job.arm, str(job.seed)]
        words += [f"{name}={value}" for name, value in job.changes]
        words += ["twice"] * job.lengthened + ["quick"] * job.quick
        return self.folder / job.system / ("-".join(words).replace("/", "_") + ".json")


def versions() -> dict[str, str]:
    """The versions that the numbers depend on."""
    found = {
        "batchformer": bf.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def origin(device: str = CPU) -> dict[str, str]:
    """When, on which machine and from which commit this process computes."""
    return {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "processor": torch.cuda.get_device_name() if device == CUDA else processor(),
        "cores": str(os.cpu_count()),
        "commit": _commit(),
    }


def _commit() -> str:
    """The commit of the checkout, marked if there are changes; "unknown" outside of a checkout."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit = subprocess.run(
            [*git, "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True, check=True
        )
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit.stdout.strip() + (" with changes" if changed.stdout.strip() else "")


def _known(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)
