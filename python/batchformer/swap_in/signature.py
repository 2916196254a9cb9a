"""Calls: arguments by the names of the parameters that take them."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

Call: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]  # args and kwargs

_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def parameters(function: Callable[..., Any]) -> list[str]:
    """Names of the parameters that take arguments by position; none if they are not known."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some of those that are written in C
        return []
    return [each.name for each in signature.parameters.values() if each.kind in _BY_POSITION]


def by_name(names: Sequence[str], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a call by the names of the parameters, in their order."""
    return dict(zip(names, args, strict=False)) | kwargs


def by_place(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[Any, Any]:
    """Arguments of a call by their position or their keyword; :func:`in_place` is the way back."""
    return dict(enumerate(args)) | kwargs


def name_of(names: Sequence[str], key: str | int) -> str | int:
    """The parameter that takes an argument; its position, if that is all that is known."""
    return names[key] if isinstance(key, int) and key < len(names) else key


def first_of(function: Callable[..., Any], given: dict[Any, Any]) -> Any:
    """The position or keyword, of those of :func:`by_place`, with the argument of the first parameter."""
    if 0 in given:
        return 0
    names = parameters(function)
    return names[0] if names and names[0] in given else next(iter(given))


def in_place(given: dict[Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """The arguments in `given`, by position and by keyword again."""
    return tuple(given[position] for position in range(len(args))), {name: given[name] for name in kwargs}
