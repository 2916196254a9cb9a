"""One table: what is wrong, which exception, which sentence. Nothing is computed."""

import re
from collections import OrderedDict

import pytest
import torch
from torch import nn

import batchformer as bf
import stand_ins
from reference import NOTHING

X = torch.randn(6, 16)
TOKENS = torch.randn(6, 5, 16)
Y = torch.arange(6)
LAYER = bf.TransformerEncoderLayer(16, 4, 16)
NET = nn.Sequential(
    OrderedDict(
        stem=nn.Linear(8, 16), block=nn.TransformerEncoderLayer(16, 4, 16), classifier=nn.Linear(16, 5)
    )
)
ATTACHED = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 5))


class GivesADict(nn.Linear):
    def forward(self, x):
        return {"tokens": super().forward(x)}


AFTER_A_DICT = nn.Sequential(GivesADict(16, 16))
bf.attach(AFTER_A_DICT, after="0")
WRAPPED = bf.attach(ATTACHED, before="1").wrap(nn.CrossEntropyLoss())


def op(x=TOKENS, seed=None, parameters=None, **config):
    """The op itself, whose contract the core checks."""
    arguments = LAYER._config()._replace(dropout=(0.0,) * 4)._replace(**config)
    return torch.ops.batchformer.encoder_layer(
        x, *(parameters or LAYER._parameters_of_op()), seed, *arguments, NOTHING
    )


def parameters(**changed):
    return LAYER._parameters_of_op()._replace(**changed)


HALF = {name: t if name.startswith("norm") else t.bfloat16() for name, t in parameters()._asdict().items()}

TABLE = [
    # BatchFormer
    (lambda: bf.BatchFormer(16)([1.0]), TypeError, "x: expected a torch.Tensor, got list"),
    (
        lambda: bf.BatchFormer(16)(torch.arange(96).view(6, 16)),
        TypeError,
        "x: expected a dtype of float16, bfloat16, float32 and float64, got int64",
    ),
    (
        lambda: bf.BatchFormer(16)(TOKENS),
        ValueError,
        "x: expected shape [N, 16] (axis 0 is the batch), got [6, 5, 16]",
    ),
    (
        lambda: bf.BatchFormer(16)(torch.randn(6, 8)),
        ValueError,
        "x: expected shape [N, 16] (axis 0 is the batch), got [6, 8]",
    ),
    (
        lambda: bf.BatchFormer(16)(X.double()),
        ValueError,
        "x: expected dtype float32 as in_proj_weight has, got float64",
    ),
    (
        lambda: bf.BatchFormer(16)(torch.randn(0, 16)),
        ValueError,
        "x: expected at least 1 sample in training, got an empty batch",
    ),
    (
        lambda: bf.BatchFormer(16)(X, torch.arange(5)),
        ValueError,
        "y: expected 6 targets, one for each sample of x, got 5",
    ),
    (
        lambda: bf.BatchFormer(16)(X, {"labels": Y, "boxes": [{}] * 7}),
        ValueError,
        "y: expected 6 targets, one for each sample of x, got 7",
    ),
    (lambda: bf.BatchFormer(16)(X, 3), TypeError, "got int"),
    (lambda: bf.BatchFormer(16, nhead=5), ValueError, "nhead: expected a divisor of dim=16, got 5"),
    (lambda: bf.BatchFormer(16, nhead=0), ValueError, "nhead: expected a divisor of dim=16, got 0"),
    (lambda: bf.BatchFormer(0), ValueError, "dim: expected a width of at least 1, got 0"),
    (
        lambda: bf.BatchFormer(16, dropout=1.5),
        ValueError,
        "dropout: expected a probability from 0 to 1, got 1.5",
    ),
    (
        lambda: bf.BatchFormer(16, activation="tanh"),
        ValueError,
        "activation: expected 'relu' or 'gelu', got 'tanh'",
    ),
    (lambda: bf.BatchFormer(16, attend="all"), ValueError, "attend: expected 'batch' or 'self', got 'all'"),
    (lambda: bf.BatchFormer(16, num_layers=0), ValueError, "num_layers: expected at least 1, got 0"),
    # the function
    (
        lambda: bf.batchformer(TOKENS, Y, LAYER, True),
        ValueError,
        "x: expected shape [N, C] (axis 0 is the batch), got [6, 5, 16]",
    ),
    (lambda: bf.batchformer(X, Y[:5], LAYER, True), ValueError, "y: expected 6 targets"),
    (lambda: bf.batchformer("x", Y, LAYER, True), TypeError, "x: expected a torch.Tensor, got str"),
    # BatchFormerV2
    (
        lambda: bf.BatchFormerV2(16)(torch.randn(6, 16, 5)),
        ValueError,
        "x: expected shape [N, L, 16] (layout 'NLC': axis 0 is the batch), got [6, 16, 5]",
    ),
    (
        lambda: bf.BatchFormerV2(16, layout="LNC")(X),
        ValueError,
        "x: expected shape [L, N, 16] (layout 'LNC': axis 1 is the batch), got [6, 16]",
    ),
    (
        lambda: bf.BatchFormerV2(16, layout="NCHW")(torch.randn(6, 5, 4, 16)),
        ValueError,
        "x: expected shape [N, 16, H, W] (layout 'NCHW': axis 0 is the batch), got [6, 5, 4, 16]",
    ),
    (
        lambda: bf.BatchFormerV2(16, layout="NHWC"),
        ValueError,
        "layout: expected 'NLC' or 'LNC' or 'NCHW', got 'NHWC'",
    ),
    (lambda: bf.BatchFormerV2(16)(None), TypeError, "x: expected a torch.Tensor, got NoneType"),
    (lambda: bf.BatchFormerV2(16)(TOKENS, streams=3), ValueError, "streams: expected 1 or 2, got 3"),
    (
        lambda: bf.BatchFormerV2(16, two_stream=False)(TOKENS, streams=2),
        ValueError,
        "streams: expected 1, got 2",
    ),
    (
        lambda: bf.BatchFormerV2(16)(TOKENS[:5], streams=2),
        ValueError,
        "x: expected an even number of samples on axis 0, as streams=2 says both are there, got [5, 5, 16]",
    ),
    (
        lambda: bf.BatchFormerV2(16)(torch.randn(0, 5, 16)),
        ValueError,
        "x: expected at least 1 sample in training, got an empty batch",
    ),
    (
        lambda: bf.BatchFormerV2(16, attend="none"),
        ValueError,
        "attend: expected 'batch' or 'self', got 'none'",
    ),
    # TransformerEncoderLayer
    (lambda: LAYER(3), TypeError, "src: expected a torch.Tensor, got int"),
    (
        lambda: LAYER(torch.randn(6, 5, 8)),
        ValueError,
        "src: expected shape [S, B, 16] or [S, 16], got [6, 5, 8]",
    ),
    (
        lambda: bf.TransformerEncoderLayer(16, 4, batch_first=True)(torch.randn(16)),
        ValueError,
        "src: expected shape [B, S, 16] or [S, 16], got [16]",
    ),
    (
        lambda: LAYER(torch.randn(6, 5, 8), src_key_padding_mask=torch.zeros(5, 6, dtype=torch.bool)),
        ValueError,
        "src: expected shape [S, B, 16] or [S, 16], got [6, 5, 8]",
    ),
    (
        lambda: LAYER(TOKENS.double()),
        ValueError,
        "x: expected dtype float32 as in_proj_weight has, got float64",
    ),
    (lambda: LAYER(TOKENS.long()), TypeError, "got int64"),
    (lambda: bf.TransformerEncoderLayer(16, 3), ValueError, "nhead: expected a divisor of d_model=16, got 3"),
    (lambda: bf.TransformerEncoderLayer(16, 4, dropout=-0.1), ValueError, "dropout: expected a probability"),
    (lambda: bf.TransformerEncoderLayer(16, 4, activation="selu"), ValueError, "activation: expected"),
    # the op
    (lambda: op(X), ValueError, "x: expected shape [N, L, 16], got [6, 16]"),
    (lambda: op(X, batch_first=True), ValueError, "x: expected shape [L, N, 16], got [6, 16]"),
    (lambda: op(torch.randn(6, 5, 8)), ValueError, "x: expected shape [N, L, 16], got [6, 5, 8]"),
    (
        lambda: op(TOKENS[:0]),
        ValueError,
        "[N, L, 16] with at least one sample and one position, got [0, 5, 16]",
    ),
    (lambda: op(TOKENS.to(torch.complex64)), TypeError, "got complex64"),
    (lambda: op(nhead=3), ValueError, "nhead: expected a divisor of the width 16, got 3"),
    (lambda: op(nhead=-1), ValueError, "nhead: expected a divisor of the width 16, got -1"),
    (
        lambda: op(dropout=(0.0, 2.0, 0.0, 0.0), seed=torch.tensor(1)),
        ValueError,
        "dropout of hidden: expected a probability from 0 to 1, got 2",
    ),
    (
        lambda: op(dropout=(float("nan"), 0.0, 0.0, 0.0), seed=torch.tensor(1)),
        ValueError,
        "dropout of attention: expected a probability from 0 to 1, got NaN",
    ),
    (
        lambda: op(dropout=(0.5,) * 4),
        ValueError,
        "seed: expected a 0-d int64 tensor as dropout is on, got None",
    ),
    (
        lambda: op(dropout=(0.5,) * 4, seed=torch.tensor([1.0])),
        ValueError,
        "seed: expected a 0-d int64 tensor, got dtype float32 and shape [1]",
    ),
    (lambda: op(activation="tanh"), ValueError, "activation: expected 'relu' or 'gelu', got 'tanh'"),
    (
        lambda: op(parameters=parameters(linear2_weight=torch.randn(16, 7))),
        ValueError,
        "linear2_weight: expected shape [16, 16], got [16, 7]",
    ),
    (
        lambda: op(parameters=parameters(in_proj_bias=torch.randn(16))),
        ValueError,
        "in_proj_bias: expected shape [48], got [16]",
    ),
    (
        lambda: op(parameters=parameters(norm2_weight=torch.randn(16).double())),
        ValueError,
        "norm2_weight: expected dtype float32 as in_proj_weight has, got float64",
    ),
    (
        lambda: op(TOKENS.half(), parameters=parameters(**HALF)),
        ValueError,
        "x: expected dtype bfloat16 as in_proj_weight has, got float16",
    ),
    # targets
    (lambda: bf.duplicate(3), TypeError, "got int"),
    (lambda: bf.duplicate(torch.tensor(3)), TypeError, "got a 0-d tensor"),
    (lambda: bf.duplicate({1, 2}), TypeError, "got set"),
    (lambda: bf.duplicate({"labels": {1, 2}}), TypeError, "got set"),
    (
        lambda: bf.original(torch.randn(7, 3)),
        ValueError,
        "x: expected an even number of rows, two streams, got 7",
    ),
    (lambda: bf.related([1, 2, 3]), ValueError, "x: expected an even number of rows, two streams, got 3"),
    # attach
    (lambda: bf.attach([nn.Linear(8, 5)]), TypeError, "model: expected a torch.nn.Module, got list"),
    (
        lambda: bf.attach(NET, before="classfier"),
        ValueError,
        "before: no module 'classfier' in Sequential; the nearest are 'classifier'",
    ),
    (lambda: bf.attach(NET, before="zzz"), ValueError, "it has 'stem', 'block', 'classifier'"),
    (
        lambda: bf.attach(NET, before=[]),
        ValueError,
        "before: expected at least one path and none twice, got []",
    ),
    (
        lambda: bf.attach(NET, before=["classifier", "classifier"]),
        ValueError,
        "before: expected at least one path and none twice",
    ),
    (
        lambda: bf.attach(NET, before=3),
        TypeError,
        "before: expected a path or a list of paths of modules, got 3",
    ),
    (
        lambda: bf.attach(NET, after=["block", "stem"]),
        ValueError,
        "after: expected the order in which the model runs them, as the first doubles the batch, got 'block' "
        "before 'stem'",
    ),
    (
        lambda: bf.attach(NET, before="classifier", dim=32),
        ValueError,
        "dim: expected 16, which 'classifier' takes, got 32",
    ),
    (
        lambda: bf.attach(nn.Sequential(nn.ReLU()), before="0"),
        ValueError,
        "dim: expected a width, as ReLU does not tell it, got None",
    ),
    (
        lambda: bf.attach(NET, before=["stem", "classifier"]),
        ValueError,
        "shared: expected False, as one module has one width, got True and widths of 8 at 'stem', 16 at",
    ),
    (
        lambda: bf.attach(NET, after=["stem", "block"]),
        ValueError,
        "layout: expected one for all places, got ['LNC', 'NLC']",
    ),
    (
        lambda: bf.attach(NET, after="block", layout="NLC"),
        ValueError,
        "layout: expected 'LNC', as the attention at 'block' has batch_first=False, got 'NLC'",
    ),
    (
        lambda: bf.attach(NET, after="block", layout="NHWC"),
        ValueError,
        "layout: expected 'NLC' or 'LNC' or 'NCHW' or 'NC', got 'NHWC'",
    ),
    (lambda: bf.attach(NET, before="classifier", nhead=3), ValueError, "nhead: expected a divisor of dim=16"),
    (
        lambda: bf.attach(NET, before="classifier", droput=0.1),
        TypeError,
        "unexpected keyword argument 'droput'",
    ),
    (
        lambda: bf.attach(ATTACHED, before="1"),
        ValueError,
        "model: expected a Sequential without BatchFormer, got one that has it",
    ),
    (
        lambda: bf.attach(type("Net", (nn.Linear,), {"batchformer": 1})(8, 5), before=""),
        ValueError,
        "model: expected no attribute 'batchformer', got a Net that has one",
    ),
    (lambda: bf.attach(NET), ValueError, "or a place by its path (before= or after=), got Sequential"),
    (
        lambda: bf.attach(NET, "detr"),
        ValueError,
        "for 'detr' a Detr, ConditionalDetr or DeformableDetr model (transformers) or backbone, input_proj",
    ),
    (lambda: bf.attach(NET, "resnet"), ValueError, "preset: expected 'detr' or 'deformable_detr' or 'deit'"),
    (
        lambda: bf.attach(NET, "detr", before="classifier"),
        ValueError,
        "preset: does not go with 'before', which takes before, shared, rejoin, dim and what",
    ),
    (
        lambda: bf.attach(NET, after="block", pairings="all4"),
        ValueError,
        "pairings: expected 'all' or 'aligned'",
    ),
    (
        lambda: bf.attach(stand_ins.Ride(), "ride", after=1),
        ValueError,
        "after: does not go with 'ride', which takes reproduce, dim and what BatchFormer takes",
    ),
    (lambda: bf.attach(stand_ins.Detr(), reproduce=True), ValueError, "reproduce: does not go with 'detr'"),
    (
        lambda: bf.attach(stand_ins.Detr(), after=3),
        ValueError,
        "after: expected indices from 0 to 2 of 'transformer.encoder.layers', got [3]",
    ),
    (lambda: bf.attach(stand_ins.Detr(), after=[]), ValueError, "after: expected indices from 0 to 2"),
    (
        lambda: bf.attach(stand_ins.Detr(), after=[2, 0]),
        ValueError,
        "after: expected ascending indices, as the first doubles the batch, got [2, 0]",
    ),
    (
        lambda: bf.attach(stand_ins.Detr(), after=0.5),
        TypeError,
        "after: expected an index or a list of indices",
    ),
    (
        lambda: bf.attach(nn.Sequential(nn.Linear(8, 5)), before="0").wrap(3),
        TypeError,
        "criterion: expected a module or a function, got int",
    ),
    (
        lambda: ATTACHED[1].batchformer.wrap(WRAPPED),
        ValueError,
        "criterion: expected one that is not wrapped, got a CrossEntropyLoss that is",
    ),
    (
        lambda: ATTACHED(torch.randn(6, 3, 8)),
        ValueError,
        "x: expected shape [N, 16] (axis 0 is the batch), got [6, 3, 16]",
    ),
    (
        lambda: bf.load_official(NET, 3),
        TypeError,
        "checkpoint: expected a mapping, as torch.load gives, got int",
    ),
    (
        lambda: AFTER_A_DICT(X),
        TypeError,
        "x: expected a block that returns a torch.Tensor, got dict",
    ),
    # relations
    (lambda: bf.relations(nn.Linear(3, 3), X), TypeError, "encoder: expected a TransformerEncoderLayer"),
    (
        lambda: bf.relations(bf.BatchFormer(16, num_layers=2), X),
        TypeError,
        "of a stack, pass one of its layers",
    ),
    (lambda: bf.relations(LAYER, [[1.0]]), TypeError, "x: expected a torch.Tensor, got list"),
    (lambda: bf.relations(LAYER, TOKENS), ValueError, "x: expected shape [N, 16], got [6, 5, 16]"),
    (lambda: bf.relations(LAYER, X.double()), ValueError, "x: expected dtype float32 as in_proj_weight has"),
    (lambda: bf.relations(LAYER, X.long()), TypeError, "got int64"),
]


@pytest.mark.parametrize(("call", "error", "sentence"), TABLE, ids=[row[2] for row in TABLE])
def test_bad_input_gets_a_sentence_before_anything_is_computed(call, error, sentence):
    before = bf.ops.path_counts()
    with pytest.raises(error, match=re.escape(sentence)) as caught:
        call()
    assert type(caught.value) is error
    assert bf.ops.path_counts() == before


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
