"""duplicate, original and related on every kind of targets."""

import copy
from collections import OrderedDict, namedtuple

import numpy as np
import pytest
import torch

import batchformer as bf
from error_table.targets import Shared

Pair = namedtuple("Pair", ["labels", "weight"])
BOXES = [{"labels": torch.tensor([1, 2]), "boxes": torch.rand(2, 4)}, {"labels": torch.tensor([3])}]

TARGETS = {
    "class indices": torch.tensor([3, 1, 2]),
    "soft labels": torch.rand(3, 5),
    "an array": np.array([3, 1, 2]),
    "an empty batch": torch.empty(0, dtype=torch.int64),
    "dicts of detection": BOXES,
    "strings": ["cat", "dog"],
    "a tuple, as mixup has it": (torch.tensor([3, 1]), torch.tensor([1, 3]), 0.7),
    "a 0-d tensor in a tuple": (torch.tensor([3, 1]), torch.tensor(0.7)),
    "a named tuple": Pair(torch.tensor([3, 1]), None),
    "a dict": {"labels": torch.tensor([3, 1]), "boxes": BOXES, "epoch": 3, "name": "train"},
    "an ordered dict": OrderedDict(labels=torch.tensor([3, 1])),
    "nested": {"a": (torch.tensor([3, 1]), {"b": [1, 2]})},
    "nothing": None,
}


def same(a, b) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return bool(np.array_equal(a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize("name", TARGETS)
def test_both_halves_of_doubled_targets_are_the_targets(name):
    targets = TARGETS[name]
    before = copy.deepcopy(targets)
    doubled = bf.duplicate(targets)
    assert same(bf.related(doubled), targets)
    assert same(bf.original(doubled), targets)
    assert same(targets, before), "the user's own targets changed"


def test_a_mapping_that_is_refused_is_left_as_it_was():
    labels = torch.arange(3)
    targets = Shared(epoch=1, labels=labels)
    for function in (bf.duplicate, lambda given: bf.BatchFormer(8)(torch.randn(3, 8), given)):
        with pytest.raises(TypeError, match="a mapping that copy"):
            function(targets)
        assert targets["labels"] is labels


def test_a_batch_in_a_mapping_of_that_kind_is_left_as_it_was_by_a_wrapped_criterion():
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 3))
    criterion = bf.attach(model, before="1").wrap(lambda outputs, batch: outputs.sum())
    batch = Shared(x=torch.randn(4, 8), y=torch.arange(4))
    with pytest.raises(TypeError, match="a mapping that copy"):
        criterion(model(batch["x"]), batch)
    assert len(batch["x"]) == len(batch["y"]) == 4


def test_originals_come_first():
    assert bf.duplicate(torch.tensor([3, 1])).tolist() == [3, 1, 3, 1]
    assert bf.duplicate(["a", "b"]) == ["a", "b", "a", "b"]
    assert bf.duplicate(torch.rand(3, 5)).shape == (6, 5)
    labels, weight = bf.duplicate((torch.tensor([3, 1]), 0.7))
    assert (labels.tolist(), weight) == ([3, 1, 3, 1], 0.7)


def test_a_target_that_is_changed_in_one_stream_is_not_changed_in_the_other():
    doubled = bf.duplicate([{"boxes": torch.tensor([0.1, 0.2]), "name": "a"}, [1, 2]])
    for target in doubled[::2]:  # both streams of the first image
        target["boxes"] = target["boxes"] * 10
        assert target.pop("name") == "a"
        torch.testing.assert_close(target["boxes"], torch.tensor([1.0, 2.0]))
    doubled[1].append(3)
    assert doubled[3] == [1, 2]


def test_the_halves_of_a_tensor_are_views():
    rows = torch.arange(6)
    assert bf.original(rows).data_ptr() == rows.data_ptr()
    assert bf.related(rows).tolist() == [3, 4, 5]
