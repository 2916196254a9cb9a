"""Train the tables of the method in miniature: `python -m examples.tables few_shot`."""

import sys
from collections.abc import Mapping

from rich.console import Console

from examples.tables.arms import BASELINE
from examples.tables.catalogue import TABLES
from examples.tables.options import Options, parse
from examples.tables.report import report
from examples.tables.results import Results
from examples.tables.running import run_all
from examples.tables.table import FULL, QUICK, Job, Table
from examples.tables.tuning import grid_jobs, show_tuning

INTERRUPTED = 130  # what shells have for it


def main(arguments: list[str] | None = None, tables: Mapping[str, Table] = TABLES) -> int:
    """Exit status: 0, or 130 after an interruption."""
    options = parse(tables, arguments)
    console = Console(highlight=False)
    for table in options.tables:
        jobs = jobs_of(table, options)
        if not jobs:
            continue
        results = Results(options.out, table, options.device)
        try:
            found = (
                results.load_all(jobs)
                if options.report
                else run_all(table, jobs, results, options.workers, console)
            )
        except KeyboardInterrupt:
            kept = len(results.load_all(jobs))
            console.print(
                f"Interrupted. {kept} of {len(jobs)} runs of {table.name} are done, and kept in "
                f"{options.out}; "
                f"the same command goes on from there, --report shows what there is.",
                markup=False,
            )
            return INTERRUPTED
        if options.tune:
            show_tuning(table, found, console)
            continue
        report(table, found, results.folder / "quick" if options.quick else results.folder, console)
        if len(found) < len(jobs):
            console.print(f"- {len(found)} of {len(jobs)} runs are on disk.", markup=False)
    return 0


def jobs_of(table: Table, options: Options) -> list[Job]:
    """The runs that are asked for, seed after seed, so that what is done after an interruption is paired."""
    systems, arms, seeds = options.systems_of(table), options.arms_of(table), options.seeds_of(table)
    if options.tune:
        return grid_jobs(table, systems, seeds, options.device)
    size = QUICK if options.quick else FULL
    common = {"size": size, "device": options.device}
    jobs = []
    for seed in seeds:
        jobs += [
            Job(system, arm, seed, **common)
            for system in systems
            for arm in arms
            if (system, arm) not in table.without
        ]
        if options.converged and BASELINE in arms:
            jobs += [Job(system, BASELINE, seed, lengthened=True, **common) for system in systems]
    return jobs


if __name__ == "__main__":
    sys.exit(main())
