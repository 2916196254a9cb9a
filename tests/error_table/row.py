"""What a row of the table is."""

from collections.abc import Callable
from typing import Any, NamedTuple


class Mistake(NamedTuple):
    """Shared by the rows in which the same thing went wrong."""

    cause: str
    """When a user meets the sentence."""
    remedy: str
    """What to write instead."""


class Row(NamedTuple):
    call: Callable[[], Any]
    error: type[Exception]
    sentence: str
    """The whole of it; … stands for what differs from machine to machine."""
    cause: str
    remedy: str
    computed: bool = False
    """Whether the error is found only after BatchFormer has run."""


class Unreached(NamedTuple):
    """A sentence that no call of the tests can bring about."""

    reason: str
    error: type[Exception]
    sentence: str
    cause: str
    remedy: str
