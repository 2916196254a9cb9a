"""Rows of steps of training with an attachment: what would train something else than both streams."""

import itertools
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import batchformer as bf
from batchformer import marks
from batchformer.swap_in.forward import Forward
from error_table.row import Mistake, Row

X, Y = torch.randn(6, 8), torch.arange(6) % 5

NOT_RUN = Mistake(
    "The head was replaced, or is called in a way that bypasses its hooks, so that BatchFormer did not run.",
    "Replace heads before `attach`, call modules themselves, and name what is skipped on purpose.",
)
CALLED_ALONE = Mistake(
    "A new model was built from the children of the model, as in `nn.Sequential(*model.children())`.",
    "Leave the child `batchformer` out, or attach to the new model.",
)
TRACED = Mistake(
    "A model in training is traced, exported or taken apart by torch.fx.",
    "`model.eval()` first; it is the stock model then.",
)
NOT_WRAPPED = Mistake(
    "The targets are those of one stream: the criterion was not wrapped.",
    "`criterion = attachment.wrap(criterion)`, once, where it is made.",
)
NO_LABELS = Mistake(
    "A model that computes its loss was called without labels, and nothing else computes one for both "
    "streams.",
    "Pass `labels`, or wrap what takes them: "
    "`trainer.label_smoother = attachment.wrap(trainer.label_smoother)`.",
)
NEGATIVES = Mistake(
    "A contrastive loss inside of the model takes the other stream of a sample for another sample.",
    "`attach(model)` without a path knows CLIP and SigLIP; else compute the loss outside, in "
    "`wrap(criterion, targets=[])`.",
)
MANY_BATCHES = Mistake(
    "A criterion without targets is given outputs of more than two views at once.",
    "Wrap the term of two views, and call it for each pair of views; or pair equal streams alone.",
)
SHAPES = Mistake(
    "A criterion without targets selects rows by their values, as hard pairs, and does not reduce them.",
    "Take the mean in the criterion, or wrap the function that calls it.",
)
PAIRS = Mistake(
    "Similarities between the samples were computed before the criterion.",
    "`attachment.wrap(criterion, targets=[])`, or compute them in the criterion.",
)
HIDDEN_PAIRS = Mistake(
    "A compiled model returns features with 2N channels, as many as both streams have rows.",
    "Compute similarities in the criterion, or change the size of the batch; CLIP takes `return_loss=True`.",
)
HIDDEN_CUT = Mistake(
    "A wrapped criterion got a part of what a compiled model returns, or an output from before BatchFormer.",
    'Cut nothing, or `attach(..., outputs="originals")`; what is from before BatchFormer goes to a criterion '
    "that is not wrapped.",
)
GIVES_PAIRS = Mistake(
    "A model computes similarities between its samples itself.",
    "Leave `outputs` as it is, and wrap the criterion with `targets=[]`.",
)
LABELS_BEFORE = Mistake(
    "The model makes something of its labels before the place: queries, decoder inputs, embeddings.",
    "Insert before that, or compute the loss outside, with a wrapped criterion.",
)
REENTRANT = Mistake(
    "A reentrant checkpoint runs its part of the model without gradients, and cuts off what came before.",
    "`checkpoint(…, use_reentrant=False)`; transformers: `gradient_checkpointing_kwargs`.",
)
AFTER_DDP = Mistake(
    "`attach` was given the model inside of DistributedDataParallel.",
    "Attach first, then `DistributedDataParallel(model)`.",
)
SHARDED_INSIDE = Mistake(
    "`fully_shard` was given each child of the model, or each layer, among them modules that are never "
    "called.",
    "Shard the blocks, the modules in `attachment.inserted`, and then the model.",
)
SHARDED_BESIDE = Mistake(
    "`fully_shard` was given blocks of the model, and neither the model nor the modules that were attached.",
    "End with `fully_shard(model)`, as for the other parameters that are in no block.",
)
INTERMEDIATES = Mistake(
    "Feature maps of a vision transformer of timm are taken while it trains.",
    "Switch to evaluation for them.",
)
CUT = Mistake(
    "The script cuts the outputs by the size of the batch, as FixMatch does, where they have twice the rows.",
    "`attach(…, outputs='originals')`, or `bf.original(outputs)` and `bf.related(outputs)`.",
)
MARGIN = Mistake(
    "A margin is put in by the labels outside of the criterion, where only the originals have labels.",
    "Put it in inside of the wrapped criterion, where the labels are doubled.",
)
NO_TARGETS = Mistake(
    "The targets are of another number, inside of an object that is not known, or there are none.",
    "Pass them as tensors, lists, dicts or dataclasses; without targets `wrap(criterion, targets=[])`.",
)
UNCLEAR = Mistake(
    "A vector's length is both the batch size and the number of classes, and nothing says which is meant.",
    "Name the targets: `attachment.wrap(criterion, targets=['labels'])`.",
)
PAIRS = Mistake(
    "A criterion takes a matrix of pairs of samples, such as a mask of positives.",
    "Let it compute the matrix from the labels.",
)
LIST_OR_TARGETS = Mistake(
    "A list is as long as the batch, and so is what is in it.",
    "Put several targets into a dict, and targets of one entry a sample into a tensor.",
)
COMPUTED = Mistake(
    "With `outputs='originals'`, the criterion gets what was computed from the outputs on the way.",
    "Pass the outputs as they came, or views of them, and compute the rest in the criterion; or attach with "
    "`outputs='both'`.",
)
TERM = Mistake(
    "With `outputs='originals'`, a term of the loss is not wrapped: it trains the originals alone.",
    "Wrap each term: `penalty = attachment.wrap(penalty, targets=[])`.",
)
DEAD_END = Mistake(
    "The module at the place returns several tensors, and the model uses another than the first.",
    "Insert after it: `attach(model, before='fc')`.",
)
SPLITS = Mistake(
    "A criterion such as timm's for AugMix takes a third of the rows for a view of all images.",
    "Compute it of `bf.original(outputs)` and of `bf.related(outputs)`, with `wrapped=False`.",
)
IN_ONE_LIST = Mistake(
    "The boxes of all images are in one tensor, with the index of the image that each belongs to.",
    "Give the criterion a list with the targets of each image.",
)
INDICES = Mistake(
    "A criterion selects rows by index, which gives the originals alone.",
    "Name the targets, and take the rows of both: `torch.cat([index, index + len(outputs) // 2])`.",
)
NO_TARGET = Mistake(
    "Features of another network are contrasted with those of the model, without targets.",
    "`attachment.wrap(criterion, targets=[])`.",
)
SECOND_INPUT = Mistake(
    "The model takes a second batch of inputs, as of another domain, and its parameter is called target.",
    "Give the parameter another name, or double the labels by hand.",
)
SQUARE_LABELS = Mistake(
    "A model with the sequence first was given labels `[L, N]` with L = N: either axis may be the batch's.",
    "Use another batch size, or compute the loss outside, with a wrapped criterion.",
)
IN_PLACE = Mistake(
    "With `outputs='originals'`, the outputs were changed in place.",
    "Change a copy, inside of the criterion.",
)


def attached(**options):
    model = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 5))
    return model, bf.attach(model, before="1", **options)


def replaced():
    model, _ = attached()
    model[1] = nn.Linear(16, 5)
    return model


class AfterLstm(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.fc = nn.LSTM(8, 16, batch_first=True), nn.Linear(16, 5)

    def forward(self, x):
        return self.fc(self.lstm(x)[1][0][-1])


def after_lstm():
    model = AfterLstm()
    bf.attach(model, after="lstm", layout="NLC", dim=16)
    return model


class Tokens(nn.Module):
    """Blocks in checkpoints that cut the history."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(16, 16) for _ in range(2))

    def forward(self, x, skipped=0):
        for block in self.blocks[skipped:]:
            x = checkpoint(block, x, use_reentrant=True)
        return x


class WithLabels(nn.Module):
    """As a model of transformers; labels that are embedded before the head, if it is told so."""

    loss_function = staticmethod(F.cross_entropy)

    def __init__(self, embedded=False):
        super().__init__()
        self.stem, self.head, self.embedding = nn.Linear(8, 16), nn.Linear(16, 5), nn.Embedding(5, 16)
        self.embedded = embedded

    def forward(self, x, labels=None, return_loss=None):
        features = self.stem(x)
        if self.embedded:
            features = features.mean(0) + self.embedding(labels)
        logits = self.head(features)
        return logits if labels is None else self.loss_function(logits, labels)


def of_transformers(**options):
    model = WithLabels(**options)
    bf.attach(model, before="head")
    return model


def reentrant():
    """A place that got as many rows with both streams as with one, in batches of two sizes."""
    model = Tokens()
    places = ["blocks.0", "blocks.1"]
    bf.attach(model, after=places, layout="NLC", wrapped=False, optional=places[:1])
    loss = model(torch.randn(2, 3, 16, requires_grad=True)).sum()
    model(torch.randn(4, 3, 16, requires_grad=True), skipped=1)
    return loss


class Alone(DistributedDataParallel):
    """Without processes: what it found, and that it runs."""

    def __init__(self, module):
        nn.Module.__init__(self)
        self.module = module
        self._module_parameters = list(module.parameters())

    def forward(self, x):
        with self._inside_ddp_forward():
            return self.module(x)


def behind_ddp():
    model = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 5))
    parallel = Alone(model)
    bf.attach(model, before="1")
    return parallel(X)


class FSDPModule:
    """What FSDP2 makes of the class of a unit."""

    def _get_fsdp_state(self):
        return SimpleNamespace(_is_root=True)


def attached_to_head():
    model = nn.Module()
    model.fc = nn.Linear(8, 5)
    model.forward = lambda x: model.fc(x)
    bf.attach(model, before="fc")
    return model


def sharded(part):
    model = attached_to_head()
    unit = model.get_submodule(part)
    unit.__class__ = type(f"FSDP{type(unit).__name__}", (FSDPModule, type(unit)), {})
    return model(X)


def intermediates():
    import timm

    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=5).train()
    bf.attach(model, after=0)
    return model.forward_intermediates(torch.randn(2, 3, 32, 32))


def criterion_of(outputs="both", criterion=F.cross_entropy, samples=6):
    model, attachment = attached(outputs=outputs)
    return model(X[:samples]), attachment.wrap(criterion)


LOGITS, CRITERION = criterion_of()
ORIGINALS, REJOINING = criterion_of("originals")
CHANGED, CHANGING = criterion_of("originals")
CHANGED.mul_(2)
NO_GRAD_MODEL, NO_GRAD_ATTACHMENT = attached(outputs="originals")
NO_GRAD_CRITERION = NO_GRAD_ATTACHMENT.wrap(F.cross_entropy)
NO_GRAD = checkpoint(NO_GRAD_MODEL, X.clone().requires_grad_(), use_reentrant=True)


class Similar(nn.Linear):
    """Gives the similarities of the samples of a batch."""

    def forward(self, x):
        features = super().forward(x)
        return features @ features.T


def similarities():
    model = nn.Sequential(nn.Identity(), nn.Sequential(Similar(8, 4)))
    bf.attach(model, before="1", outputs="originals", nhead=2)
    return model


def hidden_pairs():
    """What a compiled graph gives, of which the number of rows alone is known."""
    features = torch.ones(12, 12, requires_grad=True) * 1
    marks.put_by_history(features, marks.Doubled(Forward(None), 6))
    return features


def cut_of_a_graph():
    """What a script cuts from the output of a compiled model."""
    model = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 5))
    criterion = bf.attach(model, before="1").wrap(F.cross_entropy)
    return criterion(torch.compile(model, backend="aot_eager")(X)[:6], Y)


def gradients_of_originals():
    model = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 5))
    criterion = bf.attach(model, before="1", outputs="originals").wrap(F.cross_entropy)

    def loss(parameters):
        return criterion(torch.func.functional_call(model, parameters, (X,)), Y)

    return torch.func.grad(loss)(dict(model.named_parameters()))


class Turned(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)

    def forward(self, x):
        x = self.block(x).transpose(0, 1)
        return x.as_strided(x.shape, x.stride())


def turned():
    model = Turned()
    bf.attach(model, after="block")
    return model


SEEING = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 5))
WRAPS = bf.attach(SEEING, before="1").wrap
OF_PAIRS = WRAPS(lambda *views: sum(view.sum() for view in views), targets=[])
SHAPES_OF_CALLS = itertools.cycle([1, 2])
OF_CHANGING_SHAPE = WRAPS(lambda view: view.flatten()[: next(SHAPES_OF_CALLS)], targets=[])
OF_HOLDERS = WRAPS(lambda view: SimpleNamespace(loss=view.sum()), targets=[])
SEEN_BY = WRAPS(F.cross_entropy)
ANOTHER = nn.Linear(8, 5)


class TakesTarget(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x, target):
        return self.layer(x), target


def takes_target(layer, *inputs):
    model = TakesTarget(layer)
    bf.attach(model, after="layer", **({"layout": "NC"} if isinstance(layer, nn.Linear) else {}))
    model(*inputs)


SIX, OF_SIX = criterion_of(criterion=lambda outputs, *targets, **more: None)
FIVE, OF_FIVE = criterion_of(criterion=lambda outputs, *targets: None, samples=5)
TRAINING = (
    Row(
        lambda: replaced()(X),
        RuntimeError,
        "model: expected '1' to run in every forward in training, got one in which BatchFormer did not: the "
        "module was replaced after attach() (attachment.remove(), and attach() again), called past its hooks "
        "(its .forward, its weights alone, a checkpoint of its layers, a graph compiled for such a model "
        "without BatchFormer: torch.compiler.reset()) or skipped; name what is skipped on purpose: "
        "attach(..., optional=[...])",
        *NOT_RUN,
    ),
    Row(
        lambda: attached()[1](X),
        RuntimeError,
        "model: expected a call of the model, as its hooks run BatchFormer, got one of its child "
        "'batchformer'; leave it out of a new model that is built from the children",
        *CALLED_ALONE,
    ),
    Row(
        lambda: torch.jit.trace(attached()[0], X),
        RuntimeError,
        "model: expected one in evaluation for tracing and export, as BatchFormer is for training alone, got "
        "one in training: model.eval(), or attachment.remove() before",
        *TRACED,
    ),
    Row(
        lambda: attached()[0](X).sum().backward(),
        RuntimeError,
        "criterion: expected a wrapped one, as the outputs have both streams, got the gradient of one that "
        "is not: criterion = attachment.wrap(criterion); or attach(..., wrapped=False) if the script doubles "
        "the targets",
        *NOT_WRAPPED,
        computed=True,
    ),
    Row(
        lambda: of_transformers()(X),
        RuntimeError,
        "labels: expected those of WithLabels in the call, or a wrapped criterion, as the outputs have both "
        "streams, got neither; with transformers' Trainer and label smoothing trainer.label_smoother = "
        "attachment.wrap(trainer.label_smoother), else wrap what computes the loss, or attach(..., "
        "wrapped=False) if the script doubles the targets",
        *NO_LABELS,
        computed=True,
    ),
    Row(
        lambda: of_transformers()(X, return_loss=True),
        ValueError,
        "return_loss: expected none in training with BatchFormer, as it contrasts the samples of a "
        "batch, and "
        "a related row would be a negative of its own original, got True",
        *NEGATIVES,
    ),
    Row(
        lambda: of_transformers(embedded=True)(X, Y),
        ValueError,
        "labels: expected one for each of the 12 samples at 'head', got 6; what is computed from labels "
        "before BatchFormer has one stream only",
        *LABELS_BEFORE,
    ),
    Row(
        lambda: OF_SIX(SIX, ANOTHER(X)),
        ValueError,
        "criterion: expected a target, which has no gradient, among the arguments with 6 rows, got features "
        "of another network alone, for which the other stream of a sample would be another sample; for a "
        "loss without targets call attachment.wrap(criterion, targets=[]), else name them: targets=[...]",
        *NO_TARGET,
    ),
    Row(
        lambda: takes_target(nn.Linear(8, 8), X, X),
        ValueError,
        "labels: expected them to differ from the inputs, got a target or label of shape [6, 8] that may be "
        "a second batch of inputs; call the parameter otherwise, as in forward(self, source, other), or "
        "attach(..., wrapped=False)",
        *SECOND_INPUT,
    ),
    Row(
        lambda: takes_target(nn.Linear(8, 8), X, {"y": Y, "of_classes": torch.randn(5, 8).double()}),
        ValueError,
        "labels: expected an entry for each sample in all of them, got 6 in target['y'] and 5 in "
        "target['of_classes']; call what is not of the samples otherwise, or compute the loss outside of the "
        "model, in a wrapped criterion",
        "What a model is given as labels or target has a part that is not of the samples, such as negatives "
        "or embeddings that all samples share.",
        "Give that part a parameter of its own that is not called labels or target.",
    ),
    Row(
        lambda: takes_target(nn.TransformerEncoderLayer(8, 2), X.expand(6, 6, 8), Y.expand(6, 6)),
        ValueError,
        "labels: expected as many entries along one axis as there are samples, got shape [6, 6], of which "
        "both axes are as long, and the model has the sequence first; take batches of another size than the "
        "sequence has, or compute the loss outside",
        *SQUARE_LABELS,
    ),
    Row(
        lambda: reentrant().backward(),
        RuntimeError,
        "checkpoint: expected to know whether the 4 samples at 'blocks.1' have both streams, got a reentrant "
        "one, which does not show it; pass use_reentrant=False",
        *REENTRANT,
        computed=True,
    ),
    Row(
        lambda: NO_GRAD_CRITERION(NO_GRAD, Y),
        ValueError,
        "criterion: expected outputs of a model that ran with gradients, as the gradients of the related "
        "rows would be lost, got some of one that ran without (a reentrant checkpoint); pass "
        "use_reentrant=False",
        *REENTRANT,
    ),
    Row(
        behind_ddp,
        RuntimeError,
        "model: expected attach() before DistributedDataParallel, as that averages the gradients of the "
        "parameters which it found, got parameters that it does not know, which would drift apart "
        "between the "
        "ranks",
        *AFTER_DDP,
    ),
    Row(
        lambda: sharded("batchformer"),
        RuntimeError,
        "fully_shard: expected parameters of 'batchformer.inserted.0' that are gathered at 'fc', got some in "
        "the unit 'batchformer', which is not called there; shard each of attachment.inserted, and then what "
        "is around it",
        *SHARDED_INSIDE,
    ),
    Row(
        lambda: sharded("fc"),
        RuntimeError,
        "fully_shard: expected one around the model, or around each of attachment.inserted, as their "
        "gradients are not averaged over the processes otherwise, got some around 'fc'",
        *SHARDED_BESIDE,
    ),
    Row(
        intermediates,
        RuntimeError,
        "model: expected no forward_intermediates() in training, as it takes both streams for one "
        "batch, got a "
        "call; model.eval() before it",
        *INTERMEDIATES,
    ),
    Row(
        lambda: CRITERION(LOGITS[:4], Y[:4]),
        ValueError,
        "criterion: expected outputs with the 12 rows of both streams, got some of shape [4, 5]; "
        "where a script "
        'cuts them, attach(..., outputs="originals"), or take them apart with original() and related(); or '
        "`layout` names another axis than the batch; where the batch is not their first axis, flatten them "
        "in the criterion",
        *CUT,
    ),
    Row(
        lambda: CRITERION(LOGITS.scatter(1, Y[:, None], 0.0), Y),
        ValueError,
        "criterion: expected outputs whose two streams were changed alike, got some of shape [12, 5] of "
        "which rows of the originals alone were changed; change them in the criterion, or attach(..., "
        'outputs="originals")',
        *MARGIN,
    ),
    Row(
        lambda: CRITERION(LOGITS, Y[:4]),
        ValueError,
        "criterion: expected targets with an entry for each of the 6 samples, as the outputs have both "
        "streams, got none; for a part of the batch pass that part of the outputs (attach(..., "
        'outputs="originals")), for a loss without targets call attachment.wrap(criterion, targets=[])',
        *NO_TARGETS,
    ),
    Row(
        lambda: OF_FIVE(FIVE, Y[:5], torch.rand(5)),
        ValueError,
        "criterion: expected to know whether argument 2 has an entry for each sample or for each class, as "
        "there are 5 of both, got neither name nor targets=; attachment.wrap(criterion, targets=[...]) says "
        "which arguments are targets",
        *UNCLEAR,
    ),
    Row(
        lambda: OF_SIX(SIX, Y, torch.rand(6, 6)),
        ValueError,
        "criterion: expected no matrix of pairs of samples, as the pairs of both streams are not known, got "
        "argument 2 of shape [6, 6]; make it in the criterion, or name the targets: "
        "attachment.wrap(criterion, targets=[...])",
        *PAIRS,
    ),
    Row(
        lambda: OF_FIVE(FIVE, [torch.arange(5)] * 5),
        ValueError,
        "criterion: expected to know whether argument 1 is one target with 5 entries or 5 targets, "
        "as each has "
        "5 rows, got a list of them; a dict holds several targets",
        *LIST_OR_TARGETS,
    ),
    Row(
        lambda: REJOINING(ORIGINALS * 2, Y),
        ValueError,
        "criterion: expected the outputs that the model returned, or views of them, as the related rows are "
        "known for those alone, got a tensor computed from one, of shape [6, 5]; compute it inside: "
        "attachment.wrap(lambda outputs, targets: ...)",
        *COMPUTED,
    ),
    Row(
        lambda: F.cross_entropy(criterion_of("originals")[0], Y).backward(),
        RuntimeError,
        "criterion: expected every loss of the outputs to be wrapped, as only wrapped losses get the related "
        "rows, got the gradient of one that is not: attachment.wrap() for each term",
        *TERM,
        computed=True,
    ),
    Row(
        lambda: after_lstm()(torch.randn(4, 3, 8)),
        RuntimeError,
        "model: expected outputs that depend on the output at 'lstm', got none, as if the model used another "
        "output of that module; name a later module",
        *DEAD_END,
        computed=True,
    ),
    Row(
        lambda: attached()[1].wrap(type("Jsd", (nn.Module,), {"num_splits": 3})()),
        ValueError,
        "criterion: expected one for which each row is a sample, got Jsd, which splits the batch itself; "
        "attach(..., wrapped=False), and call it for each stream",
        *SPLITS,
    ),
    Row(
        lambda: OF_SIX(SIX, {"img": torch.rand(6, 3, 2, 2), "batch_idx": Y}),
        ValueError,
        "criterion: expected targets with an entry for each sample, got 'batch_idx', which tells that one "
        "list holds the targets of all samples; make a list of targets for each image, or double them by "
        "hand: attach(..., wrapped=False)",
        *IN_ONE_LIST,
    ),
    Row(
        lambda: OF_SIX(SIX, Y, index=torch.tensor([0, 2])),
        ValueError,
        "criterion: expected no indices of rows, as the related rows have other indices, got argument "
        "'index'; take the rows before, or name the targets: attachment.wrap(criterion, targets=[...])",
        *INDICES,
    ),
    Row(
        lambda: CHANGING(CHANGED, Y),
        ValueError,
        "criterion: expected outputs as the model returned them, got some that were changed in place, which "
        "the related rows were not; change a copy inside of the criterion",
        *IN_PLACE,
    ),
    Row(
        lambda: OF_PAIRS(*(SEEING(X) for _ in range(3))),
        ValueError,
        "criterion: expected outputs of at most 2 batches, as all their streams are paired, got some of 3; "
        'wrap the term of each pair of batches, or attach(..., pairings="aligned")',
        *MANY_BATCHES,
        computed=True,
    ),
    Row(
        lambda: OF_CHANGING_SHAPE(SEEING(X)),
        ValueError,
        "criterion: expected tensors of one shape for all pairings of streams, whose mean is the loss, got "
        "[[1], [2]]; reduce them in the criterion",
        *SHAPES,
        computed=True,
    ),
    Row(
        lambda: OF_HOLDERS(SEEING(X)),
        TypeError,
        "criterion: expected a tensor, or a list, tuple, dict or dataclass of them, whose mean over the "
        "pairings of streams is the loss, got a SimpleNamespace",
        "A criterion without targets returns its loss in an object of its own.",
        "Return the tensor, or a dict: `attachment.wrap(lambda *views: criterion(*views).loss, targets=[])`.",
        computed=True,
    ),
    Row(
        lambda: torch.vmap(SEEING, randomness="different")(X[None]),
        RuntimeError,
        "model: expected a call outside of torch.vmap, where no wrapped criterion knows the outputs with "
        "both streams, got one inside; attach(..., wrapped=False), and double the targets with duplicate()",
        "Several models, or several batches, are trained at once by torch.vmap.",
        "`attach(model, wrapped=False)`, and `criterion(logits, bf.duplicate(targets))`.",
    ),
    Row(
        lambda: gradients_of_originals(),
        RuntimeError,
        'outputs: expected "both" inside of torch.func, which hides the memory by which the related rows of '
        '"originals" are found, got "originals"',
        "Gradients of a model that returns the originals are taken by torch.func.",
        "Leave `outputs` out; the wrapped criterion doubles the targets.",
    ),
    Row(
        lambda: turned()(torch.randn(6, 12, 8)),
        ValueError,
        "model: expected one axis with the 12 entries of both streams in an output of shape [12, 12, 8], got "
        "2, and the way from the place does not show which it is; take batches of another size",
        "Another axis, as of tokens, has twice as many entries as the batch has samples, and was exchanged "
        "with it by something that leaves no trace in autograd's graph.",
        "Change the size of the batch, or of the last one: `drop_last=True`.",
        computed=True,
    ),
    Row(
        lambda: SEEN_BY(SEEING(X) @ SEEING(X).T, Y),
        ValueError,
        "criterion: expected outputs of samples, got similarities between them, of shape [12, 12], in which "
        "the other stream of a sample is a negative of it; attachment.wrap(criterion, targets=[]) is called "
        "for each pairing of streams, with the targets of one stream",
        *PAIRS,
        computed=True,
    ),
    Row(
        lambda: OF_PAIRS(hidden_pairs()),
        ValueError,
        "criterion: expected to know whether an output of shape [12, 12] is of samples or of pairs of them, "
        "got it from a compiled graph, which does not show it; compute similarities in the criterion, take "
        "batches of another size, or let the model compute its loss, if it can",
        *HIDDEN_PAIRS,
    ),
    Row(
        cut_of_a_graph,
        ValueError,
        "criterion: expected outputs with the 12 rows of both streams, got some of shape [6, 5] from a "
        "compiled graph, which does not show whether they were cut or are from before BatchFormer; for what "
        "is from before it take a criterion that is not wrapped",
        *HIDDEN_CUT,
        computed=True,
    ),
    Row(
        lambda: similarities()(X),
        ValueError,
        'outputs: expected "both" of a model that gives similarities between samples, as each of them '
        'belongs to two streams, got "originals" and an output of shape [12, 12]',
        *GIVES_PAIRS,
        computed=True,
    ),
)
