"""The command line: options, checked before anything is computed."""

import argparse
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from longtail.losses import LOSSES

ARCHITECTURES = ("resnet18", "resnet50")
LISTS = ("data", "train_list", "test_list")
OF_LISTS = {"model": "resnet18", "image_size": 224, "workers": 0}  # options of the lists, and their defaults
DEFAULTS = {"seeds": 6, "steps": 600}
QUICK = {"seeds": 2, "steps": 20}


@dataclass(frozen=True)
class Options:
    """What was asked for; `imbalance` is None with lists, and the fields after it are None without."""

    seeds: int
    steps: int
    loss: str
    batch_size: int
    device: torch.device
    threads: int
    out: Path
    quick: bool
    imbalance: float | None
    data: Path | None
    train_list: Path | None
    test_list: Path | None
    model: str | None
    image_size: int | None
    workers: int | None

    def as_json(self) -> dict[str, Any]:
        """Every option by name, in types that JSON has."""
        return {
            name: str(value) if isinstance(value, Path | torch.device) else value
            for name, value in asdict(self).items()
        }


def make_parser() -> argparse.ArgumentParser:
    """The parser of examples/long_tailed.py."""
    parser = argparse.ArgumentParser(
        prog="long_tailed.py",
        description="Long-tailed recognition without BatchFormer, with it, and with a control in which each "
        "sample attends only to itself: accuracy over All, Many, Medium and Few-shot classes.",
    )
    whole = _at_least(1, int)
    parser.add_argument("--seeds", type=whole, help="how many; 0, 1, … (default: 6)")
    parser.add_argument("--steps", type=whole, help="training steps of a run (default: 600)")
    parser.add_argument("--loss", choices=LOSSES, default=LOSSES[0], help="(default: %(default)s)")
    parser.add_argument("--batch-size", type=_at_least(2, int), default=128, help="(default: %(default)s)")
    parser.add_argument("--device", type=_device, default="cpu", help="cpu, cuda, cuda:1, … (default: cpu)")
    parser.add_argument("--threads", type=whole, help="of torch (default: 1; with lists, torch's own choice)")
    parser.add_argument(
        "--out", type=Path, default=Path("results/long_tailed"), help="(default: %(default)s)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="2 seeds, 20 steps: a try, numbers without meaning"
    )
    digits = parser.add_argument_group("digits", "scikit-learn's digits, made long-tailed")
    digits.add_argument(
        "--imbalance",
        type=_at_least(1, float),
        help="training images of the most frequent class over those of the rarest (default: 50)",
    )
    lists = parser.add_argument_group("lists", "your own images, in the list format of ImageNet-LT")
    lists.add_argument("--data", type=Path, metavar="DIR", help="where the paths in the lists start")
    lists.add_argument("--train-list", type=Path, metavar="FILE", help="a path and a label a line")
    lists.add_argument("--test-list", type=Path, metavar="FILE")
    lists.add_argument("--model", choices=ARCHITECTURES, help="(default: resnet18)")
    lists.add_argument("--image-size", type=_at_least(32, int), help="pixels (default: 224)")
    lists.add_argument("--workers", type=_at_least(0, int), help="processes that load images (default: 0)")
    return parser


def parse(parser: argparse.ArgumentParser, arguments: list[str] | None) -> Options:
    """Options from a command line; a bad one ends the program with a sentence and exit status 2."""
    values = vars(parser.parse_args(arguments))
    for name, default in (QUICK if values["quick"] else DEFAULTS).items():
        values[name] = default if values[name] is None else values[name]
    missing = [_flag(name) for name in LISTS if values[name] is None]
    if 0 < len(missing) < len(LISTS):
        parser.error(f"--data, --train-list and --test-list go together, got no {' and no '.join(missing)}")
    if missing:
        for name in OF_LISTS:
            if values[name] is not None:
                parser.error(f"{_flag(name)}: only with --data, --train-list and --test-list")
        values["imbalance"] = 50.0 if values["imbalance"] is None else values["imbalance"]
    else:
        if values["imbalance"] is not None:
            parser.error("--imbalance: only for the digits; the lists say how many images a class has")
        for name, default in OF_LISTS.items():
            values[name] = default if values[name] is None else values[name]
    # On batches this small a second thread gains a fifth at best, and where the cores are shared the threads
    # wait for each other at every operation: 280 ms a step instead of 10 were seen.
    values["threads"] = values["threads"] or (1 if missing else torch.get_num_threads())
    try:
        values["out"].mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out: cannot make the folder {values['out']} ({error.strerror})")
    return Options(**values)


def _at_least(smallest: int, number: type[int] | type[float]) -> Callable[[str], float]:
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


def _device(text: str) -> torch.device:
    try:
        device = torch.device(text)
        known = device.type in ("cpu", "cuda")
        torch.empty(0, device=device if known else "cpu")
    except (RuntimeError, AssertionError):
        known = False
    if not known:
        found = ", ".join(["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))])
        raise argparse.ArgumentTypeError(f"expected a device of this machine ({found}), got {text!r}")
    return device


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
