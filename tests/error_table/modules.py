"""Rows of the modules: BatchFormer, BatchFormerV2, TransformerEncoderLayer."""

import copy
from unittest import mock

import torch
from torch import Tensor

import batchformer as bf
from error_table.mistakes import (
    ACTIVATION,
    CHOICE,
    DATA_PARALLEL,
    EMPTY_BATCH,
    HEADS,
    NOT_A_MODULE,
    NOT_A_TENSOR,
    NOT_DENSE,
    NOT_FLOATING,
    OTHER_DEVICE,
    OTHER_DTYPE,
    PROBABILITY,
)
from error_table.row import Mistake, Row

X, TOKENS, Y = torch.randn(6, 16), torch.randn(6, 5, 16), torch.arange(6)
LAYER = bf.TransformerEncoderLayer(16, 4, 16)

NOT_FEATURES = Mistake(
    "BatchFormer gets something else than one vector of its width for each sample, such as a token map.",
    "Pool to `[N, C]` and make the module with `dim=C`; for token maps there is `BatchFormerV2`.",
)
NOT_THE_LAYOUT = Mistake(
    "The token map has its axes in another order than `layout` says, or another width: the mistake that is "
    "made most often.",
    "Name the layout of the map, `BatchFormerV2(256, layout='LNC')`, or transpose the map.",
)
NOT_ITS_TARGETS = Mistake(
    "The targets are doubled already, or belong to another batch.",
    "Pass the targets as the loader gives them, one for each sample: the module doubles them.",
)
NO_TARGETS = Mistake(
    "The targets are a number, a set or an object in which nothing says what belongs to which sample.",
    "Pass a tensor, an array or a list with one entry a sample, or a tuple or dict of those.",
)
NO_WIDTH = Mistake(
    "The width was read from a model or a configuration that has none, and came out as 0.",
    "Give the number of channels: `BatchFormer(512)`.",
)
NO_LAYERS = Mistake(
    "An encoder of no layers was asked for, to switch BatchFormer off.",
    "Leave the module out, or call `module.eval()`, in which it is the identity.",
)
STREAMS = Mistake(
    "`streams` says that the batch holds more streams than the module knows.",
    "Write `streams=2` at the second and later insertions of a `two_stream=True` module, else leave it out.",
)
ONE_STREAM = Mistake(
    "`streams=2` says that the batch was doubled before, but it has an odd number of samples.",
    "Write `streams=2` only after a first insertion: `second(blocks(first(x)), streams=2)`.",
)
NOT_A_SEQUENCE = Mistake(
    "The input of the layer has another rank, or its last axis is not the `d_model` channels.",
    "Pass `[S, B, C]`, `[B, S, C]` with `batch_first=True`, or one sequence `[S, C]`.",
)

NOT_FLOATING_SENTENCE = "x: expected a dtype of float16, bfloat16, float32 or float64, got int64"
DTYPE_SENTENCE = "x: expected dtype float32 as in_proj_weight has, got float64"
TARGETS_SENTENCE = (
    "targets: expected a tensor, array or list with one entry a sample, a tuple or dict of those, "
    "or None, got "
)


def replica(module):
    module._is_replica = True  # as nn.DataParallel does on several devices
    return module


def linears_in_half_precision():
    layer = copy.deepcopy(LAYER).bfloat16()
    for norm in (layer.norm1, layer.norm2):
        norm.float()
    return layer


BATCHFORMER = (
    Row(lambda: bf.BatchFormer(16)([1.0]), TypeError, "x: expected a torch.Tensor, got list", *NOT_A_TENSOR),
    Row(
        lambda: bf.BatchFormer(16)(torch.eye(16).to_sparse()),
        TypeError,
        "x: expected a dense tensor (torch.strided), got layout torch.sparse_coo",
        *NOT_DENSE,
    ),
    Row(
        lambda: bf.BatchFormer(16)(X[:5], streams=2),
        ValueError,
        "x: expected an even number of samples on axis 0, as streams=2 means two streams, got [5, 16]",
        *ONE_STREAM,
    ),
    Row(
        lambda: replica(bf.BatchFormer(16))(X),
        RuntimeError,
        "BatchFormer: expected no replica of nn.DataParallel with two streams, as that gathers both "
        "streams of each device in turn, got one; use DistributedDataParallel",
        *DATA_PARALLEL,
    ),
    Row(
        lambda: replica(bf.BatchFormerV2(16))(TOKENS),
        RuntimeError,
        "BatchFormerV2: expected no replica of nn.DataParallel with two streams, as that gathers both "
        "streams of each device in turn, got one; use DistributedDataParallel",
        *DATA_PARALLEL,
    ),
    Row(lambda: bf.BatchFormer(16)(X.long()), TypeError, NOT_FLOATING_SENTENCE, *NOT_FLOATING),
    Row(
        lambda: bf.BatchFormer(16)(TOKENS),
        ValueError,
        "x: expected shape [N, 16] (axis 0 is the batch), got [6, 5, 16]",
        *NOT_FEATURES,
    ),
    Row(
        lambda: bf.BatchFormer(16)(torch.randn(6, 8)),
        ValueError,
        "x: expected shape [N, 16] (axis 0 is the batch), got [6, 8]",
        *NOT_FEATURES,
    ),
    Row(lambda: bf.BatchFormer(16)(X.double()), ValueError, DTYPE_SENTENCE, *OTHER_DTYPE),
    Row(
        lambda: bf.BatchFormer(16)(torch.randn(0, 16)),
        ValueError,
        "x: expected at least 1 sample in training, got an empty batch",
        *EMPTY_BATCH,
    ),
    Row(
        lambda: bf.BatchFormer(16)(X, torch.arange(5)),
        ValueError,
        "y: expected 6 targets, one for each sample of x, got 5",
        *NOT_ITS_TARGETS,
    ),
    Row(
        lambda: bf.BatchFormer(16)(X, {"labels": Y, "boxes": [{}] * 7}),
        ValueError,
        "y: expected 6 targets, one for each sample of x, got 7",
        *NOT_ITS_TARGETS,
    ),
    Row(lambda: bf.BatchFormer(16)(X, 3), TypeError, f"{TARGETS_SENTENCE}int", *NO_TARGETS),
    Row(
        lambda: bf.BatchFormer(16, nhead=5), ValueError, "nhead: expected a divisor of dim=16, got 5", *HEADS
    ),
    Row(
        lambda: bf.BatchFormer(16, nhead=0), ValueError, "nhead: expected a divisor of dim=16, got 0", *HEADS
    ),
    Row(lambda: bf.BatchFormer(0), ValueError, "dim: expected a width of at least 1, got 0", *NO_WIDTH),
    Row(
        lambda: bf.BatchFormer(16, dropout=1.5),
        ValueError,
        "dropout: expected a probability from 0 to 1, got 1.5",
        *PROBABILITY,
    ),
    Row(
        lambda: bf.BatchFormer(16, activation="tanh"),
        ValueError,
        "activation: expected 'relu' or 'gelu', got 'tanh'",
        *ACTIVATION,
    ),
    Row(
        lambda: bf.BatchFormer(16, attend="all"),
        ValueError,
        "attend: expected 'batch' or 'alone' or 'uniform', got 'all'",
        *CHOICE,
    ),
    Row(
        lambda: bf.BatchFormer(16, num_layers=0),
        ValueError,
        "num_layers: expected at least 1, got 0",
        *NO_LAYERS,
    ),
    Row(
        lambda: bf.batchformer(TOKENS, Y, LAYER, True),
        ValueError,
        "x: expected shape [N, C] (axis 0 is the batch), got [6, 5, 16]",
        *NOT_FEATURES,
    ),
    Row(
        lambda: bf.batchformer(X, Y[:5], LAYER, True),
        ValueError,
        "y: expected 6 targets, one for each sample of x, got 5",
        *NOT_ITS_TARGETS,
    ),
    Row(
        lambda: bf.batchformer("x", Y, LAYER, True),
        TypeError,
        "x: expected a torch.Tensor, got str",
        *NOT_A_TENSOR,
    ),
)

BATCHFORMER_V2 = (
    Row(
        lambda: bf.BatchFormerV2(16)(torch.randn(6, 16, 5)),
        ValueError,
        "x: expected shape [N, L, 16] (layout 'NLC': axis 0 is the batch), got [6, 16, 5]",
        *NOT_THE_LAYOUT,
    ),
    Row(
        lambda: bf.BatchFormerV2(16, layout="LNC")(X),
        ValueError,
        "x: expected shape [L, N, 16] (layout 'LNC': axis 1 is the batch), got [6, 16]",
        *NOT_THE_LAYOUT,
    ),
    Row(
        lambda: bf.BatchFormerV2(16, layout="NCHW")(torch.randn(6, 5, 4, 16)),
        ValueError,
        "x: expected shape [N, 16, H, W] (layout 'NCHW': axis 0 is the batch), got [6, 5, 4, 16]",
        *NOT_THE_LAYOUT,
    ),
    Row(
        lambda: bf.BatchFormerV2(16, layout="NWHC"),
        ValueError,
        "layout: expected 'NLC' or 'LNC' or 'NCHW' or 'NHWC', got 'NWHC'",
        *CHOICE,
    ),
    Row(
        lambda: bf.BatchFormerV2(16)(None),
        TypeError,
        "x: expected a torch.Tensor, got NoneType",
        *NOT_A_TENSOR,
    ),
    Row(
        lambda: bf.BatchFormerV2(16)(TOKENS, streams=3),
        ValueError,
        "streams: expected 1 or 2, got 3",
        *STREAMS,
    ),
    Row(
        lambda: bf.BatchFormerV2(16, two_stream=False)(TOKENS, streams=2),
        ValueError,
        "streams: expected 1, got 2",
        *STREAMS,
    ),
    Row(
        lambda: bf.BatchFormerV2(16)(TOKENS[:5], streams=2),
        ValueError,
        "x: expected an even number of samples on axis 0, as streams=2 means two streams, got [5, 5, 16]",
        *ONE_STREAM,
    ),
    Row(
        lambda: bf.BatchFormerV2(16)(torch.randn(0, 5, 16)),
        ValueError,
        "x: expected at least 1 sample in training, got an empty batch",
        *EMPTY_BATCH,
    ),
    Row(
        lambda: bf.BatchFormerV2(16, attend="none"),
        ValueError,
        "attend: expected 'batch' or 'alone' or 'uniform', got 'none'",
        *CHOICE,
    ),
)


def with_names():
    if hasattr(Tensor, "rename"):
        return LAYER(TOKENS.rename("S", "B", None))
    # Torch has none from 2.13 on.
    names = {"has_names": lambda tensor: True, "names": ("S", "B", None)}
    with mock.patch.multiple(Tensor, create=True, **names):
        return LAYER(TOKENS)


ENCODER_LAYER = (
    Row(lambda: LAYER(3), TypeError, "src: expected a torch.Tensor, got int", *NOT_A_TENSOR),
    Row(
        with_names,
        TypeError,
        "src: expected a tensor without names, got names ('S', 'B', None)",
        *NOT_DENSE,
    ),
    Row(
        lambda: LAYER(torch.randn(6, 5, 8)),
        ValueError,
        "src: expected shape [S, B, 16] or [S, 16], got [6, 5, 8]",
        *NOT_A_SEQUENCE,
    ),
    Row(
        lambda: bf.TransformerEncoderLayer(16, 4, batch_first=True)(torch.randn(16)),
        ValueError,
        "src: expected shape [B, S, 16] or [S, 16], got [16]",
        *NOT_A_SEQUENCE,
    ),
    Row(
        lambda: LAYER(torch.randn(6, 5, 8), src_key_padding_mask=torch.zeros(5, 6, dtype=torch.bool)),
        ValueError,
        "src: expected shape [S, B, 16] or [S, 16], got [6, 5, 8]",
        *NOT_A_SEQUENCE,
    ),
    Row(lambda: LAYER(TOKENS.double()), ValueError, DTYPE_SENTENCE, *OTHER_DTYPE),
    Row(
        lambda: linears_in_half_precision()(TOKENS),
        ValueError,
        "x: expected dtype bfloat16 as in_proj_weight has, got float32",
        "The linears of a layer are in half precision and its norms in float32, and autocast is off.",
        "Leave the layer in float32 and call it under autocast, or cast it as a whole, and the input.",
    ),
    Row(lambda: LAYER(TOKENS.long()), TypeError, NOT_FLOATING_SENTENCE, *NOT_FLOATING),
    Row(
        lambda: LAYER(TOKENS.to("meta")),
        ValueError,
        "in_proj_weight: expected device meta as x has, got cpu",
        *OTHER_DEVICE,
    ),
    Row(
        lambda: bf.TransformerEncoderLayer(16, 3),
        ValueError,
        "nhead: expected a divisor of d_model=16, got 3",
        *HEADS,
    ),
    Row(
        lambda: bf.TransformerEncoderLayer(16, 4, dropout=-0.1),
        ValueError,
        "dropout: expected a probability from 0 to 1, got -0.1",
        *PROBABILITY,
    ),
    Row(
        lambda: bf.TransformerEncoderLayer(16, 4, activation="selu"),
        ValueError,
        "activation: expected 'relu' or 'gelu', got 'selu'",
        *ACTIVATION,
    ),
    Row(
        lambda: bf.accelerate([LAYER]),
        TypeError,
        "model: expected a torch.nn.Module, got list",
        *NOT_A_MODULE,
    ),
)
