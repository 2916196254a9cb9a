"""The first of the tables in three minutes: `make demo`.

Balanced Softmax on long-tailed letters, all arms, with a quarter of the steps of the table. No arm is trained
to its end so soon: docs/tables.md has the results after all steps.
"""

import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from examples.tables import long_tailed
from examples.tables.__main__ import main as run_tables
from examples.tables.table import Job, Outcome

STEPS = long_tailed.RECIPE.steps // 4


def settings(job: Job) -> Mapping[str, Any]:
    """Those of the table, but for the steps."""
    return long_tailed.settings(_shorter(job))


def train(job: Job) -> Outcome:
    """One run."""
    return long_tailed.train(_shorter(job))


def _shorter(job: Job) -> Job:
    steps = 2 * STEPS if job.lengthened else STEPS
    return job if job.quick else replace(job, changes=(("steps", steps),))


TABLE = replace(
    long_tailed.TABLE,
    name="demo",
    title=f"Long-tailed recognition, {STEPS} of {long_tailed.RECIPE.steps} steps",
    systems=(long_tailed.BALANCED,),
    settings=settings,
    train=train,
    seeds=4,
)


def main(arguments: list[str] | None = None) -> int:
    """Exit status."""
    given = sys.argv[1:] if arguments is None else arguments
    # How far the baseline is from convergence, the full table says.
    return run_tables([TABLE.name, "--no-converged", "--out", "results", *given], {TABLE.name: TABLE})


if __name__ == "__main__":
    sys.exit(main())
