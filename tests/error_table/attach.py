"""Rows of attach."""

from collections import OrderedDict
from types import SimpleNamespace

import torch
from torch import nn

import batchformer as bf
import stand_ins
from error_table.mistakes import CHOICE, DATA_PARALLEL, HEADS, NOT_A_MODULE
from error_table.row import Mistake, Row

NET = nn.Sequential(
    OrderedDict(
        stem=nn.Linear(8, 16), block=nn.TransformerEncoderLayer(16, 4, 16), classifier=nn.Linear(16, 5)
    )
)
SMALL = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 5))
ATTACHMENT = bf.attach(SMALL, before="1")
MAPS = nn.Sequential(nn.TransformerEncoderLayer(16, 4, 16), nn.Conv2d(16, 16, 1), nn.ModuleList())
COMPILED = nn.Sequential(nn.Linear(8, 5))
COMPILED.compile()

SHARING = nn.Sequential(*[nn.Linear(16, 16)] * 2)
EMPTY = nn.Sequential(nn.Linear(8, 8), nn.Sequential())

NO_MODULE_INSIDE = Mistake(
    "The model is an nn.Sequential, and the place an empty one, as of a block that was left out.",
    "Insert at the module before it.",
)
NO_SUCH_PATH = Mistake(
    "The path is misspelled, or that of another version of the model.",
    "Take a name that `[name for name, _ in model.named_modules()]` lists.",
)
NO_PATHS = Mistake(
    "The list of places is empty, or names one of them twice.",
    "Name each place once: `attach(model, before=['linears.0', 'linears.1'])`.",
)
NOT_A_PATH = Mistake(
    "The place was given as a module or a number, where its path in the model is needed.",
    "Write the path as a string: `attach(model, before='fc')`; numbers are for presets: `after=8`.",
)
ORDER = Mistake(
    "Several blocks of a preset are named in another order than the model runs them.",
    "Name the block that runs first as the first: `after=[0, 2]`.",
)
INDICES = Mistake(
    "The preset's encoder has fewer blocks than the index says, or none was named.",
    "Count from 0, and leave `after` out for the official place.",
)
NOT_INDICES = Mistake(
    "The place of a preset was given as something else than the number of a block.",
    "Write `after=8`, or `after=[2, 8]`.",
)
NOT_ITS_WIDTH = Mistake(
    "`dim` says another width than the classifier's own weight.",
    "Leave `dim` out: it is read from the classifier.",
)
UNKNOWN_WIDTH = Mistake(
    "The module at the place has no weight that tells how many channels go in or come out, as a classifier "
    "with normalised weights.",
    "Say it: `attach(model, before='linear', dim=64)` for features `[N, 64]`; classes do not count.",
)
ONE_MODULE_FOR_TWO_WIDTHS = Mistake(
    "The places have features of different widths, for which one shared module cannot be made.",
    "Make one for each place: `attach(model, before=[…], shared=False)`.",
)
NO_LAYOUT = Mistake(
    "The block is of a class that is not known, and which of its axes is the batch cannot be seen.",
    "Say it: `attach(model, after='block', layout='NLC')`.",
)
NEVER_CALLED = Mistake(
    "The path is that of a list of modules, which the model takes out and calls one by one.",
    "Name the module in it: `attach(model, after='layers.3')`.",
)
NOT_A_PLACE = Mistake(
    "`optional` has a path that is none of the places.",
    "Write it as in `before` or `after`.",
)
NOBODY_GETS = Mistake(
    "The model is to return the originals alone, and no criterion that could get the rest is to be wrapped.",
    "Leave out one of the two.",
)
BY_INDEX = Mistake(
    "A block of the DETR family is named by its path, which doubles the tokens, but not their masks and "
    "positions.",
    "`attach(model, after=0)`.",
)
DETECTOR = Mistake(
    "torchvision's detectors match targets with images, both of which are doubled where they make a batch of "
    "them; the place was named by its path from outside, or before a part that takes regions.",
    "Call `attach(detector)` of the detector itself, or name a block of its backbone: "
    "`attach(detector, after='backbone.body.layer3')`.",
)
DETECTOR_BACKBONE = Mistake(
    "The detector has a backbone of its own, whose class does not tell where BatchFormer should go in.",
    "Name a block of it that gives maps: `attach(detector, after='backbone.layer3')`.",
)
NO_CLASSIFIER = Mistake(
    "The model was made for features, with `num_classes=0` or with `nn.Identity()` as its classifier.",
    "Give it one before `attach`: `model.reset_classifier(10)`, `model.fc = nn.Linear(512, 10)`.",
)
DROPPED_PATCHES = Mistake(
    "timm's EVA drops different patches of each sample, and passes their rotary positions from block to "
    "block.",
    "Build it with `patch_drop_rate=0.0`.",
)
SHARDED = Mistake(
    "`attach` is called after `fully_shard`.",
    "Attach first, and shard the model with what was attached.",
)
NO_LABELS = Mistake(
    "The model reconstructs its images, and compares what it made of them with the images that came in.",
    "Attach to the model that is fine-tuned with labels afterwards.",
)
NO_FEATURES = Mistake(
    "The model classifies each token, or pools the tokens after they were classified.",
    "Insert after a block, where tokens are related position by position: "
    "`attach(model, after='bert.encoder.layer.8')`.",
)
FEWER_BLOCKS = Mistake(
    "The model is smaller than those for which the published place is known.",
    "Name a block: `attach(model, after=3)`.",
)
BEHIND_THE_QUERIES = Mistake(
    "EoMT has a loss at each block with queries, and blocks before the first place have one stream.",
    "Name a block before the queries: `attach(model, after=6)`.",
)
ONE_LAYOUT = Mistake(
    "The blocks give tokens in different layouts, of which one module knows one.",
    "Say the layout, if it is the same after all, or insert after blocks of one kind.",
)
BATCH_FIRST = Mistake(
    "`layout` contradicts `batch_first` of the block.",
    "Leave `layout` out: it is read from the block.",
)
MISSPELLED = Mistake(
    "An option is misspelled, or belongs to another class.",
    "Take the names from the signatures of `attach` and `BatchFormer`.",
)
TWICE = Mistake(
    "The line with `attach` runs a second time on the same model, as notebook cells do.",
    "Call `attachment.remove()` first, or keep the first attachment.",
)
NAME_TAKEN = Mistake(
    "The model has an attribute of its own called `batchformer`, which is where the attachment goes.",
    "Rename that attribute, or attach to the part of the model that has the classifier.",
)
UNKNOWN_FAMILY = Mistake(
    "The model is of no family that `attach` knows, or its classes have other names.",
    "Name the place: `attach(model, before='fc')`, or `attach(model, after='blocks.8')`.",
)
OTHER_FAMILY = Mistake(
    "The preset is that of another family, or the model only a part of the one it is for.",
    "Pass the model that the sentence describes, or name the place with `before=` or `after=`.",
)
NOT_ITS_OPTION = Mistake(
    "The option means nothing for this family or kind of place.",
    "Leave it out; the message lists what there is.",
)
WRAPPED_ALREADY = Mistake(
    "`attach` is called after the line that wraps the model.",
    "Attach first: `attach(model, …)`, then `DistributedDataParallel(model)` or `torch.compile(model)`.",
)


def data_parallel():
    model = nn.DataParallel(nn.Sequential(nn.Linear(8, 5)))
    model.device_ids = [0, 1]
    return model


def three_blocks():
    blocks = nn.Sequential(*(nn.Linear(16, 16) for _ in range(3)))
    return nn.Sequential(OrderedDict(patch_embed=nn.Linear(8, 16), blocks=blocks))


def eomt():
    """A model of the package that takes seconds to import, so that only its rows wait for it."""
    from families.segmenters import eomt

    return eomt()


def detector(backbone=None):
    name = "torchvision.models.detection.retinanet"
    model = type("RetinaNet", (Forward,), {"__module__": name})()
    model.backbone, model.head = backbone or nn.Conv2d(3, 8, 1), nn.Linear(8, 5)
    return model


class Forward(nn.Module):
    def forward(self, x):
        return x


def of_transformers(name):
    """A model by its name, without the seconds that its package takes to import."""
    module = {"__module__": "transformers.models.some.modeling_some", "main_input_name": "pixel_values"}
    return type(name, (nn.Module,), module)()


def without_classifier(package):
    names = {"__module__": f"{package}.models.resnet", "get_classifier": lambda model: model.fc}
    model = type("ResNet", (nn.Module,), names)()
    model.fc = nn.Identity()
    return model


def with_dropped_patches():
    model = three_blocks()
    model.patch_drop, model.rope = SimpleNamespace(prob=0.5), nn.Identity()
    return model


def sharded():
    model = nn.Sequential(nn.Linear(8, 5))
    model[0].weight = type("DTensor", (nn.Parameter,), {})(torch.ones(5, 8))
    return model


ATTACH = (
    Row(
        lambda: bf.attach([nn.Linear(8, 5)]),
        TypeError,
        "model: expected a torch.nn.Module, got list",
        *NOT_A_MODULE,
    ),
    Row(
        lambda: bf.attach(NET, before="classfier"),
        ValueError,
        "before: expected the path of a module in Sequential, got 'classfier'; the nearest are 'classifier'; "
        "the last Linear is 'classifier'",
        *NO_SUCH_PATH,
    ),
    Row(
        lambda: bf.attach(NET, before="zzz"),
        ValueError,
        "before: expected the path of a module in Sequential, got 'zzz'; it has 'stem', 'block', "
        "'classifier'; the last Linear is 'classifier'",
        *NO_SUCH_PATH,
    ),
    Row(
        lambda: bf.attach(NET, before=[]),
        ValueError,
        "before: expected at least one path and none twice, got []",
        *NO_PATHS,
    ),
    Row(
        lambda: bf.attach(NET, before=["classifier", "classifier"]),
        ValueError,
        "before: expected at least one path and none twice, got ['classifier', 'classifier']",
        *NO_PATHS,
    ),
    Row(
        lambda: bf.attach(SHARING, before=["0", "1"]),
        ValueError,
        "before: expected each module once, got ['0', '1'], which share one",
        *NO_PATHS,
    ),
    Row(
        lambda: bf.attach(EMPTY, after="1", dim=8, layout="NC"),
        ValueError,
        "model: expected a place with a module inside, got '1', which has none",
        *NO_MODULE_INSIDE,
    ),
    Row(
        lambda: bf.attach(NET, before=3),
        TypeError,
        "before: expected a path or a list of paths of modules, got 3",
        *NOT_A_PATH,
    ),
    Row(
        lambda: bf.attach(NET, before="classifier", dim=32),
        ValueError,
        "dim: expected 16, which 'classifier' takes, got 32",
        *NOT_ITS_WIDTH,
    ),
    Row(
        lambda: bf.attach(nn.Sequential(nn.ReLU()), before="0"),
        ValueError,
        "dim: expected the number of channels at '0', as ReLU does not tell it, got None; "
        "attach(..., dim=64) says that there are 64",
        *UNKNOWN_WIDTH,
    ),
    Row(
        lambda: bf.attach(NET, before=["stem", "classifier"]),
        ValueError,
        "shared: expected False, as one module has one width, got True and widths of 8 at 'stem', 16 at "
        "'classifier'",
        *ONE_MODULE_FOR_TWO_WIDTHS,
    ),
    Row(
        lambda: bf.attach(MAPS, after=["0", "1"]),
        ValueError,
        "layout: expected one for all places, got ['LNC', 'NCHW']",
        *ONE_LAYOUT,
    ),
    Row(
        lambda: bf.attach(NET, after="stem"),
        ValueError,
        "layout: expected 'NLC' if 'stem' gives [N, L, C] (axis 0 is the batch), 'LNC' if it gives "
        "[L, N, C] (axis 1), 'NCHW', 'NHWC', or 'NC' for features, as Linear does not tell, got None",
        *NO_LAYOUT,
    ),
    Row(
        lambda: bf.attach(MAPS, after="2", layout="NLC"),
        ValueError,
        "model: expected a module at '2' that the model calls, got a ModuleList, which only holds others; "
        "name one of them",
        *NEVER_CALLED,
    ),
    Row(
        lambda: bf.attach(NET, before="classifier", outputs="originals", wrapped=False),
        ValueError,
        'outputs: expected "both" with wrapped=False, as only a wrapped criterion gets the related rows of '
        '"originals", got "originals"',
        *NOBODY_GETS,
    ),
    Row(
        lambda: bf.attach(stand_ins.Detr(), after="transformer.encoder.layers.0", layout="LNC"),
        ValueError,
        "after: expected the index of the block, after=0, of a model of 'detr', whose masks and "
        "positions are "
        "doubled with it, got 'transformer.encoder.layers.0'",
        *BY_INDEX,
    ),
    Row(
        lambda: bf.attach(NET, before="classifier", optional=["stem"]),
        ValueError,
        "optional: expected paths out of ['classifier'], got 'stem'",
        *NOT_A_PLACE,
    ),
    Row(
        lambda: bf.attach(NET, after="block", layout="NLC"),
        ValueError,
        "layout: expected 'LNC', as TransformerEncoderLayer at 'block' gives that, got 'NLC'",
        *BATCH_FIRST,
    ),
    Row(
        lambda: bf.attach(NET, after="block", layout="NWHC"),
        ValueError,
        "layout: expected 'NLC' or 'LNC' or 'NCHW' or 'NHWC' or 'NC', got 'NWHC'",
        *CHOICE,
    ),
    Row(
        lambda: bf.attach(NET, before="classifier", nhead=3),
        ValueError,
        "nhead: expected a divisor of dim=16, got 3",
        *HEADS,
    ),
    Row(
        lambda: bf.attach(NET, before="classifier", droput=0.1),
        TypeError,
        "attach() got an unexpected keyword argument 'droput'; the nearest is 'dropout'",
        *MISSPELLED,
    ),
    Row(
        lambda: bf.attach(SMALL, before="1"),
        ValueError,
        "model: expected a Sequential without BatchFormer, got one that has it",
        *TWICE,
    ),
    Row(
        lambda: bf.attach(type("Net", (nn.Linear,), {"batchformer": 1})(8, 5), before=""),
        ValueError,
        "model: expected no attribute 'batchformer', got a Net that has one",
        *NAME_TAKEN,
    ),
    Row(
        lambda: bf.attach(NET),
        ValueError,
        "model: expected one of a known family, or a place by its path (before= or after=), got Sequential; "
        "the last Linear is 'classifier': attach(model, before='classifier')",
        *UNKNOWN_FAMILY,
    ),
    Row(
        lambda: bf.attach(of_transformers("ViTMAEForPreTraining")),
        ValueError,
        "model: expected one that is trained on labels, got ViTMAEForPreTraining, whose targets are its "
        "input images, which cannot be doubled",
        *NO_LABELS,
    ),
    Row(
        lambda: bf.attach(of_transformers("BertForTokenClassification")),
        ValueError,
        "model: expected one Linear after the base model that gives the 0 numbers of config.num_labels from "
        "features [N, C], or a place by its path (before=, after=), got BertForTokenClassification, which "
        "has none or two, classifies tokens, pools after that layer, or has a forward of its own",
        *NO_FEATURES,
    ),
    Row(
        lambda: bf.attach(with_dropped_patches()),
        ValueError,
        "model: expected no patch_drop_rate with rotary positions, which then differ between samples and "
        "have one stream, got a Sequential with 0.5",
        *DROPPED_PATCHES,
    ),
    Row(
        lambda: bf.attach(NET, "detr"),
        ValueError,
        "model: expected for 'detr' a Detr, ConditionalDetr, DeformableDetr, DabDetr or TableTransformer "
        "model (transformers) or backbone, input_proj and transformer.encoder.layers "
        "(facebookresearch/detr), got Sequential",
        *OTHER_FAMILY,
    ),
    Row(
        lambda: bf.attach(NET, "resnet"),
        ValueError,
        "preset: expected a name out of families(), got 'resnet'",
        *CHOICE,
    ),
    Row(
        lambda: bf.attach(NET, "detr", before="classifier"),
        ValueError,
        "preset: expected no value with 'before', which takes before, shared, outputs, optional, wrapped, "
        "pairings, dim and what BatchFormer takes, got 'detr'",
        *NOT_ITS_OPTION,
    ),
    Row(
        lambda: bf.attach(NET, after="block", pairings="all4"),
        ValueError,
        "pairings: expected 'all' or 'aligned', got 'all4'",
        *CHOICE,
    ),
    Row(
        lambda: bf.attach(stand_ins.Ride(), "ride", after=1),
        ValueError,
        "after: expected no value with 'ride', which takes dim and what BatchFormer takes, got 1",
        *NOT_ITS_OPTION,
    ),
    Row(
        lambda: bf.attach(stand_ins.Detr(), as_published=True),
        ValueError,
        "as_published: expected no value with 'detr', which takes after, shared, wrapped, dim and what "
        "BatchFormer takes, got True",
        *NOT_ITS_OPTION,
    ),
    Row(
        lambda: bf.attach(stand_ins.Detr(), after=3),
        ValueError,
        "after: expected indices from 0 to 2 of 'transformer.encoder.layers', got [3]",
        *INDICES,
    ),
    Row(
        lambda: bf.attach(three_blocks()),
        ValueError,
        "after: expected an index from 0 to 2, as 'blocks' has 3 blocks and not the paper's block 8, got "
        "None",
        *FEWER_BLOCKS,
    ),
    Row(
        lambda: bf.attach(eomt(), after=9),
        ValueError,
        "after: expected a first block from 0 to 8, as later blocks get the queries and have a loss each, "
        "got 9",
        *BEHIND_THE_QUERIES,
    ),
    Row(
        lambda: bf.attach(stand_ins.Detr(), after=[]),
        ValueError,
        "after: expected indices from 0 to 2 of 'transformer.encoder.layers', got []",
        *INDICES,
    ),
    Row(
        lambda: bf.attach(stand_ins.Detr(), after=[2, 0]),
        ValueError,
        "after: expected ascending indices, as the first doubles the batch, got [2, 0]",
        *ORDER,
    ),
    Row(
        lambda: bf.attach(stand_ins.Detr(), after=0.5),
        TypeError,
        "after: expected an index or a list of indices of blocks, got 0.5",
        *NOT_INDICES,
    ),
    Row(
        lambda: bf.attach(COMPILED, before="0"),
        ValueError,
        "model: expected one before torch.compile, got a compiled one",
        *WRAPPED_ALREADY,
    ),
    Row(
        lambda: bf.attach(
            nn.Sequential(type("FullyShardedDataParallel", (nn.Linear,), {})(8, 5)), before="0"
        ),
        ValueError,
        "model: expected one that is not wrapped in FullyShardedDataParallel yet, as that takes over the "
        "parameters which it finds, got FullyShardedDataParallel",
        *WRAPPED_ALREADY,
    ),
    Row(
        lambda: bf.attach(detector(), before="head"),
        ValueError,
        "model: expected torchvision's RetinaNet itself without a place, or a place in its backbone, as its "
        "targets have to be doubled with its maps, got 'head' in RetinaNet",
        *DETECTOR,
    ),
    Row(
        lambda: bf.attach(nn.ModuleDict({"detector": detector()}), after="detector.backbone"),
        ValueError,
        "model: expected torchvision's RetinaNet itself without a place, or a place in its backbone, as its "
        "targets have to be doubled with its maps, got 'detector.backbone' in ModuleDict",
        *DETECTOR,
    ),
    Row(
        lambda: bf.attach(detector(), after="head"),
        ValueError,
        "after: expected the path of a block inside of 'backbone' of RetinaNet, as later modules take "
        "regions, not images, got 'head'",
        *DETECTOR,
    ),
    Row(
        lambda: bf.attach(detector(Forward())),
        ValueError,
        "after: expected the path of a block of 'backbone' in RetinaNet, as Forward has neither a pyramid "
        "nor one width (out_channels) for all its outputs, got None",
        *DETECTOR_BACKBONE,
    ),
    Row(
        lambda: bf.attach(without_classifier("timm")),
        ValueError,
        "model: expected one with a classifier, got a ResNet without; model.reset_classifier(num_classes) "
        "before attach()",
        *NO_CLASSIFIER,
    ),
    Row(
        lambda: bf.attach(without_classifier("torchvision")),
        ValueError,
        "model: expected a ResNet with a classifier, got nn.Identity() as 'fc'; put one there before "
        "attach()",
        *NO_CLASSIFIER,
    ),
    Row(
        lambda: bf.attach(sharded(), before="0"),
        ValueError,
        "model: expected one whose parameters are not sharded yet, as those of BatchFormer would stay out of "
        "it, got one after fully_shard; attach() before",
        *SHARDED,
    ),
    Row(
        lambda: bf.attach(data_parallel(), before="module.0"),
        ValueError,
        "model: expected no nn.DataParallel around 'module.0', as it gathers both streams of each device in "
        "turn, got one over 2; use DistributedDataParallel",
        *DATA_PARALLEL,
    ),
)
