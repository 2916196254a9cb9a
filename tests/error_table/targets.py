"""Rows of the functions on targets and rows: duplicate, original, related."""

from collections.abc import MutableMapping

import torch

import batchformer as bf
from error_table.modules import NO_TARGETS, TARGETS_SENTENCE
from error_table.row import Mistake, Row

NOT_DOUBLED = Mistake(
    "The rows hold one stream, as in evaluation, or a part of two.",
    "Take halves only of what was doubled: `related(logits) if model.training else logits`.",
)

RETURNED_ALONE = Mistake(
    "A meter takes halves of what a model returned, which has the originals alone: in evaluation, or with "
    '`outputs="originals"`.',
    'Take it as it is; one meter for both modes is what `outputs="originals"` is for.',
)


SHARES = Mistake(
    "A mapping of another library, or of the user's own, has copies that share its targets.",
    "Pass a dict: `bf.duplicate(dict(targets))`.",
)
ANOTHER_AXIS = Mistake(
    "Outputs of several layers are stacked, or positions come before the batch.",
    "`bf.original(outputs.transpose(0, 1))`.",
)


class Shared(MutableMapping):
    """A mapping whose copies hold the same dict."""

    def __init__(self, **values):
        self.values_by_key = values

    def __getitem__(self, key):
        return self.values_by_key[key]

    def __setitem__(self, key, value):
        self.values_by_key[key] = value

    def __delitem__(self, key):
        del self.values_by_key[key]

    def __iter__(self):
        return iter(self.values_by_key)

    def __len__(self):
        return len(self.values_by_key)


class Stacked(torch.nn.Linear):
    """Logits of three layers, which are the same."""

    def forward(self, x):
        return torch.stack([super().forward(x)] * 3)


def stacked():
    model = Stacked(8, 5)
    bf.attach(model, before="")
    return model(torch.randn(4, 8))


def in_evaluation():
    model = torch.nn.Linear(8, 5)
    bf.attach(model, before="")
    with torch.no_grad():
        return model.eval()(torch.randn(4, 8))


TARGETS = (
    Row(lambda: bf.duplicate(3), TypeError, f"{TARGETS_SENTENCE}int", *NO_TARGETS),
    Row(lambda: bf.duplicate(torch.tensor(3)), TypeError, f"{TARGETS_SENTENCE}a 0-d tensor", *NO_TARGETS),
    Row(lambda: bf.duplicate({1, 2}), TypeError, f"{TARGETS_SENTENCE}set", *NO_TARGETS),
    Row(lambda: bf.duplicate({"labels": {1, 2}}), TypeError, f"{TARGETS_SENTENCE}set", *NO_TARGETS),
    Row(
        lambda: bf.original(torch.randn(7, 3)),
        ValueError,
        "x: expected an even number of rows, two streams, got 7",
        *NOT_DOUBLED,
    ),
    Row(
        lambda: bf.original(in_evaluation()),
        ValueError,
        "x: expected rows of both streams, got the 4 originals that a model returned, in evaluation or with "
        'outputs="originals"; take them as they are',
        *RETURNED_ALONE,
    ),
    Row(
        lambda: bf.duplicate(Shared(labels=torch.arange(3))),
        TypeError,
        "targets: expected a mapping that copy.copy copies, got a Shared, whose copy changes with it; "
        "give it a __copy__, or pass a dict",
        *SHARES,
    ),
    Row(
        lambda: bf.original(stacked()),
        ValueError,
        "x: expected both streams along the first axis, got shape [3, 8, 5] with 8 rows of both along "
        "another; move that axis to the front, or take them apart in a wrapped criterion",
        *ANOTHER_AXIS,
        computed=True,
    ),
    Row(
        lambda: bf.related([1, 2, 3]),
        ValueError,
        "x: expected an even number of rows, two streams, got 3",
        *NOT_DOUBLED,
    ),
)
