"""A table whose runs take no time, for the tests of what is made of results."""

import numpy as np

from examples.tables.arms import ARMS, ATTEND, BATCHFORMER, SOFTENED
from examples.tables.results import Result
from examples.tables.table import Job, Outcome, Table

ENTROPIES = {"batch": 0.998, "uniform": 1.0, "alone": 0.0}
VERSIONS = {"torch": "2.0", "batchformer": "1.0", "python": "3.11"}
ORIGIN = {"date": "2026-01-02", "processor": "abacus", "cores": "2", "commit": "0123456789"}


def settings(job):
    return {"steps": 2 if job.quick else 20 * (1 + job.lengthened)} | dict(job.changes)


def train(job):
    """Numbers that depend on the job alone."""
    shared = np.random.default_rng(job.seed).normal(70, 3)
    own = np.random.default_rng([job.seed, *job.arm.encode(), *job.system.encode(), job.lengthened])
    metrics = dict(
        zip(TABLE.columns, (shared + own.normal(0, 0.3, len(TABLE.columns))).tolist(), strict=True)
    )
    if job.arm == SOFTENED:
        metrics["All"] += 3
    if job.arm == BATCHFORMER and job.seed == 0:
        relations = own.random((6, 6))
        relations = (relations / relations.sum(1, keepdims=True)).tolist()
        even = [[1 / 6] * 6] * 6
        return Outcome(metrics, ENTROPIES[ATTEND[job.arm]], relations, even, [0, 0, 1, 1, 2, 2])
    return Outcome(metrics, ENTROPIES[ATTEND[job.arm]] if job.arm in ATTEND else None)


TABLE = Table(
    name="made_up",
    title="A table that is made up",
    systems=("First system, with a long name of many words", "Second [system]"),
    columns=("All", "Many", "Medium", "Few", "All, calibrated", "Few, calibrated"),
    primary=("All", "All, calibrated"),
    settings=settings,
    train=train,
    paper="The paper has 55.8 on ImageNet-LT.",
    tuned="All of the baseline on seed 100: 70.1, used; 69.8.",
    arms=(*ARMS, SOFTENED),
    seeds=4,
    short=("Second [system]",),
    short_seeds=3,
    grid={"learning_rate": (0.1, 0.2), "weight_decay": (0.0, 0.1, 0.2)},
)


def jobs(seeds=range(4), systems=TABLE.systems, arms=TABLE.arms, lengthened=True):
    found = [Job(system, arm, seed) for seed in seeds for system in systems for arm in arms]
    return found + [
        Job(s, "baseline", seed, lengthened=True) for seed in seeds for s in systems if lengthened
    ]


def result(job, outcome=None):
    return Result(job, outcome or train(job), 1.5, settings(job), VERSIONS, ORIGIN)


def results(*args, **options):
    return [result(job) for job in jobs(*args, **options)]


def named(*tables):
    """Tables as the program takes them."""
    return {table.name: table for table in tables}


def made(values, arms=("baseline", "BatchFormer"), column="All", system=TABLE.systems[0], lengthened=False):
    """A result for each seed and arm, of values `[seeds][arms]`; None is a run that is not there."""
    return [
        result(Job(system, arm, seed, lengthened=lengthened), Outcome({column: value}))
        for seed, of_seed in enumerate(values)
        for arm, value in zip(arms, of_seed, strict=True)
        if value is not None
    ]
