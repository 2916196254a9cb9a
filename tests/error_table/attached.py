"""Rows of models that have an attachment, of its methods and its checkpoints."""

import torch
from torch import nn

import batchformer as bf
import stand_ins
from error_table.attach import ATTACHMENT, SMALL
from error_table.mistakes import DATA_PARALLEL
from error_table.modules import NOT_FEATURES, X
from error_table.row import Mistake, Row

WRAPPED = ATTACHMENT.wrap(nn.CrossEntropyLoss())

NOT_CALLABLE = Mistake(
    "`wrap` gets the loss of a step, or the name of a criterion.",
    "Wrap what computes the loss, once: `criterion = attachment.wrap(nn.CrossEntropyLoss())`.",
)
WRAPPED_TWICE = Mistake(
    "`wrap` is called in every step or epoch.",
    "Wrap once, where the criterion is made.",
)
NOT_TOKENS = Mistake(
    "The block returns a dict or an object of its own.",
    "Insert after a module that returns a tensor, or a tuple with it in front: often one inside the block.",
)
PAST_THE_BACKBONE = Mistake(
    "A model of transformers is called without its backbone, where the batch is not doubled yet.",
    "Pass `pixel_values`, and call the model that was attached to, not its `.model`.",
)
TARGETS_OF_IMAGES = Mistake(
    "A detector gets more or fewer targets than images, so that the doubled ones would not match.",
    "Pass one target for each image; one without objects has boxes of shape [0, 4].",
)
BACKBONE_ALONE = Mistake(
    "The backbone of a detector that has BatchFormer is called by itself, in training.",
    "Call the detector, or `model.eval()` before.",
)
NO_PADDING = Mistake(
    "The model takes the last token that is no padding, and its config does not say which token is.",
    "`model.config.pad_token_id = tokenizer.pad_token_id`, as it is needed for any batch of two.",
)
PAST_THE_TOKENS = Mistake(
    "The classifier of a language model is called by itself, where it is not known which token is the last.",
    "Call the model that was attached to, or `attachment.eval()` before it.",
)
NOT_A_CHECKPOINT = Mistake(
    "The path of a checkpoint, or a list, was passed in place of what is in the file.",
    "`load_official(model, torch.load(path, weights_only=False))`.",
)
OTHER_MODULES = Mistake(
    "The fork was trained with another number of BatchFormer modules than are attached.",
    "Attach as it was trained: the same places, and `shared=False` if each had a module of its own.",
)
OTHER_MODEL = Mistake(
    "The checkpoint is of another model, another configuration, or another version of its code.",
    "Build the model as the checkpoint's script does: the same classes, widths and depths.",
)


class GivesADict(nn.Linear):
    def forward(self, x):
        return {"tokens": super().forward(x)}


AFTER_A_DICT = nn.Sequential(GivesADict(16, 16))
bf.attach(AFTER_A_DICT, after="0", layout="NLC")


def replica():
    model = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 5))
    bf.attach(model, before="1")
    model[1]._is_replica = True
    return model


def transformers_detr():
    """A model of the package that takes seconds to import, so that only its rows wait for it."""
    import transformers

    from test_attach_detr import config

    model = transformers.DetrForObjectDetection(config("Detr")).train()
    bf.attach(model)
    return model


def torchvision_detector():
    """Of another package that takes its time to import."""
    from families.torchvision_detectors import retinanet

    model = retinanet().train()
    bf.attach(model)
    return model


def llama(**config):
    import transformers

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = transformers.LlamaConfig(**sizes, vocab_size=20, num_labels=5, **config)
    model = transformers.LlamaForSequenceClassification(config).train()
    bf.attach(model)
    return model


def checkpoint(modules=("bf",), **changed):
    """Of DETR's fork: the stock model's tensors, those of its modules, and what is changed."""
    state = stand_ins.Detr().state_dict()
    for module in modules:
        encoder = nn.TransformerEncoderLayer(stand_ins.WIDTH, 4, stand_ins.WIDTH).state_dict()
        state |= {f"transformer.{module}.{name}": tensor for name, tensor in encoder.items()}
    return {name: tensor for name, tensor in (state | changed).items() if tensor is not None}


def load(state):
    model = stand_ins.Detr()
    bf.attach(model)
    bf.load_official(model, state)


ATTACHED = (
    Row(
        lambda: SMALL(torch.randn(6, 3, 8)),
        ValueError,
        "x: expected shape [N, 16] (axis 0 is the batch), got [6, 3, 16]; at '1' these are maps or tokens, "
        "for which the path of a block is given as after=, or none if attach() knows the model",
        *NOT_FEATURES,
    ),
    Row(
        lambda: AFTER_A_DICT(X),
        TypeError,
        "x: expected a block at '0' that returns a torch.Tensor, got dict",
        *NOT_TOKENS,
    ),
    Row(
        lambda: replica()(torch.randn(6, 8)),
        RuntimeError,
        "model: expected no replica of nn.DataParallel, as that gathers both streams of each device in turn, "
        "got one; use DistributedDataParallel",
        *DATA_PARALLEL,
    ),
    Row(
        lambda: transformers_detr()(torch.randn(2, 3, 64, 64), inputs_embeds=torch.randn(2, 4, 32)),
        ValueError,
        "inputs_embeds: expected None in training with BatchFormer, got a value",
        *PAST_THE_BACKBONE,
    ),
    Row(
        lambda: transformers_detr().model(torch.randn(2, 3, 64, 64)),
        RuntimeError,
        "model: expected a call of DetrForObjectDetection, which has BatchFormer, got one of a part of it",
        *PAST_THE_BACKBONE,
    ),
    Row(
        lambda: torchvision_detector()([torch.rand(3, 64, 64)], [{"boxes": torch.zeros(0, 4)}] * 2),
        ValueError,
        "targets: expected one for each of the 1 images, got 2",
        *TARGETS_OF_IMAGES,
    ),
    Row(
        lambda: torchvision_detector().backbone(torch.rand(2, 3, 64, 64)),
        RuntimeError,
        "model: expected a call of RetinaNet, which has BatchFormer and doubles images and targets in its "
        "transform, got one of its backbone alone",
        *BACKBONE_ALONE,
    ),
    Row(
        lambda: transformers_detr()(pixel_mask=torch.ones(2, 64, 64)),
        ValueError,
        "pixel_values: expected images of that name in training with BatchFormer, got None",
        *PAST_THE_BACKBONE,
    ),
    Row(
        lambda: llama()(torch.ones(2, 4, dtype=torch.long)),
        ValueError,
        "pad_token_id: expected one in the config of the model, as both streams are at least two samples, "
        "got None",
        *NO_PADDING,
    ),
    Row(
        lambda: llama(pad_token_id=0).score(torch.randn(2, 4, 16)),
        RuntimeError,
        "model: expected a call of LlamaForSequenceClassification, whose input_ids tell the last token of "
        "each sample, got one of its classifier",
        *PAST_THE_TOKENS,
    ),
    Row(
        lambda: ATTACHMENT.wrap(3),
        TypeError,
        "criterion: expected a module or a function, got int",
        *NOT_CALLABLE,
    ),
    Row(
        lambda: ATTACHMENT.wrap(WRAPPED),
        ValueError,
        "criterion: expected one that is not wrapped, got a CrossEntropyLoss that is",
        *WRAPPED_TWICE,
    ),
    Row(
        lambda: ATTACHMENT.wrap(ATTACHMENT.wrap(nn.functional.cross_entropy)),
        ValueError,
        "criterion: expected one that is not wrapped, got a function that is",
        *WRAPPED_TWICE,
    ),
    Row(
        lambda: ATTACHMENT.wrap(nn.CrossEntropyLoss(), targets="target"),
        TypeError,
        "targets: expected a list of positions or names of arguments, got 'target'; ['target']",
        "One target was named, without a list.",
        "`attachment.wrap(criterion, targets=['target'])`.",
    ),
)

CHECKPOINTS = (
    Row(
        lambda: load("detr.pth"),
        TypeError,
        "checkpoint: expected a mapping, as torch.load gives, got str",
        *NOT_A_CHECKPOINT,
    ),
    Row(
        lambda: load(stand_ins.Detr().state_dict()),
        ValueError,
        "checkpoint: expected 1 module of BatchFormer, got 0",
        *OTHER_MODULES,
    ),
    Row(
        lambda: load(checkpoint(["bf.0", "bf.1"])),
        ValueError,
        "checkpoint: expected 1 module of BatchFormer, got 2; attach with shared=False",
        *OTHER_MODULES,
    ),
    Row(
        lambda: load(checkpoint(**{"query_embed.weight": None})),
        ValueError,
        "checkpoint: expected the names of Detr, got 1 missing ['query_embed.weight'], 0 unknown []",
        *OTHER_MODEL,
    ),
    Row(
        lambda: load(checkpoint(**{"query_embed.weight": torch.ones(4, 16)})),
        ValueError,
        "checkpoint: expected shape [3, 16] of query_embed.weight, got [4, 16]",
        *OTHER_MODEL,
    ),
)
