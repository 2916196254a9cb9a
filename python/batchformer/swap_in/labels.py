"""Labels of a model that computes its loss itself: they are doubled at its input."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from batchformer.swap_in.rules import COUNT
from batchformer.swap_in.signature import by_place, in_place, name_of
from batchformer.targets import duplicate, twice

_NAMES = re.compile(r"(\w+_)?labels?|targets?|(start|end)_positions")
_OF_SEGMENTS = ("mask_labels", "class_labels")  # several per image, so a tuple is over images, like a list
_KINDS = (Tensor, np.ndarray, list, tuple, dict)


def are(name: str | int) -> bool:
    """Whether a parameter takes labels, by its name."""
    return isinstance(name, str) and _NAMES.fullmatch(name) is not None


def has_own_loss(model: nn.Module, names: Sequence[str]) -> bool:
    """Whether a model computes its loss if it is given labels."""
    return "labels" in names and hasattr(model, "loss_function")


def double(names: Sequence[str], args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any, Any]:
    """The arguments of a model with its labels doubled, and how many these were; None if there are none."""
    given = by_place(args, kwargs)
    found = [key for key, value in given.items() if are(name_of(names, key)) and isinstance(value, _KINDS)]
    if not found:
        return args, kwargs, None
    count = _count(given[found[0]])
    for key in found:
        given[key] = _twice(given[key], name_of(names, key))
    if given.get(COUNT) is not None:
        given[COUNT] = 2 * given[COUNT]
    return *in_place(given, args, kwargs), count


def _twice(labels: Any, name: str | int) -> Any:
    one_dict_an_image = isinstance(labels, tuple) and all(isinstance(each, dict) for each in labels)
    one_entry_an_image = isinstance(labels, tuple) and name in _OF_SEGMENTS
    return twice(labels) if one_dict_an_image or one_entry_an_image else duplicate(labels)


def _count(labels: Any) -> Any:
    if isinstance(labels, Tensor):
        return labels.shape[0] if labels.dim() > 0 else None
    if isinstance(labels, (list, tuple)):
        return len(labels)
    return next((_count(each) for each in labels.values()), None) if isinstance(labels, dict) else None
