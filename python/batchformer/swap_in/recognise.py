"""Which family a model is of, by what attach() was told and by the model itself."""

import difflib
import re
from collections.abc import Sequence
from typing import Any

from torch import nn

from batchformer.swap_in.families import FAMILIES
from batchformer.swap_in.family import Family
from batchformer.swap_in.generic import AfterBlocks, BeforeClassifiers
from batchformer.swap_in.known import names
from batchformer.swap_in.places import last_linear
from batchformer.swap_in.tasks import check_servable

_DEEP = 3  # levels of modules to search for a wrapped model


def family_of(model: nn.Module, preset: Any, before: Any, after: Any) -> type[Family]:
    """The family of a model: that of places by their paths, the one of the name, or the first that fits.

    Raises:
        ValueError: a name that no family has, or a model that is of none, or of another.
    """
    if before is not None:
        return BeforeClassifiers
    if isinstance(after, str) or (isinstance(after, Sequence) and any(isinstance(one, str) for one in after)):
        return next((each for each in FAMILIES if each.takes_paths and each.fits(model)), AfterBlocks)
    if preset is None:
        recognised = _recognised(model)
        if recognised is not None:
            return recognised
        check_servable(model)
        raise ValueError(
            f"model: expected one of a known family, or a place by its path (before= or after=), got "
            f"{type(model).__name__}{_place_of_its_own(model)}"
        )
    named = [family for family in FAMILIES if preset in family.names]
    if not named:
        recognised = _recognised(model)
        near = difflib.get_close_matches(str(preset), names(), n=3, cutoff=0.5)
        hint = f"; the nearest are {', '.join(map(repr, near))}" if near else ""
        known = f"; without a name this one is recognised as {recognised.names[0]!r}" if recognised else ""
        raise ValueError(f"preset: expected a name out of families(), got {preset!r}{hint}{known}")
    for family in named:
        if family.fits(model):
            return family
    check_servable(model)
    expected = " or ".join(family.expects for family in named)
    raise ValueError(f"model: expected for {preset!r} {expected}, got {type(model).__name__}")


def check_not_by_path(model: nn.Module, after: Any) -> None:
    """Raise ValueError for a block, named by its path, of a model whose family doubles masks with it."""
    paths = [after] if isinstance(after, str) else after if isinstance(after, Sequence) else []
    for path in paths:
        found = re.fullmatch(r"(?:.*\.)?(?<!decoder\.)layers\.(\d+)", path) if isinstance(path, str) else None
        families = (
            (each for each in FAMILIES if each.carries_along and each.fits(model)) if found else iter(())
        )
        family = next(families, None)
        if found and family:
            raise ValueError(
                f"after: expected the index of the block, after={found[1]}, of a model of "
                f"{family.names[0]!r}, whose masks and positions are doubled with it, got {path!r}"
            )


def _recognised(model: nn.Module) -> type[Family] | None:
    return next((family for family in FAMILIES if family.recognised and family.fits(model)), None)


def _place_of_its_own(model: nn.Module) -> str:
    """What can be attached to instead: a known model inside of it, or its last Linear."""
    for name, part in model.named_modules():
        family = _recognised(part) if name and name.count(".") < _DEEP else None
        if family is not None:
            return f"; its {name!r} is known as {family.names[0]!r}: attach(model.{name})"
    path = last_linear(model)
    return f"; the last Linear is {path!r}: attach(model, before={path!r})" if path else ""
