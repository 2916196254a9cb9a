"""Reading and checking image lists in the format of ImageNet-LT: a path and a label a line."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


class ListError(ValueError):
    """What is wrong with a list or an image of it, in a sentence that names the list and the line."""


@dataclass(frozen=True)
class Entry:
    """One line of a list."""

    image: Path
    label: int
    where: str  # "train.txt, line 7"


@dataclass(frozen=True)
class Lists:
    """The entries of all lists, and the number of classes, which is 1 + the largest training label."""

    train: list[Entry]
    test: list[Entry]
    validation: list[Entry]  # none if there is no list
    classes: int


def read_lists(root: Path, train: Path, test: Path, validation: Path | None = None) -> Lists:
    """Read and check the lists.

    Paths are relative to `root`; empty lines are skipped. Every line is checked and every image looked for;
    whether an image can be decoded shows when it is read.

    Raises:
        ListError: a list that is missing, empty or no text; a line that is not a path and a label; a label
            that is no class; an image that is not there.

    Source: Liu et al., "Large-scale long-tailed recognition in an open world" (CVPR 2019), its lists.
    """
    of_train, of_test = _read(root, train), _read(root, test)
    of_validation = _read(root, validation) if validation else []
    classes = 1 + max(entry.label for entry in of_train)
    for entry in of_test + of_validation:
        if entry.label >= classes:
            raise ListError(
                f"{entry.where}: label {entry.label} is out of range, {train} has classes 0 to {classes - 1}"
            )
    _look_for_images(of_train + of_test + of_validation)
    return Lists(of_train, of_test, of_validation, classes)


def _read(root: Path, path: Path) -> list[Entry]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ListError(f"{path}: the list cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ListError(f"{path}: the list is not UTF-8 text") from error
    entries = [
        _parse(root, line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()
    ]
    if not entries:
        raise ListError(f"{path}: the list is empty")
    return entries


def _parse(root: Path, line: str, where: str) -> Entry:
    # From the right, because a path may have spaces.
    fields = line.rsplit(maxsplit=1)
    if len(fields) != 2:
        raise ListError(f"{where}: expected a path and a label, got {line.strip()!r}")
    name, label = fields
    if not (label.isascii() and label.isdigit()):
        raise ListError(f"{where}: expected an integer label from 0 up, got {label!r}")
    return Entry(root / name.strip(), int(label), where)


def _look_for_images(entries: Sequence[Entry]) -> None:
    for entry in entries:
        if not entry.image.is_file():
            raise ListError(f"{entry.where}: image not found: {entry.image.absolute()}")
