"""What a table is, and one run of it."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from examples.tables.arms import ARMS, BASELINE, BATCHFORMER, UNIFORM

FULL, QUICK = "full", "quick"
CPU, CUDA = "cpu", "cuda"
TUNING_SEEDS = 100  # the first seed of those that baselines were tuned on; tables count from 0


@dataclass(frozen=True)
class Job:
    """One run: a system of a table, in one arm, on one seed."""

    system: str
    arm: str
    seed: int
    size: str = FULL  # QUICK shows that everything runs; its numbers mean nothing
    lengthened: bool = False  # twice the steps, to see whether the baseline has converged
    changes: tuple[tuple[str, Any], ...] = ()  # settings other than the table's, for tuning
    device: str = CPU  # of the training; images are drawn, and models begin and are judged, on the CPU

    @property
    def quick(self) -> bool:
        """Whether it is only a quick run, to see that everything works."""
        return self.size == QUICK

    def adapted(
        self, chosen: Mapping[str, Any], quick: Mapping[str, Any], longer: tuple[str, ...] = ("steps",)
    ) -> dict[str, Any]:
        """The settings of this run, made from those of a run at full length.

        Args:
            chosen: the settings at full length.
            quick: the values for a quick run.
            longer: the names of the settings that are doubled in a lengthened run.
        """
        found = {**chosen, **(quick if self.quick else {})}
        if self.lengthened:
            found |= {name: 2 * found[name] for name in longer}
        return found | dict(self.changes)


@dataclass(frozen=True)
class Outcome:
    """The outcome of a run."""

    metrics: Mapping[str, float | None]  # by the names of the table's columns, in %; None where there is none
    entropy: float | None = None  # of the attention at the end of training, over that of uniform attention
    relations: list[list[float]] | None = (
        None  # [N, N], mean over the heads; of one run of BatchFormer, if any
    )
    untrained_relations: list[list[float]] | None = None  # the same before training
    labels: list[int] | list[str] | None = None  # [N], the class of each row of the relations
    diverged: str | None = None  # how the training diverged; then there are no metrics


@dataclass(frozen=True)
class Table:
    """A table of the method in miniature."""

    name: str
    title: str
    systems: tuple[str, ...]
    columns: tuple[str, ...]
    primary: tuple[str, ...]  # the columns that the sentences speak of, for which Holm corrects
    settings: Callable[[Job], Mapping[str, Any]]  # all that decides the numbers, in types that JSON has
    train: Callable[[Job], Outcome]
    paper: str  # the papers' own figures, and what differs here; Markdown
    tuned: str = ""  # how the settings of the baselines were chosen; Markdown
    arms: tuple[str, ...] = ARMS
    without: tuple[tuple[str, str], ...] = ()  # systems with the arms that they do not have
    contrasts: tuple[tuple[str, str], ...] = ((BATCHFORMER, UNIFORM),)  # besides each arm minus baseline
    seeds: int = 6
    short: tuple[str, ...] = ()  # the systems of --short; all if there are none
    short_seeds: int = 2
    devices: tuple[str, ...] = (CPU, CUDA)  # that its runs can train on
    grid: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)  # settings tried in tuning the baseline

    @property
    def module(self) -> str:
        """The name of the module that trains its runs."""
        train = self.train.func if isinstance(self.train, functools.partial) else self.train
        return train.__module__

    def arms_of(self, system: str) -> tuple[str, ...]:
        """The arms that a system has."""
        return tuple(arm for arm in self.arms if (system, arm) not in self.without)

    def contrasts_of(self, system: str) -> list[tuple[str, str]]:
        """The comparisons in a system: every arm with the baseline, and the table's own contrasts.

        BatchFormer against uniform attention, which most tables have, shows the effect of choosing which
        samples to attend to.
        """
        arms = self.arms_of(system)
        with_baseline = [(arm, BASELINE) for arm in arms if arm != BASELINE and BASELINE in arms]
        return with_baseline + [pair for pair in self.contrasts if {*pair} <= {*arms}]
