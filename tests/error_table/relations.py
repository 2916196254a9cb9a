"""Rows of relations."""

from torch import nn

import batchformer as bf
from error_table.mistakes import NOT_A_TENSOR, NOT_FLOATING, OTHER_DTYPE
from error_table.modules import DTYPE_SENTENCE, LAYER, NOT_FLOATING_SENTENCE, TOKENS, X
from error_table.row import Mistake, Row

WITH_KDIM = nn.TransformerEncoderLayer(16, 4)
WITH_KDIM.self_attn = nn.MultiheadAttention(16, 4, kdim=8, vdim=8)

NOT_ONE_LAYER = Mistake(
    "`relations` gets a model or a stack, in which no single attention is meant.",
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
        "The samples come with more than one position, of which there would be a picture each.",
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
)
