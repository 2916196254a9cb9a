"""Labels of a model that computes its loss itself: they are doubled at its input."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from batchformer.swap_in.rules import is_count
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


def double(
    names: Sequence[str], args: tuple[Any, ...], kwargs: dict[str, Any], *, sequence_first: bool = False
) -> tuple[Any, Any, Any]:
    """The arguments of a model with its labels doubled, and how many these were; None if there are none.

    Raises:
        ValueError: labels that may be another batch of inputs, or `[L, N]` as well as `[N, L]`; some that
            have another number of entries than others.
    """
    given = by_place(args, kwargs)
    found = [key for key, value in given.items() if are(name_of(names, key)) and isinstance(value, _KINDS)]
    if not found:
        return args, kwargs, None
    count = _count(given[found[0]])
    all_labels = [given[key] for key in found]
    _check_no_inputs(all_labels, [value for key, value in given.items() if key not in found])
    if sequence_first:
        _check_not_square(all_labels)
    else:
        _check_counts_alike({str(name_of(names, key)): given[key] for key in found})
    for key in found:
        given[key] = _twice(given[key], name_of(names, key))
    for key, value in [*given.items()]:
        if is_count(name_of(names, key), value):
            given[key] = 2 * value
    return *in_place(given, args, kwargs), count


def _check_no_inputs(found: Sequence[Any], others: Sequence[Any]) -> None:
    """Raise ValueError for what is called labels and looks like a second batch of inputs."""
    inputs = [each for each in others if isinstance(each, Tensor)]
    for each in found:
        if not isinstance(each, Tensor) or not each.is_floating_point():
            continue
        if any(each.dtype == other.dtype and each.shape[1:] == other.shape[1:] for other in inputs):
            raise ValueError(
                "labels: expected them to differ from the inputs, got a target or label of shape "
                f"{list(each.shape)} that may be a second batch of inputs; call the parameter otherwise, as "
                "in forward(self, source, other), or attach(..., wrapped=False)"
            )


def _check_counts_alike(found: dict[str, Any]) -> None:
    """Raise ValueError for labels of which some cannot have an entry for each sample."""
    counts: dict[str, Any] = {}
    for name, labels in found.items():
        parts = {f"{name}[{key!r}]": each for key, each in labels.items()} if isinstance(labels, dict) else {}
        for part, each in (parts or {name: labels}).items():
            if isinstance(each, list) or (isinstance(each, Tensor) and each.dim() > 0):
                counts[part] = _count(each)
    first = next(iter(counts), "")
    for name, count in counts.items():
        if count != counts[first]:
            raise ValueError(
                f"labels: expected an entry for each sample in all of them, got {counts[first]} in {first} "
                f"and {count} in {name}; call what is not of the samples otherwise, or compute the loss "
                "outside of the model, in a wrapped criterion"
            )


def _check_not_square(found: Sequence[Any]) -> None:
    """Raise ValueError for labels of which either axis may be the batch's, beside tokens `[L, N, C]`."""
    for each in found:
        if isinstance(each, Tensor) and each.dim() == 2 and each.shape[0] == each.shape[1] != 1:
            raise ValueError(
                f"labels: expected as many entries along one axis as there are samples, got shape "
                f"{list(each.shape)}, of which both axes are as long, and the model has the sequence first; "
                "take batches of another size than the sequence has, or compute the loss outside"
            )


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
