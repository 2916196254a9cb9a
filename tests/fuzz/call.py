"""A call: the lines of Python that make it, and what the judge has to know of it."""

from dataclasses import dataclass

IMPORTS = ("import copy", "import torch", "from torch import nn", "import batchformer as bf")


@dataclass(frozen=True)
class Call:
    """What is run is what is printed: the lines themselves.

    Those of a call that is compared leave `y`, `x`, `grad_y`, `encoder` (whose parameters have the
    gradients), `theirs` (torch's layer with the same parameters) and `plain(layer, z)`, the call as torch
    makes it. All others judge themselves by an assert.
    """

    kind: str
    lines: tuple[str, ...]
    compared: bool = False
    dtype: str = "float32"
    """In which the call computes: autocast's, else that of x."""
    mode: str = ""
    """The context manager around the call, as Python; empty if there is none."""
    backwards: int = 1
    special: bool = False
    """Some value is NaN, infinite, or of a square that is."""
    one_key: bool = False
    """Each query has one key, so that q and k have a gradient of exactly 0."""
    may_raise: bool = False
    """An error of a documented class is as good as the right result."""

    @property
    def text(self) -> str:
        return "\n".join((*IMPORTS, *self.lines)) + "\n"


def under(mode: str, statement: str) -> str:
    """The statement inside the context manager."""
    return f"with {mode}: {statement}" if mode else statement
