"""The command line of the tables: options, checked before anything is computed."""

import argparse
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from examples.tables.table import CPU, CUDA, TUNING_SEEDS, Table

ALL = "all"
QUICK_SEEDS = 2
TUNING_RUNS = 2  # seeds of each setting in tuning


@dataclass(frozen=True)
class Options:
    """What was asked for."""

    tables: tuple[Table, ...]
    seeds: int | None  # None: each table's own number
    first_seed: int
    systems: tuple[str, ...]  # empty: all of a table, or those of its short form
    arms: tuple[str, ...]  # empty: all of a table
    workers: int
    device: str
    out: Path
    quick: bool
    short: bool
    converged: bool
    tune: bool
    report: bool

    def systems_of(self, table: Table) -> tuple[str, ...]:
        """The systems that are asked for of a table, in its order."""
        own = table.short if self.short and table.short else table.systems
        return tuple(system for system in table.systems if system in (self.systems or own))

    def arms_of(self, table: Table) -> tuple[str, ...]:
        """The arms that are asked for of a table, in its order."""
        return tuple(arm for arm in table.arms if not self.arms or arm in self.arms)

    def seeds_of(self, table: Table) -> range:
        """The seeds that are asked for of a table."""
        number = self.seeds
        if number is None:
            number = table.short_seeds if self.short else table.seeds
            number = QUICK_SEEDS if self.quick else TUNING_RUNS if self.tune else number
        return range(self.first_seed, self.first_seed + number)


def parse(tables: Mapping[str, Table], arguments: list[str] | None = None) -> Options:
    """Options from a command line; a bad one ends the program with a message and exit status 2."""
    parser = _make_parser(tables)
    given = parser.parse_args(arguments)
    _check_modes(parser, given)
    chosen = _tables_of(parser, tables, given.tables)
    _check_names(parser, "--system", given.system, [system for table in chosen for system in table.systems])
    _check_names(parser, "--arm", given.arm, [arm for table in chosen for arm in table.arms])
    if given.tune and not any(table.grid for table in chosen):
        parser.error(f"--tune: {', '.join(table.name for table in chosen)}: no settings to try")
    first_seed = given.first_seed
    if first_seed is None:
        first_seed = TUNING_SEEDS if given.tune else 0
    options = Options(
        tables=chosen,
        seeds=given.seeds,
        first_seed=first_seed,
        systems=tuple(given.system),
        arms=tuple(given.arm),
        workers=given.workers,
        device=given.device,
        out=given.out,
        quick=given.quick,
        short=given.short,
        # By default only the full run checks convergence, as that takes runs of twice the steps.
        converged=not (given.quick or given.short or given.tune)
        if given.converged is None
        else given.converged,
        tune=given.tune,
        report=given.report,
    )
    _check_seeds(parser, options)
    _check_device(parser, options)
    _make_folder(parser, given.out)
    return options


def _check_modes(parser: argparse.ArgumentParser, given: argparse.Namespace) -> None:
    """Refuse options that have no meaning together."""
    if given.tune:
        for name in ("arm", "short", "quick", "converged"):
            if getattr(given, name):
                parser.error(f"--tune: tries settings of the baseline at full length, so not with --{name}")
    if given.quick and given.short:
        parser.error("--quick, --short: expected one of the two, got both")
    if given.quick and given.converged:
        parser.error("--converged: a few steps, twice as many, say nothing; not with --quick")


def _tables_of(
    parser: argparse.ArgumentParser, tables: Mapping[str, Table], names: Sequence[str]
) -> tuple[Table, ...]:
    """The tables of these names, each once."""
    for name in names:
        if name not in (*tables, ALL):
            parser.error(f"TABLE: expected one of {', '.join([*tables, ALL])}, got {name!r}")
    return tuple(tables[name] for name in (tables if ALL in names else dict.fromkeys(names)))


def _check_names(
    parser: argparse.ArgumentParser, flag: str, names: Sequence[str], known: Sequence[str]
) -> None:
    """Refuse names that are no system, or no arm, of the tables that are asked for."""
    for name in names:
        if name not in known:
            quoted = ", ".join(repr(each) for each in dict.fromkeys(known))
            parser.error(f"{flag}: expected one of {quoted}, got {name!r}")


def _make_folder(parser: argparse.ArgumentParser, folder: Path) -> None:
    """Make the folder of the results before anything is computed for it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out: cannot make the folder {folder} ({error.strerror})")
    if not os.access(folder, os.W_OK):
        parser.error(f"--out: cannot write into {folder}")


def _check_seeds(parser: argparse.ArgumentParser, options: Options) -> None:
    """Refuse to tune baselines on the seeds of the tables."""
    last = max(options.seeds_of(table)[-1] for table in options.tables)
    if options.tune and options.first_seed < TUNING_SEEDS:
        parser.error(
            f"--first-seed: expected at least {TUNING_SEEDS} with --tune, as the tables have those below, "
            f"got {options.first_seed}"
        )
    if not options.tune and last >= TUNING_SEEDS:
        parser.error(
            f"--seeds, --first-seed: expected seeds below {TUNING_SEEDS}, as baselines are tuned on those "
            f"from there on, got {last}"
        )


def _check_device(parser: argparse.ArgumentParser, options: Options) -> None:
    """Refuse a device that a table cannot train on, or that this machine lacks."""
    for table in options.tables:
        if options.device not in table.devices:
            parser.error(f"--device: {table.name}: trains on {', '.join(table.devices)} alone")
    if options.device == CUDA and not options.report and not torch.cuda.is_available():
        parser.error("--device: cuda: torch sees no CUDA device")


def _make_parser(tables: Iterable[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m examples.tables",
        description="Train the tables of the method in miniature. What is on disk is not computed again, "
        "so a command that was interrupted goes on when it is given once more.",
    )
    names = ", ".join([*tables, ALL])
    parser.add_argument("tables", nargs="+", metavar="TABLE", help=names)
    parser.add_argument("--seeds", type=at_least(1), help="how many (default: the table's own number)")
    parser.add_argument("--first-seed", type=at_least(0), help=f"(default: 0; with --tune {TUNING_SEEDS})")
    several = "can be given several times"
    parser.add_argument("--system", action="append", default=[], help=f"only this one; {several}")
    parser.add_argument("--arm", action="append", default=[], help=f"only this one; {several}")
    parser.add_argument(
        "--workers",
        type=at_least(1),
        default=os.cpu_count() or 1,
        help="runs at a time (default: one a core)",
    )
    parser.add_argument(
        "--device",
        choices=(CPU, CUDA),
        default=CPU,
        help="where models are trained; cuda has results of its own, in OUT/cuda (default: %(default)s)",
    )
    parser.add_argument("--out", type=Path, default=Path("results/tables"), help="(default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="a few steps: a try, numbers without meaning")
    parser.add_argument("--short", action="store_true", help="fewer seeds and systems, fixed for each table")
    parser.add_argument(
        "--converged",
        action=argparse.BooleanOptionalAction,
        help="also the baselines with twice the steps, which show whether they have converged "
        "(default: in the full run, not with --quick or --short)",
    )
    parser.add_argument(
        "--tune",
        action="store_true",
        help=f"instead, try the table's grid of settings on the baseline, on seeds from {TUNING_SEEDS} on",
    )
    parser.add_argument("--report", action="store_true", help="compute nothing: only what is on disk")
    return parser


def at_least(smallest: int, number: type[int] | type[float] = int) -> Callable[[str], float]:
    """A parser of a number in an argument, with an error message for smaller ones."""

    def checked(text: str) -> float:
        what = "an integer" if number is int else "a number"
        try:
            value = number(text)
        except ValueError:
            value = None
        if value is None or not smallest <= value < float("inf"):
            raise argparse.ArgumentTypeError(f"expected {what} of at least {smallest}, got {text!r}")
        return value

    return checked
