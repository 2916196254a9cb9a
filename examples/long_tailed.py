"""Long-tailed recognition with and without BatchFormer, on digits or on your own images.

    python -m examples.long_tailed --data DIR --train-list train.txt --test-list test.txt

With `--validation-list` there is also the accuracy after calibration.
The same on letters is the first of the tables: `python -m examples.tables long_tailed`.
"""

import argparse
import sys
from pathlib import Path

from examples.tables.__main__ import main as run_tables
from examples.tables.long_tailed.image_lists import ListError
from examples.tables.long_tailed.own_images import ARCHITECTURES, LOSSES, Digits, Listed, Training, table_of
from examples.tables.options import at_least

LISTS = ("data", "train_list", "test_list")
# What only lists have, and defaults.
OF_LISTS = {"model": ARCHITECTURES[0], "image_size": 224, "loading": 0, "validation_list": None}


def main(arguments: list[str] | None = None) -> int:
    """Exit status; a bad option or list ends the program with a message and status 2."""
    parser = make_parser()
    values, rest = parser.parse_known_args(arguments)
    source = _source(parser, values)
    given = {name: value for name in ("steps", "batch_size", "loss") if (value := getattr(values, name))}
    decay = {} if isinstance(source, Digits) else {"weight_decay": 5e-4}
    table = table_of(source, Training(**given, **decay))
    try:
        if isinstance(source, Listed):
            source.data(0)  # reads and checks the lists
        return run_tables([table.name, *rest], {table.name: table})
    except ListError as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")


def make_parser() -> argparse.ArgumentParser:
    """The parser for the source of the images; all other options are those of the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.long_tailed",
        allow_abbrev=False,  # or a misspelt option of the tables may be taken for another
        description=f"{__doc__.splitlines()[0]} With all options of `python -m examples.tables`.",
    )
    parser.add_argument("--steps", type=at_least(1), help="training steps of a run (default: 600)")
    parser.add_argument("--loss", choices=LOSSES, help=f"(default: {LOSSES[0]})")
    parser.add_argument("--batch-size", type=at_least(2), help="(default: 128)")
    digits = parser.add_argument_group("digits", "scikit-learn's digits, made long-tailed")
    digits.add_argument(
        "--imbalance",
        type=at_least(1, float),
        help="training images of the most frequent class over those of the rarest (default: 50)",
    )
    lists = parser.add_argument_group("lists", "your own images, in the list format of ImageNet-LT")
    lists.add_argument("--data", type=Path, metavar="DIR", help="where the paths in the lists start")
    lists.add_argument("--train-list", type=Path, metavar="FILE", help="a path and a label a line")
    lists.add_argument("--test-list", type=Path, metavar="FILE")
    lists.add_argument(
        "--validation-list", type=Path, metavar="FILE", help="for calibrated accuracies (default: none)"
    )
    lists.add_argument("--model", choices=ARCHITECTURES, help=f"(default: {ARCHITECTURES[0]})")
    lists.add_argument("--image-size", type=at_least(32), help="pixels (default: 224)")
    lists.add_argument(
        "--loading", type=at_least(0), help="processes that load the images of a run (default: 0)"
    )
    return parser


def _source(parser: argparse.ArgumentParser, values: argparse.Namespace) -> Digits | Listed:
    missing = [_flag(name) for name in LISTS if getattr(values, name) is None]
    if 0 < len(missing) < len(LISTS):
        parser.error(f"--data, --train-list and --test-list go together, got no {' and no '.join(missing)}")
    if missing:
        for name in OF_LISTS:
            if getattr(values, name) is not None:
                parser.error(f"{_flag(name)}: only with --data, --train-list and --test-list")
        return Digits(*([] if values.imbalance is None else [values.imbalance]))
    if values.imbalance is not None:
        parser.error("--imbalance: only for the digits; the lists say how many images a class has")
    model, image_size, loading, validation = (
        default if getattr(values, name) is None else getattr(values, name)
        for name, default in OF_LISTS.items()
    )
    return Listed(values.data, values.train_list, values.test_list, model, image_size, loading, validation)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


if __name__ == "__main__":
    sys.exit(main())
