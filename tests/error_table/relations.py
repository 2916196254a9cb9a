"""Rows of relations."""

import sys
from unittest import mock

import numpy as np
import torch
from torch import nn

import batchformer as bf
from error_table.mistakes import NOT_A_TENSOR, NOT_FLOATING, OTHER_DTYPE
from error_table.modules import DTYPE_SENTENCE, LAYER, NOT_FLOATING_SENTENCE, TOKENS, X
from error_table.row import Mistake, Row

WITH_KDIM = nn.TransformerEncoderLayer(16, 4)
WITH_KDIM.self_attn = nn.MultiheadAttention(16, 4, kdim=8, vdim=8)

NOT_ONE_LAYER = Mistake(
    "`relations` gets a model or a stack, which has no single attention.",
    "Pass one layer: `relations(module.encoder.layers[0], x)`, or `relations(attachment.inserted[0], x)`.",
)
NOT_ONE_PROJECTION = Mistake(
    "The attention of the layer projects keys and values of another width.",
    "Pass a layer whose `self_attn` was made without `kdim` and `vdim`.",
)
NO_VALUES = Mistake(
    "A model or a batch was made on the meta device, to save memory, and never got values.",
    "Give it values first: `model.to_empty(device='cpu')` and `model.load_state_dict(state)`.",
)

NO_SUCH_POSITION = Mistake(
    "The position is that of another layout or size of the tokens at the place.",
    "Give an index, or (row, column) of a map, as the model has them at the place; None is the mean.",
)
NO_SUCH_PLACE = Mistake(
    "The place was given by its path, or the attachment has fewer places.",
    "Count the places in the order of `before` or `after`, from 0.",
)

MODEL = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 5))
FEATURES = bf.attach(MODEL, before="2")
TOKENS_OF = bf.attach(nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 5)), after="0", layout="NLC")
MAP_OF = bf.attach(nn.Sequential(nn.Conv2d(8, 16, 1)), after="0")
REMOVED = bf.attach(nn.Sequential(nn.Linear(8, 5)), before="0")
REMOVED.remove()
HEADS = np.full((2, 3, 3), 1 / 3)


def without_matplotlib():
    with mock.patch.dict(sys.modules, {"matplotlib.figure": None}):
        bf.plot_relations(HEADS)


NOT_ONE_LAYER_SENTENCE = "encoder: expected a TransformerEncoderLayer or a module whose .encoder is one, got"

RELATIONS = (
    Row(
        lambda: bf.relations(nn.Linear(3, 3), X),
        TypeError,
        f"{NOT_ONE_LAYER_SENTENCE} Linear; of a stack, pass one of its layers",
        *NOT_ONE_LAYER,
    ),
    Row(
        lambda: bf.relations(bf.BatchFormer(16, num_layers=2), X),
        TypeError,
        f"{NOT_ONE_LAYER_SENTENCE} BatchFormer; of a stack, pass one of its layers",
        *NOT_ONE_LAYER,
    ),
    Row(
        lambda: bf.relations(MODEL, torch.randn(4, 8)),
        TypeError,
        "encoder: expected the attachment that attach() returned, got the Sequential that has it",
        "The model was passed, where its attachment is needed.",
        "`relations(attachment, inputs)`, or `relations(model.batchformer, inputs)`.",
    ),
    Row(
        lambda: bf.relations(WITH_KDIM, X),
        TypeError,
        "encoder: expected self_attn with one in_proj_weight, got one with kdim or vdim",
        *NOT_ONE_PROJECTION,
    ),
    Row(
        lambda: bf.relations(LAYER, [[1.0]]), TypeError, "x: expected a torch.Tensor, got list", *NOT_A_TENSOR
    ),
    Row(
        lambda: bf.relations(LAYER, TOKENS),
        ValueError,
        "x: expected shape [N, 16], got [6, 5, 16]",
        "The samples come with more than one position, each of which has relations of its own.",
        "Pass one position of the token map: `relations(module, x[:, 0])`.",
    ),
    Row(lambda: bf.relations(LAYER, X.double()), ValueError, DTYPE_SENTENCE, *OTHER_DTYPE),
    Row(lambda: bf.relations(LAYER, X.long()), TypeError, NOT_FLOATING_SENTENCE, *NOT_FLOATING),
    Row(
        lambda: bf.relations(LAYER, X.to("meta")),
        ValueError,
        "x: expected a tensor with values, got one on meta",
        *NO_VALUES,
    ),
    Row(
        lambda: bf.relations(bf.BatchFormer(16, device="meta"), X),
        ValueError,
        "in_proj_weight: expected a tensor with values, got one on meta",
        *NO_VALUES,
    ),
    Row(
        lambda: bf.relations(LAYER, X, position=0),
        ValueError,
        "place: expected neither place nor position without an attachment, got place=0 and position=0 with a "
        "TransformerEncoderLayer",
        "`relations` gets an encoder and its input, in which there is no place to choose.",
        "Pass one position of the token map, `relations(module, x[:, 0])`, or the attachment and a batch.",
    ),
    Row(
        lambda: bf.relations(FEATURES, torch.ones(3, 8), "2"),
        TypeError,
        "place: expected the number of a place, got '2'",
        *NO_SUCH_PLACE,
    ),
    Row(
        lambda: bf.relations(FEATURES, torch.ones(3, 8), 1),
        ValueError,
        "place: expected a number from 0 to 0, got 1",
        *NO_SUCH_PLACE,
    ),
    Row(
        lambda: bf.relations(FEATURES, torch.ones(3, 8), position=0),
        ValueError,
        "position: expected None at '2', where a sample is one vector of features, got 0",
        "BatchFormer is before a classifier, where there are no positions to choose from.",
        "Leave `position` out.",
    ),
    Row(
        lambda: bf.relations(TOKENS_OF, torch.ones(3, 4, 8), position=(0, 1)),
        TypeError,
        "position: expected an index of a NLC layout, got (0, 1)",
        *NO_SUCH_POSITION,
    ),
    Row(
        lambda: bf.relations(TOKENS_OF, torch.ones(3, 4, 8), position=4),
        ValueError,
        "position: expected one of 4 positions, counted from 0, got 4",
        *NO_SUCH_POSITION,
    ),
    Row(
        lambda: bf.relations(MAP_OF, torch.ones(3, 8, 2, 5), position=(2, 0)),
        ValueError,
        "position: expected one of 2 x 5 positions, counted from 0, got (2, 0)",
        *NO_SUCH_POSITION,
    ),
    Row(
        lambda: bf.relations(REMOVED, torch.ones(3, 8)),
        RuntimeError,
        "place: expected Sequential to run '0' in its forward, got one that does not: the place was skipped "
        "or replaced, or the attachment was removed",
        "The model has lost its attachment, or does not run the module at the place for this batch.",
        "Call it before `attachment.remove()`, for a place that every forward runs.",
    ),
    Row(
        without_matplotlib,
        ImportError,
        "matplotlib: expected to be installed, as plot_relations() draws with it, got none (…): pip install "
        "matplotlib",
        "matplotlib is no dependency of batchformer, as training does not need it.",
        "`pip install matplotlib`; `relations` gives the numbers without it.",
    ),
    Row(
        lambda: bf.plot_relations(FEATURES, torch.randn(4, 8)),
        TypeError,
        "heads: expected the array that relations() gives, or a tuple of its arguments, got Attachment; "
        "plot_relations((attachment, inputs))",
        "An attachment and its inputs are passed as two arguments, of which the second is for labels.",
        "`plot_relations((attachment, inputs), labels)`.",
    ),
    Row(
        lambda: bf.plot_relations(np.ones((2, 3, 4))),
        ValueError,
        "heads: expected shape [heads, N, N], got [2, 3, 4]",
        "The array is not one of relations between the samples of one batch.",
        "Pass what `relations` returns, or its arguments as a tuple: `plot_relations((attachment, images))`.",
    ),
    Row(
        lambda: bf.plot_relations(HEADS, [0, 1]),
        ValueError,
        "labels: expected shape [3], got [2]",
        "The labels are those of another batch, of both streams, or one-hot.",
        "Pass one class index for each sample that went in.",
    ),
    Row(
        lambda: bf.plot_relations(HEADS, class_names=["cat", "dog"]),
        ValueError,
        "labels: expected the class of each sample with class_names or counts, got None",
        "Names or counts of classes were given, but not which class each sample has.",
        "Pass the labels: `plot_relations(heads, labels, class_names=names)`.",
    ),
    Row(
        lambda: bf.plot_relations(HEADS, [0, 1, 7], class_names=["cat", "dog"]),
        ValueError,
        "class_names: expected an entry for each class in labels, got none for 7",
        "A list of names or counts is shorter than the largest label, or a label is negative.",
        "Give a list by label, or a dict with every label of the batch.",
    ),
    Row(
        lambda: bf.plot_relations(HEADS, axes=[None]),
        ValueError,
        "axes: expected 2, one for each head, got 1",
        "There are fewer or more panels than heads.",
        "Make as many, `figure.subplots(1, len(heads))`, or take one head: `heads[:1]`.",
    ),
)
