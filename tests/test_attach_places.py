"""Places that do not run, run several times, or side by side, and what is known of their layout."""

import collections
import copy

import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import nn
from torch.utils.checkpoint import checkpoint

import batchformer as bf
import stand_ins
from attach_nets import (
    BOTH_KINDS,
    BOTH_MODES,
    CLASSES,
    TOKENS,
    WIDTH,
    Blocks,
    N,
    Net,
    Normed,
    X,
    Y,
    attached,
    nll,
    plain,
)
from attach_oracle import assert_step, mean_of, refused, related, unless_refused


class ByItsForward(Net):
    def forward(self, x):
        return self.fc.forward(self.stem(x).relu())


class ByItsWeight(Net):
    def forward(self, x):
        return F.linear(self.stem(x).relu(), self.fc.weight, self.fc.bias)


def replaced(model):
    model.fc = nn.Linear(WIDTH, CLASSES)


def synchronised(model):
    nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model.norm.eval()  # it runs on CUDA alone


NEVER_RUN = {
    "replaced": (Net, {}, replaced),
    "called by its forward": (ByItsForward, {}, None),
    "its weight used alone": (ByItsWeight, {}, None),
    "synchronised": (Normed, {"after": "norm", "layout": "NC"}, synchronised),
    "synchronised, before": (Normed, {"before": "norm"}, synchronised),
}


@BOTH_MODES
@pytest.mark.parametrize(("make", "where", "change"), NEVER_RUN.values(), ids=NEVER_RUN)
def test_a_place_that_does_not_run_is_said_when_the_forward_ends(make, where, change, outputs):
    model, _ = attached(make(), outputs=outputs, **where)
    if change:
        change(model)
    with refused(RuntimeError):
        model(X)
    model.eval()(X)


@BOTH_KINDS
def test_a_head_that_was_replaced_is_said_to_who_calls_forward_by_itself(make):
    model, attachment = attached()
    criterion = attachment.wrap(make())
    replaced(model)
    with refused():
        criterion(model.forward(X), Y)


def test_a_list_of_blocks_is_no_place():
    with refused(ValueError):
        attached(Blocks(), after="blocks", layout="NLC")


@pytest.mark.parametrize("skipped", [(), (2,), (0,), (0, 2)], ids=["none", "the second", "the first", "both"])
def test_an_optional_place_may_not_run(skipped):
    after = ["blocks.0", "blocks.2"]
    model, attachment = attached(Blocks(), after=after, layout="NLC", shared=False, optional=after)
    model.skipped = skipped
    original, second = TOKENS, TOKENS
    for number, (norm, linear) in enumerate(model.blocks):
        if number not in skipped:
            original, second = (plain(linear, norm(each)) for each in (original, second))
            second = related(attachment, second, number // 2) if number != 1 else second
    both = [plain(model.fc, each.mean(1)) for each in (original, second)]
    loss = attachment.wrap(nn.CrossEntropyLoss())(model(TOKENS), Y)
    if len(skipped) < 2:
        assert_step(loss, mean_of(F.cross_entropy, both, Y), model, attachment)
    else:
        torch.testing.assert_close(loss, F.cross_entropy(both[0], Y))


def test_a_place_that_may_not_run_has_to_be_named():
    model, _ = attached(Blocks(), after=["blocks.0", "blocks.2"], layout="NLC")
    model.skipped = (2,)
    with refused(RuntimeError, saying=r"blocks\.2"):
        model(TOKENS)


class Recurrent(nn.Module):
    """One block, three times."""

    def __init__(self):
        super().__init__()
        self.block, self.fc = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, x):
        for _ in range(3):
            x = self.block(x).relu()
        return self.fc(x.mean(1))


@BOTH_MODES
def test_a_block_that_runs_three_times_doubles_once(outputs):
    model, attachment = attached(Recurrent(), after="block", layout="NLC", outputs=outputs)
    original, second = TOKENS, TOKENS
    for _ in range(3):
        original = plain(model.block, original).relu()
        second = related(attachment, plain(model.block, second)).relu()
    both = [plain(model.fc, each.mean(1)) for each in (original, second)]
    for _ in range(2):
        loss = attachment.wrap(nll)(model(TOKENS), Y)
        assert_step(loss, mean_of(nll, both, Y), model, attachment)


class SideBySide(nn.Module):
    """Branches of one input, of the widths given."""

    def __init__(self, *widths):
        super().__init__()
        self.branches = nn.ModuleList(nn.Linear(WIDTH, width) for width in widths)

    def forward(self, x):
        return [branch(x) for branch in self.branches]


@pytest.mark.parametrize(("widths", "shared"), [((8, 8), True), ((8, 8), False), ((8, 16, 32), False)])
def test_places_side_by_side_double_by_themselves(widths, shared):
    model = SideBySide(*widths)
    after = [f"branches.{number}" for number in range(len(widths))]
    attachment = bf.attach(model, after=after, layout="NLC", shared=shared, dropout=0.0)
    for _ in range(2):
        for number, (branch, actual) in enumerate(zip(model.branches, model(TOKENS), strict=True)):
            tokens = plain(branch, TOKENS)
            expected = torch.cat([tokens, related(attachment, tokens, 0 if shared else number)])
            torch.testing.assert_close(actual, expected)


def test_levels_one_behind_the_other_double_once():
    class Pyramid(nn.Module):
        def __init__(self):
            super().__init__()
            widths = (WIDTH, 8, 16, 32)
            self.levels = nn.ModuleList(map(nn.Linear, widths[:-1], widths[1:]))

        def forward(self, x):
            maps = [x]
            for level in self.levels:
                maps.append(level(maps[-1]))
            return maps[1:]

    model = Pyramid()
    after = [f"levels.{number}" for number in range(3)]
    attachment = bf.attach(model, after=after, layout="NLC", shared=False, dropout=0.0)
    original, second = TOKENS, TOKENS
    for number, (level, actual) in enumerate(zip(model.levels, model(TOKENS), strict=True)):
        original, second = plain(level, original), related(attachment, plain(level, second), number)
        torch.testing.assert_close(actual, torch.cat([original, second]))


def test_a_branch_of_two_crops_an_image_is_doubled_by_itself():
    class Crops(SideBySide):
        def forward(self, x):
            return [self.branches[0](x), self.branches[1](torch.cat([x, x.flip(1)]))]

    model = Crops(8, 8)
    attachment = bf.attach(model, after=["branches.0", "branches.1"], layout="NLC", dropout=0.0)
    with unless_refused():
        crops = plain(model.branches[1], torch.cat([TOKENS, TOKENS.flip(1)]))
        torch.testing.assert_close(model(TOKENS)[1], torch.cat([crops, related(attachment, crops)]))


class Mixer(nn.Module):
    """A block that mixes tokens by hand: whether it takes [N, L, C] or [L, N, C] shows in its code alone."""

    def __init__(self):
        super().__init__()
        self.norm, self.qkv = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3 * WIDTH)
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        q, k, v = self.qkv(self.norm(x)).chunk(3, 2)
        return x + self.proj((q @ k.transpose(1, 2)).softmax(2) @ v)


class Mixing(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Mixer()])

    def forward(self, x):
        return self.blocks[0](x)


def test_a_layout_that_nothing_tells_has_to_be_said():
    with pytest.raises(ValueError, match=r"^\w+: expected") as caught:
        bf.attach(Mixing(), after="blocks.0")
    assert "NLC" in str(caught.value)
    assert "LNC" in str(caught.value)


def test_a_layout_that_was_said_is_taken_before_one_that_a_class_has_as_a_rule():
    block = Block(16, num_heads=2)
    for layout in ("NLC", "LNC"):
        attachment = bf.attach(nn.Sequential(copy.deepcopy(block)), after="0", layout=layout)
        assert attachment.inserted[0].layout == layout


@pytest.mark.parametrize("layout", ["NLC", "LNC"])
def test_a_layout_that_was_said_is_taken(layout):
    model = Mixing()
    tokens = copy.deepcopy(model)(TOKENS)
    attachment = bf.attach(model, after="blocks.0", layout=layout, dropout=0.0)
    if layout == "NLC":
        expected = torch.cat([tokens, related(attachment, tokens)])
    else:
        over_batch = related(attachment, tokens.transpose(0, 1).contiguous())
        expected = torch.cat([tokens, over_batch.transpose(0, 1)], 1)
    torch.testing.assert_close(model(TOKENS), expected)


def test_a_map_may_have_its_channels_last():
    model, maps = nn.Sequential(nn.Linear(8, WIDTH), nn.Identity()), torch.randn(N, 2, 3, 8)
    attachment = bf.attach(model, after="0", layout="NHWC", dropout=0.0)
    tokens = plain(model[0], maps)
    expected = torch.cat([tokens, related(attachment, tokens.flatten(1, 2)).view_as(tokens)])
    torch.testing.assert_close(model(maps), expected)


class ArcFace(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(CLASSES, WIDTH))

    def forward(self, features, label):
        cosine = F.linear(F.normalize(features), F.normalize(self.weight))
        return 8 * (cosine - 0.2 * F.one_hot(label, CLASSES))


@pytest.mark.parametrize("by_name", [True, False])
@pytest.mark.parametrize("wrap", [True, False], ids=["criterion outside", "loss inside"])
def test_a_head_that_takes_the_labels_gets_those_of_both_streams(by_name, wrap):
    class Face(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.head = nn.Linear(6, WIDTH), ArcFace()

        def forward(self, x, label):
            features = self.stem(x).relu()
            return self.head(features, label=label) if by_name else self.head(features, label)

    model = Face()
    head = copy.deepcopy(model.head)
    head.weight = model.head.weight
    attachment = bf.attach(model, before="head", dim=WIDTH, dropout=0.0, wrapped=wrap)
    features = plain(model.stem, X).relu()
    both = [head(each, Y) for each in (features, related(attachment, features))]
    logits = model(X, Y)
    loss = (
        attachment.wrap(nn.CrossEntropyLoss())(logits, Y)
        if wrap
        else F.cross_entropy(logits, bf.duplicate(Y))
    )
    assert_step(loss, mean_of(F.cross_entropy, both, Y), model, attachment)


class DinoTransformer(stand_ins.DeformableTransformer):
    """IDEA-Research's DINO: Deformable DETR's attributes, another call."""

    def forward(self, srcs, masks, refpoint_embed, pos_embeds, tgt, attn_mask=None):
        return super().forward(srcs, masks, pos_embeds, refpoint_embed)


@pytest.mark.parametrize("preset", [None, "deformable_detr"])
def test_a_transformer_that_is_called_otherwise_is_not_taken_for_deformable_detr(preset):
    model = stand_ins.DeformableDetr()
    model.transformer = DinoTransformer()
    with refused():
        bf.attach(model, preset)


class Lstm(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.fc = nn.LSTM(WIDTH, WIDTH, batch_first=True), nn.Linear(WIDTH, CLASSES)

    def forward(self, x):
        return self.fc(self.lstm(x)[1][0][-1])


def test_a_place_whose_output_the_model_leaves_aside_is_refused():
    model = Lstm()
    bf.attach(model, after="lstm", layout="NLC", dim=WIDTH)
    with refused(RuntimeError, saying="depend on the output at 'lstm'"):
        model(TOKENS)


class ByLabel(Net):
    def forward(self, x, use_labels=True, num_labels=5, label_names=("a", "b"), label_smoothing=0.1):
        return super().forward(x)


def test_arguments_that_speak_of_labels_are_none():
    model, _ = attached(ByLabel())
    assert len(model(X, use_labels=True, num_labels=5, label_names=["a"] * 3, label_smoothing=0.1)) == 2 * N


class Compared(nn.Module):
    """Features with embeddings of classes, which come as an argument."""

    def __init__(self):
        super().__init__()
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, features, classes, scale=1.0):
        return scale * self.proj(features) @ classes.T


class WithEmbeddings(nn.Module):
    def __init__(self, call=lambda head, features, classes: head(features, classes)):
        super().__init__()
        self.stem, self.head, self.embedding = nn.Linear(6, WIDTH), Compared(), nn.Linear(3, WIDTH)
        self.call = call
        self.register_buffer("attributes", torch.randn(10, 3))

    def forward(self, x):
        return self.call(self.head, self.stem(x), self.embedding(self.attributes))


def test_an_argument_that_had_another_length_than_a_batch_is_not_of_its_samples():
    model, attachment = attached(WithEmbeddings(), before="head")
    criterion = attachment.wrap(nn.CrossEntropyLoss())
    for samples in (16, 16, 10):
        logits = model(torch.randn(samples, 6))
        assert logits.shape == (2 * samples, 10)
        assert criterion(logits, torch.randint(10, (samples,))).isfinite()


@pytest.mark.parametrize(
    "call",
    [
        lambda head, features, classes: head(classes=classes, features=features),
        lambda head, features, classes: head(scale=1.0, classes=classes, features=features),
        lambda head, features, classes: head(features, scale=1.0, classes=classes),
    ],
)
def test_features_are_what_the_first_parameter_takes(call):
    model, _ = attached(WithEmbeddings(), before="head")
    other, _ = attached(WithEmbeddings(call), before="head")
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other(X), model(X))


def test_a_place_in_evaluation_inside_of_a_model_in_training_is_trained():
    """As scripts do that freeze the batch norms of a backbone; an nn.Sequential holds the module there."""
    backbone = nn.Sequential(nn.Linear(6, WIDTH), nn.BatchNorm1d(WIDTH))
    model = nn.Sequential(backbone, nn.Linear(WIDTH, CLASSES))
    _, attachment = attached(model, after="0", layout="NC")
    for _ in range(2):
        model.train()
        model[0].eval()
        assert len(model(X)) == 2 * N
        assert attachment.training
    attachment.eval()
    assert len(model(X)) == N
    model.train()
    assert len(model(X)) == 2 * N
    model.eval()
    assert len(model(X)) == N
    model[0].train()
    model.train(False)
    assert len(model(X)) == N


def test_the_originals_of_a_forward_before_are_a_batch_of_their_own():
    class Fed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(WIDTH, 3), nn.Linear(WIDTH, 3)
            self.back = nn.Linear(3, WIDTH)

        def forward(self, x, before):
            return self.first(x), self.second(self.back(before))

    model, _ = attached(Fed(), before=["first", "second"], outputs="originals")
    before = torch.zeros(N, 3)
    for _ in range(3):
        before, other = model(torch.randn(N, WIDTH), before)
        assert len(before) == len(other) == N


def test_a_reentrant_checkpoint_around_a_later_place_does_not_double_again():
    class Checkpointed(Net):
        def __init__(self):
            super().__init__()
            self.block = nn.Linear(WIDTH, WIDTH)

        def forward(self, x):
            return self.fc(checkpoint(self.block, self.stem(x), use_reentrant=True).relu())

    model, attachment = attached(Checkpointed(), after=["stem", "block"], layout="NC")
    logits = model(X)
    assert len(logits) == 2 * N
    attachment.wrap(nn.CrossEntropyLoss())(logits, Y).backward()
    features = plain(model.stem, X)
    features = plain(model.block, torch.cat([features, related(attachment, features)]))
    features = torch.cat([features[:N], related(attachment, features[N:])])
    torch.testing.assert_close(logits, plain(model.fc, features.relu()))


@pytest.mark.parametrize("fields", ["x attention", "x"])
def test_a_block_may_return_a_named_tuple(fields):
    Output = collections.namedtuple("Output", fields)

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.block, self.fc = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)

        def forward(self, x):
            return self.fc(self.gives(x).x.mean(1))

    model = Named()
    model.gives = nn.Identity()
    model.gives.forward = lambda x: Output(model.block(x), *[None] * (len(Output._fields) - 1))
    attached(model, after="gives", layout="NLC", dim=WIDTH)
    assert len(model(TOKENS)) == 2 * N


def test_a_classifier_may_learn_its_width_from_the_first_batch():
    model = Net()
    model.fc = nn.LazyLinear(CLASSES)
    _, attachment = attached(model, dim=WIDTH)
    attachment.wrap(nn.CrossEntropyLoss())(model(X), Y).backward()
    assert model.fc.weight.shape == (CLASSES, WIDTH)


def test_a_model_that_is_refused_stays_as_it_was():
    class Named(nn.Linear):
        def __init__(self):
            super().__init__(WIDTH, CLASSES)
            self.batchformer = None

    model = nn.Sequential(nn.Linear(6, WIDTH), Named())
    with refused(ValueError, saying="no attribute 'batchformer', got a Named"):
        bf.attach(model, before="1")
    assert not model._forward_hooks
    assert not model[1]._forward_pre_hooks
    assert len(model(X)) == N
