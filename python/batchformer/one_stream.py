"""Tells a criterion that is called for each pairing of streams from one that splits the streams itself."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from batchformer import marks


class TakesApart(Exception):  # noqa: N818 (a signal between two of our modules, no error)
    """original() or related() was called on rows that are of one stream alone.

    Whoever called the criterion with them calls it again, with both streams.
    """


class _UnderWay(threading.local):
    def __init__(self) -> None:
        self.calls = 0


_UNDER_WAY = _UnderWay()


@contextlib.contextmanager
def calls() -> Iterator[None]:
    """Calls inside get one stream of each output."""
    _UNDER_WAY.calls += 1
    try:
        yield
    finally:
        _UNDER_WAY.calls -= 1


def check_has_both(rows: Any) -> None:
    """Raise TakesApart for rows of one stream, in a criterion that was given one of each output."""
    if _UNDER_WAY.calls == 0 or not isinstance(rows, Tensor):
        return
    mark = None if torch.compiler.is_compiling() else marks.find(rows)
    # A tensor without history shares its storage, and the mark of that, with both streams.
    whole = isinstance(mark, marks.Doubled) and rows.shape[0] == 2 * mark.samples
    if not whole or isinstance(mark, marks.OfPairing):
        raise TakesApart
