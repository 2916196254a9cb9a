"""What attach() knows, for users: the families of models, by their names."""

import inspect
import textwrap
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from batchformer.swap_in.families import FAMILIES

Function = TypeVar("Function", bound=Callable[..., Any])

_PLACE_OF_NAMES = "%(names)s"
_INDENT = 12 * " "  # of an argument's text in a docstring
_WIDTH = 110


class KnownFamily(NamedTuple):
    """A family of models that :func:`attach` knows; :func:`families` lists all.

    Example:
        >>> [family.recognised for family in families() if "balanced_softmax" in family.names]
        [False]
    """

    names: tuple[str, ...]
    """Its names as `preset`; any of them will do."""
    models: str
    """What such a model has, and whose code it is."""
    place: str
    """Where BatchFormer goes in by default."""
    options: tuple[str, ...]
    """The arguments of :func:`attach` that it supports, in addition to those of the module."""
    about: str
    """What else to know about it."""
    recognised: bool
    """Whether ``attach(model)`` recognises its models without a preset."""

    def __str__(self) -> str:
        options = f"; takes {', '.join(self.options)}" if self.options else ""
        return f"{', '.join(self.names)}: {self.models}; {self.place}{options}"


def families() -> list[KnownFamily]:
    r"""Every family that :func:`attach` knows, in the order in which a model is compared with them.

    ``print(*families(), sep="\n")`` prints a line for each.

    Example:
        >>> [family.place for family in families() if "ride" in family.names]
        ['before the classifiers of all experts']
    """
    return [
        KnownFamily(
            each.names,
            each.expects,
            each.place,
            each.takes,
            inspect.cleandoc(each.__doc__ or ""),
            each.recognised,
        )
        for each in FAMILIES
    ]


def names() -> list[str]:
    """All names that `preset` takes."""
    return [*dict.fromkeys(name for each in FAMILIES for name in each.names)]


def with_names(function: Function) -> Function:
    """The function, with the names of all families in its docstring."""
    listed = textwrap.fill(", ".join(f'"{name}"' for name in names()), _WIDTH - len(_INDENT))
    if function.__doc__ is not None:  # python -OO
        text = textwrap.indent(listed, _INDENT).lstrip()
        function.__doc__ = function.__doc__.replace(_PLACE_OF_NAMES, text)
    return function
