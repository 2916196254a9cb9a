"""Every row of the table of errors: its call meets its sentence, and nothing is computed."""

import functools
import re
import traceback
import warnings
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

import batchformer as bf
from error_table import ROWS
from error_table.attach import NET
from error_table.modules import TOKENS
from error_table.row import Row

PACKAGE = Path(bf.__file__).parent


class Outcome(NamedTuple):
    error: type[BaseException]
    sentence: str
    place: tuple[str, int]
    """The last line of the package that was run, by file and number."""
    computed: bool


@functools.cache
def outcome(row: Row) -> Outcome:
    """What a row's call comes to; calls are made once, for all tests that ask."""
    before = bf.ops.path_counts()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, about named and sparse tensors
        with pytest.raises(Exception) as caught:  # noqa: PT011 - the tests look at it
            row.call()
    lines = [
        (str(Path(frame.f_code.co_filename).relative_to(PACKAGE)), number)
        for frame, number in traceback.walk_tb(caught.tb)
        if PACKAGE in Path(frame.f_code.co_filename).parents
    ]
    return Outcome(caught.type, str(caught.value), lines[-1], bf.ops.path_counts() != before)


def pattern(sentence: str) -> str:
    """A regular expression for a sentence, in which … is whatever there is."""
    return ".*".join(map(re.escape, sentence.split("…")))


@pytest.mark.parametrize("row", ROWS, ids=[row.sentence for row in ROWS])
def test_bad_input_gets_a_sentence_before_anything_is_computed(row):
    found = outcome(row)
    assert found.error is row.error
    assert re.fullmatch(pattern(row.sentence), found.sentence), found.sentence
    assert found.computed == row.computed


def test_tensors_on_two_devices_are_refused(device):
    if device == "cpu":
        pytest.skip("takes a second device")
    layer = bf.TransformerEncoderLayer(16, 4)
    with pytest.raises(ValueError, match="in_proj_weight: expected device cuda:0 as x has, got cpu"):
        layer(TOKENS.to(device))


def test_a_refused_place_changes_nothing_of_the_model():
    hooks = [hooks for m in NET.modules() for hooks in (m._forward_hooks, m._forward_pre_hooks) if hooks]
    assert not hooks
    assert [name for name, _ in NET.named_children()] == ["stem", "block", "classifier"]
    assert not [name for name in NET.state_dict() if "batchformer" in name]


@pytest.mark.parametrize(
    "module", [bf.BatchFormer(16), bf.BatchFormerV2(16), bf.TransformerEncoderLayer(16, 4)]
)
def test_bad_input_changes_nothing_of_the_module(module):
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(ValueError, match="expected shape"):
        module(torch.randn(6, 5, 4, 3))
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())
