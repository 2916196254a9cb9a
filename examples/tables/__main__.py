"""Train the tables of the method in miniature: `python -m examples.tables few_shot`."""

import argparse
import os
import sys
from pathlib import Path

from rich.console import Console

from examples.tables import TABLES
from examples.tables.report import report
from examples.tables.results import Results
from examples.tables.running import run_all
from examples.tables.table import FULL, QUICK, Job


def main(arguments: list[str] | None = None) -> int:
    """Exit status, 0."""
    tables = {table.name: table for table in TABLES}
    parser = argparse.ArgumentParser(
        prog="python -m examples.tables", description=__doc__.split(":")[0] + "."
    )
    parser.add_argument("tables", nargs="+", choices=tables, metavar="TABLE", help=", ".join(tables))
    parser.add_argument("--seeds", type=int, help="how many (default: the table's own)")
    parser.add_argument("--first-seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument("--system", action="append", help="only this one; can be given several times")
    parser.add_argument("--arm", action="append", help="only this one; can be given several times")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count(), help="runs at a time (default: one a core)"
    )
    parser.add_argument("--out", type=Path, default=Path("results/tables"), help="(default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="a few steps: a try, numbers without meaning")
    options = parser.parse_args(arguments)
    console = Console(highlight=False)
    for name in options.tables:
        table = tables[name]
        seeds = range(
            options.first_seed, options.first_seed + (options.seeds or (2 if options.quick else table.seeds))
        )
        jobs = [
            Job(system, arm, seed, QUICK if options.quick else FULL)
            for seed in seeds
            for system in options.system or table.systems
            for arm in options.arm or table.arms
        ]
        results = Results(options.out, table)
        report(table, run_all(table, jobs, results, options.workers, console), options.out / name, console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
