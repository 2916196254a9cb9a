"""The table of rules: which arguments have an entry for each of the N samples, and are doubled.

==============================================================  ==========================================
argument, or what is in it                                      doubled
==============================================================  ==========================================
tensor or array `[N, ...]`                                      its rows
tensor or array `[1, N]`                                        its columns
tensor or array `[L, N, ...]` with outputs `[L, 2N, ...]`       along its second axis
list or tuple of N entries that are alike                       its entries
list, tuple, dict or dataclass of other things                  what is in it, by the same rules
``num_items_in_batch``, ``avg_factor``, ``num_boxes``, ..       the number, as it counts samples
parameter or key ``weight``, ``pos_weight``; an nn.Parameter    as it is
configuration of a model of transformers                        as it is
what had another number of rows or entries than N before        as it is
vector, or list of numbers or strings, that may be of classes   its entries, or ValueError
matrix `[N, N]` where the outputs have no such axis             ValueError: it could be of pairs of samples
list or tuple of N tensors that have N rows each                ValueError: it could be several targets
integers called index, indices, idx, ind, perm, pairs, ..       ValueError: they say which rows
tensor with a history, if nothing else is doubled               ValueError: it is no target
everything else                                                 as it is
==============================================================  ==========================================

A vector of floats, an array, and a list of numbers or strings may be of classes if the outputs have another
axis of size N, a vector of integers if it is called counts or the like, a list of floats always. It is taken
for the targets if it is called target, label, y or gt, or if nothing else could be them.
"""

import copy
import dataclasses
import itertools
import re
from collections.abc import Callable, Container, Iterator, Mapping, MutableMapping, Sequence
from numbers import Number
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor, nn

from batchformer.targets import twice, with_values

Name: TypeAlias = str | int | None  # of a parameter or key, else its position

_NEVER = ("weight", "pos_weight")
_COUNTS = ("num_items_in_batch", "avg_factor", "num_boxes", "num_masks", "normalizer")
"""Numbers that a loss is divided by: of transformers' Trainer, of OpenMMLab's losses, of detectors."""
_TARGETS = re.compile(r"(y|targets?|labels?|gt)(_\w+)?")
_OF_CLASSES = re.compile(r"count|freq|per_cl|num|prior|weight|dist|hist|name|prob")
_INDICES = re.compile(
    r"(\w+_)?(idx|index|indices|inds?|perm|permutation|pairs|triplets)(_tuples?|_list)?(\[\d+\])*"
)
_CONFIGURATIONS = ("PreTrainedConfig", "PretrainedConfig")  # from transformers 5 on, and before
_OF_ALL = ("batch_idx", "batch_index")  # which image each of the targets of all images is of
_ENTRIES = (Number, str)


class Batch:
    """What is known of the outputs: N, the sizes of their other axes, and the tensors themselves."""

    def __init__(
        self,
        samples: Sequence[int],
        others: Sequence[int],
        outputs: Sequence[Tensor],
        had_own_size: Container[Name] = (),
        sizes_before: Sequence[tuple[int, ...]] = (),
    ) -> None:
        self.samples = samples  # more than one N, if forwards of several batches are in one call
        self.others = [size for size in others if size != 1]
        self.outputs = outputs
        self.doubled = 0  # how many arguments, and parts of them, were doubled
        self.images = 0  # of them, those that look like images or features
        self.learned = 0  # of them, those that have a gradient, as a target has not
        self.left = 0  # how many tensors of rows have another number of them, as the boxes of all images
        self.own_sizes: dict[Name, bool] = {}  # names of what has another number of rows or entries than N
        self._had_own_size = had_own_size  # those of earlier calls
        self._sizes_before = sizes_before  # of the axes before the batch's, with N at the end
        self._unclear: list[Name] = []
        self._take_unclear = False

    def double(self, arguments: dict[Any, Any], names: dict[Any, Name]) -> dict[Any, Any]:
        """The arguments, with those doubled that have an entry for each sample.

        Raises:
            ValueError: one on which the table cannot decide.
        """
        found = {key: self._double(value, names[key]) for key, value in arguments.items()}
        if not self._unclear:
            return found
        if self.doubled or len(self._unclear) > 1:
            raise ValueError(
                f"criterion: expected to know whether {_called(self._unclear[0])} has an entry for each "
                f"sample or for each class, as there are {self.samples[0]} of both, got neither name nor "
                "targets=; attachment.wrap(criterion, targets=[...]) says which arguments are targets"
            )
        self._take_unclear = True
        return {key: self._double(value, names[key]) for key, value in arguments.items()}

    def double_named(self, value: Any) -> Any:
        """A target named by the user: all in it that has N rows or entries is doubled, without the table."""
        if isinstance(value, (Tensor, np.ndarray)):
            axis = self._axis(value)
            return value if axis is None else self._twice(value, axis)
        if self._is_one_entry_a_sample(value):
            return self._twice(value)
        return map_inside(value, lambda each, _: self.double_named(each))

    def _double(self, value: Any, name: Name) -> Any:
        if name in _NEVER or isinstance(value, nn.Parameter) or _is_configuration(value):
            return value
        if name in _OF_ALL:
            raise ValueError(
                f"criterion: expected targets with an entry for each sample, got {name!r}, which tells that "
                "one list holds the targets of all samples; make a list of targets for each image, or "
                "double them by hand: attach(..., wrapped=False)"
            )
        if _says(_INDICES, name) and _is_of_integers(value):
            raise ValueError(
                "criterion: expected no indices of rows, as the related rows have other indices, got "
                f"{_called(name)}; take the rows before, or name the targets: attachment.wrap(criterion, "
                "targets=[...])"
            )
        if is_count(name, value):
            return 2 * value
        if isinstance(value, (Tensor, np.ndarray)):
            return self._double_tensor(value, name)
        if name not in self._had_own_size and self._is_one_entry_a_sample(value):
            return self._double_entries(value, name)
        if isinstance(value, (list, tuple)) and len(value) not in self.samples:
            self.own_sizes[name] = True
        entry = itertools.count()
        return map_inside(
            value, lambda each, key: self._double(each, f"{name}[{next(entry)}]" if key is None else key)
        )

    def _double_tensor(self, value: Any, name: Name) -> Any:
        if value.ndim == 0 or any(value is output for output in self.outputs):
            return value
        samples, axis = value.shape[0], self._axis(value)
        if axis is None:
            self.own_sizes[name] = True
            self.left += value.ndim > 1
            return value
        if name in self._had_own_size:
            return value
        definite = isinstance(value, Tensor) and not _is_floating(value) and not _is_of_classes(name)
        vector = value.ndim == 1 + axis
        if vector and not definite and self._is_unclear(value.shape[axis], name):
            return value
        if value.ndim > 2 and _is_floating(value):
            self.images += 1
        if value.ndim > 1 and isinstance(value, Tensor) and value.requires_grad:
            self.learned += 1
        if axis > 0:
            return self._twice(value, axis)
        if value.ndim == 2 and value.shape[1] == samples != 1 and samples not in self.others:
            raise ValueError(
                f"criterion: expected no matrix of pairs of samples, as the pairs of both streams are not "
                f"known, got {_called(name)} of shape {list(value.shape)}; make it in the criterion, or name "
                f"the targets: attachment.wrap(criterion, targets=[...])"
            )
        return self._twice(value)

    def _double_entries(self, value: Any, name: Name) -> Any:
        if all(map(self._is_rows, value)):
            raise ValueError(
                f"criterion: expected to know whether {_called(name)} is one target with {len(value)} "
                f"entries or {len(value)} targets, as each has {len(value)} rows, got a "
                f"{type(value).__name__} of them; a dict holds several targets"
            )
        numbers = all(isinstance(each, _ENTRIES) for each in value)
        if numbers and self._is_unclear(
            len(value), name, always=all(isinstance(each, float) for each in value)
        ):
            return value
        return self._twice(value)

    def _axis(self, value: Any) -> int | None:
        """The axis that has an entry for each sample."""
        for sizes in self._sizes_before:
            if tuple(value.shape[: len(sizes)]) == sizes:
                return len(sizes) - 1
        if value.ndim > 0 and value.shape[0] in self.samples:
            return 0
        return 1 if value.ndim == 2 and value.shape[0] == 1 and value.shape[1] in self.samples else None

    def _is_unclear(self, samples: int, name: Name, *, always: bool = False) -> bool:
        if self._take_unclear or _is_target(name) or (samples not in self.others and not always):
            return False
        self._unclear.append(name)
        return True

    def _twice(self, value: Any, axis: int = 0) -> Any:
        self.doubled += 1
        return twice(value, axis)

    def _is_one_entry_a_sample(self, value: Any) -> bool:
        if not isinstance(value, (list, tuple)) or len(value) not in self.samples:
            return False
        if hasattr(value, "_fields") or any(leaf.requires_grad for leaf in leaves(value)):
            return False  # a named tuple holds several things, a list of outputs too
        if len({(type(each), getattr(each, "ndim", 0)) for each in value}) == 1:
            return True
        return isinstance(value, list) and not any(map(self._is_rows, value))

    def _is_rows(self, value: Any) -> bool:
        """Whether a value inside of a list has an entry for each sample by itself."""
        if isinstance(value, (Tensor, np.ndarray)):
            return self._axis(value) is not None
        if isinstance(value, (list, tuple)):
            return len(value) in self.samples and len({type(each) for each in value}) == 1
        return False


def is_count(name: Name, value: Any) -> bool:
    """Whether an argument is a number that counts samples, or what is in them."""
    return name in _COUNTS and (isinstance(value, Number) or getattr(value, "ndim", None) == 0)


def map_inside(value: Any, function: Callable[[Any, Name], Any]) -> Any:
    """`value` with `function(what is in it, its key or None)`; itself if nothing changes, else a copy."""
    if isinstance(value, (list, tuple)):
        entries = [function(each, None) for each in value]
        if all(new is old for new, old in zip(entries, value, strict=True)):
            return value
        return with_entries(value, entries)
    if isinstance(value, MutableMapping):
        items = {key: function(each, key) for key, each in value.items()}
        if all(new is value[key] for key, new in items.items()):
            return value
        return with_values(value, items)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        new_fields = {key: function(each, key) for key, each in fields.items()}
        if all(new is fields[key] for key, new in new_fields.items()):
            return value
        return with_fields(value, new_fields)
    return value


def with_entries(value: Any, entries: Sequence[Any]) -> Any:
    """A list or tuple of the type of `value`, also a named one, with these entries."""
    return type(value)(*entries) if hasattr(value, "_fields") else type(value)(entries)


def with_fields(value: Any, fields: Mapping[str, Any]) -> Any:
    """A copy of a dataclass, also of a frozen one, with these values of its fields."""
    changed = copy.copy(value)
    for name, each in fields.items():
        object.__setattr__(changed, name, each)
    return changed


def map_tensors(value: Any, function: Callable[[Tensor], Any]) -> Any:
    """`value` with `function` of every tensor in it; see :func:`map_inside`."""
    if isinstance(value, Tensor):
        return function(value)
    return map_inside(value, lambda each, _: map_tensors(each, function))


def leaves(value: Any) -> Iterator[Tensor]:
    """Every tensor that :func:`map_tensors` would meet."""
    found: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    map_tensors(value, keep)
    yield from found


def has_rows(value: Any, rows: int) -> bool:
    """Whether a value is a tensor with that many rows, and no vector, as sizes and indices are."""
    return isinstance(value, Tensor) and value.dim() > 1 and len(value) == rows


def _is_configuration(value: Any) -> bool:
    """Whether it is the configuration of a model of transformers, whose lists are not of samples."""
    return any(base.__name__ in _CONFIGURATIONS for base in type(value).__mro__)


def _is_floating(value: Any) -> bool:
    floating = value.is_floating_point() if isinstance(value, Tensor) else value.dtype.kind == "f"
    return bool(floating)


def _is_of_integers(value: Any) -> bool:
    array = isinstance(value, (Tensor, np.ndarray)) and value.ndim > 0
    return array and not _is_floating(value) and "bool" not in str(value.dtype)


def _is_target(name: Name) -> bool:
    return _says(_TARGETS, name) and not _is_of_classes(name)


def _is_of_classes(name: Name) -> bool:
    return isinstance(name, str) and _OF_CLASSES.search(name.lower()) is not None


def _says(pattern: "re.Pattern[str]", name: Name) -> bool:
    return isinstance(name, str) and pattern.fullmatch(name.lower()) is not None


def _called(name: Name) -> str:
    return f"argument {name!r}"
