"""Criteria that were not written for attach(): right, or an error of ours."""

import copy
import itertools
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

import batchformer as bf
import stand_ins
from attach_nets import (
    BOTH_KINDS,
    BOTH_MODES,
    CLASSES,
    WIDTH,
    N,
    Net,
    X,
    Y,
    attached,
    nll,
    plain,
    streams,
)
from attach_oracle import assert_step, is_reached, mean_of, refused, related


@dataclass
class Labels:
    y: Tensor


def by_image(loss):
    """A criterion that goes through pairs of rows and targets, as many as there are of the fewer."""
    return lambda logits, targets: sum(map(loss, logits, targets)) / len(targets)


BESIDE = {
    "class_counts": [9, 5, 4, 3, 1],
    "class_names": ["cat", "dog", "cow", "hen", "pig"],
    "priors": torch.full((CLASSES,), 0.2),
    "nothing": [],
    "device": torch.device("cpu"),
    "seen": {1, 2},
}
CRITERIA = {
    "rows taken by labels": (nll, Y),
    "a dict": (lambda o, t: nll(o, t["y"]), {"y": Y}),
    **{
        f"{name} in the dict": (lambda o, t: nll(o, t["y"]), {"y": Y, name: value})
        for name, value in BESIDE.items()
    },
    "a tuple of tensors": (
        by_image(lambda o, t: F.cross_entropy(o[None], t[:1])),
        tuple(torch.randint(CLASSES, (N, 3))),
    ),
    "a tuple of ints": (by_image(lambda o, t: -o.log_softmax(0)[t]), (0, 1, 2, 1)),
    "a list of ints": (by_image(lambda o, t: -o.log_softmax(0)[t]), [0, 1, 2, 1]),
    "a dataclass": (lambda o, t: nll(o, t.y), Labels(Y)),
    "labels [1, N]": (lambda o, t: nll(o, t[0]), Y[None]),
}


@BOTH_MODES
@pytest.mark.parametrize(("criterion", "targets"), CRITERIA.values(), ids=CRITERIA)
def test_targets_are_doubled_whatever_they_are(criterion, targets, outputs):
    model, attachment = attached(outputs=outputs)
    loss = attachment.wrap(criterion)(model(X), targets)
    assert_step(loss, mean_of(criterion, streams(model, attachment, X), targets), model, attachment)


@BOTH_MODES
def test_another_batch_between_the_model_and_the_criterion_changes_nothing(outputs):
    model, attachment = attached(outputs=outputs)
    logits = model(X)
    model(torch.randn(24, 6))
    expected = mean_of(nll, streams(model, attachment, X), Y)
    assert_step(attachment.wrap(nll)(logits, Y), expected, model, attachment)


def test_a_list_that_may_be_of_samples_or_of_classes_asks_for_the_targets():
    model, attachment = attached()
    criterion = attachment.wrap(lambda o, t: nll(o, t["y"]))
    logits = model(torch.randn(CLASSES, 6))
    with refused(ValueError, saying="targets="):
        criterion(logits, {"y": torch.arange(CLASSES), "class_counts": [9, 5, 4, 3, 1]})


@pytest.mark.parametrize("by_name", [True, False])
def test_the_weights_of_classes_are_never_doubled(by_name):
    model, attachment = attached()
    x, y, weight = torch.randn(CLASSES, 6), torch.tensor([0, 1, 2, 1, 4]), torch.rand(CLASSES)
    criterion = attachment.wrap(F.cross_entropy)
    loss = criterion(model(x), y, weight=weight) if by_name else criterion(model(x), y, weight)
    assert_step(loss, mean_of(F.cross_entropy, streams(model, attachment, x), y, weight), model, attachment)


def test_the_weights_of_positives_are_never_doubled():
    model, attachment = attached()
    x, y, weight = torch.randn(CLASSES, 6), torch.eye(CLASSES).roll(1, 0), torch.rand(CLASSES)

    def binary(logits, labels):
        return F.binary_cross_entropy_with_logits(logits, labels, pos_weight=weight)

    loss = attachment.wrap(F.binary_cross_entropy_with_logits)(model(x), y, pos_weight=weight)
    assert_step(loss, mean_of(binary, streams(model, attachment, x), y), model, attachment)


@pytest.mark.parametrize("targets", [("labels",), (1,)], ids=["by name", "by position"])
def test_a_vector_that_may_be_of_samples_or_of_classes_asks_for_the_targets(targets):
    def adjusted(logits, labels, prior):
        return F.cross_entropy(logits + prior.log(), labels)

    model, attachment = attached()
    x, y, prior = torch.randn(CLASSES, 6), torch.arange(CLASSES), torch.rand(CLASSES)
    logits = model(x)
    with refused(ValueError, saying="targets="):
        attachment.wrap(adjusted)(logits, y, prior)
    loss = attachment.wrap(adjusted, targets=targets)(logits, y, prior)
    assert_step(loss, mean_of(adjusted, streams(model, attachment, x), y, prior), model, attachment)


def test_the_configuration_of_a_model_is_left_alone():
    """`model.loss_function` of transformers is given it; with as many stages as samples it was refused."""

    def of_model(logits, labels, config):
        assert config.hidden_sizes == [8] * N
        return F.cross_entropy(logits, labels)

    model, attachment = attached()
    config = transformers.ResNetConfig(hidden_sizes=[8] * N, depths=[1] * N)
    loss = attachment.wrap(of_model)(model(X), Y, config)
    assert_step(loss, mean_of(of_model, streams(model, attachment, X), Y, config), model, attachment)


def nt_xent(first, second):
    """SimCLR's: everything but the other view of an image is a negative."""
    views = F.normalize(torch.cat([first, second]))
    similarity = (views @ views.T / 0.5).fill_diagonal_(-torch.inf)
    return F.cross_entropy(similarity, torch.arange(len(views)).roll(len(first)))


def test_a_contrastive_loss_without_targets_is_refused_unless_it_is_said_that_there_are_none():
    model, attachment = attached()
    views = torch.randn(2, N, 6)
    first, second = map(model, views)
    with refused(ValueError, saying="targets="):
        attachment.wrap(nt_xent)(first, second)
    loss = attachment.wrap(nt_xent, targets=())(first, second)
    both = [streams(model, attachment, view) for view in views]
    expected = mean_of(lambda pair: nt_xent(*pair), list(itertools.product(*both)))
    assert_step(loss, expected, model, attachment)


@BOTH_MODES
def test_mixup_judges_one_output_twice(outputs):
    model, attachment = attached(outputs=outputs)
    criterion, logits, mixed = attachment.wrap(nn.CrossEntropyLoss()), model(X), Y.flip(0)
    loss = 0.3 * criterion(logits, Y) + 0.7 * criterion(logits, mixed)
    both = streams(model, attachment, X)
    expected = 0.3 * mean_of(F.cross_entropy, both, Y) + 0.7 * mean_of(F.cross_entropy, both, mixed)
    assert_step(loss, expected, model, attachment)


@BOTH_MODES
@pytest.mark.parametrize("samples", [N, N - 1], ids=["equal batches", "a smaller one"])
def test_two_forwards_before_the_losses_keep_their_rows_apart(samples, outputs):
    model, attachment = attached(outputs=outputs)
    criterion, other = attachment.wrap(nn.CrossEntropyLoss()), torch.randn(samples, 6)
    first, second = model(X), model(other)
    loss = criterion(first, Y) + 2 * criterion(second, Y[:samples])
    expected = mean_of(F.cross_entropy, streams(model, attachment, X), Y)
    expected = expected + 2 * mean_of(F.cross_entropy, streams(model, attachment, other), Y[:samples])
    assert_step(loss, expected, model, attachment)


@BOTH_MODES
def test_one_criterion_may_judge_two_forwards_at_once(outputs):
    def r_drop(first, second, labels):
        distance = F.kl_div(first.log_softmax(1), second.softmax(1), reduction="batchmean")
        return F.cross_entropy(first, labels) + F.cross_entropy(second, labels) + distance

    model, attachment = attached(outputs=outputs)
    views = torch.randn(2, N, 6)
    loss = attachment.wrap(r_drop)(*map(model, views), Y)
    pairs = zip(*(streams(model, attachment, view) for view in views), strict=True)
    expected = sum(r_drop(*pair, Y) for pair in pairs) / 2
    assert_step(loss, expected, model, attachment)


def fix_match(model, criterion, batch):
    """The loss of the labelled slice, that of the strongly augmented one, and the pseudo labels."""
    logits = model(batch)
    weak, strong = logits[N:].chunk(2)
    pseudo = weak.detach().argmax(1)
    return criterion(logits[:N], Y), criterion(strong, pseudo), pseudo


def test_slices_of_the_originals_are_judged_in_both_streams():
    model, attachment = attached(outputs="originals")
    batch = torch.randn(N + 16, 6)
    supervised, consistent, pseudo = fix_match(model, attachment.wrap(nn.CrossEntropyLoss()), batch)
    assert len(pseudo) == 8
    both = streams(model, attachment, batch)
    expected = mean_of(F.cross_entropy, [each[:N] for each in both], Y)
    expected = expected + 2 * mean_of(F.cross_entropy, [each[N + 8 :] for each in both], pseudo)
    assert_step(supervised + 2 * consistent, expected, model, attachment)


def test_slices_by_the_size_of_the_batch_are_refused_where_the_outputs_are_of_both_streams():
    model, attachment = attached()
    criterion, logits = attachment.wrap(nn.CrossEntropyLoss()), model(torch.randn(N + 16, 6))
    with refused():
        criterion(logits[:N], Y)
    strong = logits[N:].chunk(2)[1]
    with refused():
        criterion(strong, strong.detach().argmax(1))


class WithAuxiliary(Net):
    """A second classifier, of what no insertion has met."""

    def __init__(self):
        super().__init__()
        self.auxiliary = nn.Linear(WIDTH, CLASSES)

    def forward(self, x):
        features = self.stem(x).relu()
        return self.fc(features), self.auxiliary(features)


@BOTH_MODES
@pytest.mark.parametrize("at_once", [True, False], ids=["in one call", "alone"])
def test_an_auxiliary_head_before_the_insertion_is_judged_as_it_is(at_once, outputs):
    def deep(logits, labels):
        return F.cross_entropy(logits[0], labels) + 0.4 * F.cross_entropy(logits[1], labels)

    model, attachment = attached(WithAuxiliary(), outputs=outputs)
    logits = model(X)
    criterion = attachment.wrap(deep if at_once else F.cross_entropy)
    loss = criterion(logits, Y) if at_once else criterion(logits[0], Y) + 0.4 * criterion(logits[1], Y)
    auxiliary = F.cross_entropy(plain(model.auxiliary, plain(model.stem, X).relu()), Y)
    expected = mean_of(F.cross_entropy, streams(model, attachment, X), Y) + 0.4 * auxiliary
    assert_step(loss, expected, model, attachment)


@BOTH_MODES
@BOTH_KINDS
@pytest.mark.parametrize("first", [True, False], ids=["before the first step", "within a step"])
def test_a_copy_in_evaluation_is_judged_as_it_is_while_the_model_trains(first, make, outputs):
    model, attachment = attached(outputs=outputs)
    criterion, evaluated = attachment.wrap(make()), copy.deepcopy(model).eval()
    logits = None if first else model(X)
    torch.testing.assert_close(
        criterion(evaluated(X), Y), F.cross_entropy(streams(model, attachment, X)[0], Y)
    )
    expected = mean_of(F.cross_entropy, streams(model, attachment, X), Y)
    assert_step(criterion(model(X) if first else logits, Y), expected, model, attachment)


@BOTH_MODES
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_forward_without_gradients_is_judged_in_both_streams(mode, outputs):
    model, attachment = attached(outputs=outputs)
    criterion = attachment.wrap(nll)
    expected = mean_of(nll, streams(model, attachment, X), Y)
    with mode():
        logits = model(X)
        torch.testing.assert_close(criterion(logits, Y), expected.detach())
    torch.testing.assert_close(criterion(logits, Y), expected.detach())
    assert_step(criterion(model(X), Y), expected, model, attachment)


def detr_step(attach_options, wrap):
    """A step of DETR with a criterion that pairs images with targets and overlooks the rest."""

    def matched(outputs, targets):
        pairs = zip(outputs["pred_logits"], targets, strict=False)
        return sum(F.cross_entropy(logits, target["labels"]) for logits, target in pairs)

    model = stand_ins.Detr()
    attachment = bf.attach(model, dropout=0.0, **attach_options)
    criterion = attachment.wrap(matched) if wrap else matched
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    targets = [{"labels": torch.randint(stand_ins.CLASSES, (stand_ins.QUERIES,))} for _ in range(2)]
    samples = stand_ins.Nested(torch.randn(2, 3, 16, 16), torch.zeros(2, 16, 16, dtype=torch.bool))
    before = [p.clone() for p in model.parameters()]
    try:
        criterion(model(samples), targets).backward()
        optimizer.step()
    finally:
        stepped = not all(map(torch.equal, model.parameters(), before))
        assert stepped is (wrap or bool(attach_options))


def test_detr_with_a_criterion_that_is_not_wrapped_stops_at_the_first_step():
    with refused(RuntimeError):
        detr_step({}, wrap=False)
    detr_step({}, wrap=True)
    detr_step({"wrapped": False}, wrap=False)


def test_each_term_of_a_loss_has_to_be_wrapped_where_the_model_returns_the_originals():
    """A term that is not wrapped trains the originals alone."""
    model, attachment = attached(outputs="originals")
    criterion, penalty = attachment.wrap(F.cross_entropy), lambda logits: logits.square().mean()
    logits = model(X)
    with refused(RuntimeError, saying="every loss of the outputs to be wrapped"):
        (criterion(logits, Y) + penalty(logits)).backward()
    logits = model(X)
    loss = criterion(logits, Y) + attachment.wrap(penalty, targets=[])(logits)
    expected = mean_of(lambda o, y: F.cross_entropy(o, y) + penalty(o), streams(model, attachment, X), Y)
    assert_step(loss, expected, model, attachment)


def test_targets_of_twice_as_many_samples_are_those_of_another_batch():
    """As for a layout that takes positions for samples, where there are half as many of them."""
    model, attachment = attached()
    with refused(ValueError, saying="an entry for each of the 4 samples"):
        attachment.wrap(nn.CrossEntropyLoss())(model(X), torch.cat([Y, Y]))


# What is an output, what is a part of one, and what is neither


def test_a_part_of_an_output_beside_the_whole_is_refused():
    """As R-Drop's divergence between the halves of a batch that holds every sample twice."""
    model, attachment = attached()
    logits = model(torch.cat([X, X]))
    first, second = logits.chunk(2)
    criterion = attachment.wrap(lambda logits, first, second, labels: F.cross_entropy(logits, labels))
    with refused(ValueError, saying="where a script cuts them"):
        criterion(logits, first, second, torch.cat([Y, Y]))
    with refused(ValueError, saying="where a script cuts them"):
        attachment.wrap(F.kl_div, targets=[])(first.log_softmax(1), second.softmax(1))


def test_a_part_that_is_as_wide_as_both_streams_are_long_is_refused():
    model, attachment = attached(Net(classes=2 * N))
    first, second = model(X).chunk(2)
    with refused(ValueError, saying="where a script cuts them"):
        attachment.wrap(nt_xent, targets=[])(first, second)


def test_streams_that_were_taken_apart_by_hand_are_judged_as_they_are():
    model, attachment = attached()
    logits = model(X)
    criterion = attachment.wrap(F.cross_entropy)
    loss = (criterion(bf.original(logits), Y) + F.cross_entropy(bf.related(logits), Y)) / 2
    assert_step(loss, mean_of(F.cross_entropy, streams(model, attachment, X), Y), model, attachment)


def test_one_sample_is_judged_in_both_streams_or_not_at_all():
    model, attachment = attached(outputs="originals")
    soft = torch.rand(N, CLASSES).softmax(1)
    with refused(ValueError, saying="an entry for each of the 1 samples"):
        attachment.wrap(F.cross_entropy)(model(X)[0], soft[0])
    logits, criterion = model(X), attachment.wrap(F.cross_entropy)
    loss = sum(criterion(logits[i : i + 1], Y[i : i + 1]) for i in range(N)) / N
    assert_step(loss, mean_of(F.cross_entropy, streams(model, attachment, X), Y), model, attachment)


@pytest.mark.parametrize(
    "compute", [lambda o, one: o * one, lambda o, one: o + (one - 1), lambda o, one: o.clamp(min=-1e9)]
)
def test_what_was_computed_from_the_originals_is_no_copy_even_if_it_is_the_same(compute):
    model, attachment = attached(outputs="originals")
    with refused(ValueError, saying="a tensor computed from one"):
        attachment.wrap(F.cross_entropy)(compute(model(X), torch.ones((), requires_grad=True)), Y)


class Tagger(nn.Module):
    """A class for each of three tokens of a sample."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Linear(6, WIDTH), nn.Linear(WIDTH, 3 * CLASSES)

    def forward(self, x):
        return self.head(self.stem(x)).unflatten(1, (3, CLASSES))


@BOTH_MODES
def test_tokens_may_be_flattened_before_the_criterion(outputs):
    model = Tagger()
    attachment = bf.attach(model, before="head", outputs=outputs, dropout=0.0)
    labels = torch.randint(CLASSES, (N, 3))
    loss = attachment.wrap(F.cross_entropy)(model(X).view(-1, CLASSES), labels.view(-1))
    features = model.stem(X)
    both = [features, related(attachment, features)]
    head = [F.linear(each, model.head.weight, model.head.bias).view(-1, CLASSES) for each in both]
    assert_step(loss, mean_of(F.cross_entropy, head, labels.view(-1)), model, attachment)


def test_groups_of_rows_stay_groups_of_rows():
    model, attachment = attached(outputs="originals")
    seen = []
    attachment.wrap(lambda groups: seen.append(groups.shape), targets=[])(model(X).view(2, 2, CLASSES))
    assert seen == [(2, 2, CLASSES)] * 2


def test_prototypes_that_are_trained_are_of_classes():
    model, attachment = attached(Net(classes=3))
    prototypes = nn.Parameter(torch.randn(N, 3))  # as many classes as samples

    def loss(features, labels, prototypes):
        return F.cross_entropy(features @ prototypes.T, labels)

    expected = mean_of(loss, streams(model, attachment, X), Y, prototypes)
    torch.testing.assert_close(attachment.wrap(loss)(model(X), Y, prototypes), expected)


def test_what_is_not_of_the_samples_in_one_call_is_not_in_another():
    model, attachment = attached(Net(classes=3))
    texts = torch.randn(2, 3)
    criterion = attachment.wrap(lambda features, labels, texts: F.cross_entropy(features @ texts.T, labels))
    for samples in (4, 2):  # the second time as many as texts
        labels = torch.arange(samples) % 2
        expected = mean_of(
            lambda o, y: F.cross_entropy(o @ texts.T, y), streams(model, attachment, X[:samples]), labels
        )
        torch.testing.assert_close(criterion(model(X[:samples]), labels, texts), expected)


@pytest.mark.parametrize(
    "beside",
    [
        {"samples_per_cls": torch.tensor([9, 5, 4, 3])},
        {"label_freq": torch.tensor([0.4, 0.3, 0.2, 0.1])},
        {"prior": torch.tensor([[0.4, 0.3, 0.2, 0.1]])},
        {"scales": [0.1, 0.2, 0.3, 0.4]},
    ],
    ids=lambda beside: next(iter(beside)),
)
def test_numbers_that_may_be_of_classes_ask_for_the_targets(beside):
    model, attachment = attached(Net(classes=N))

    def loss(logits, labels, **beside):
        return F.cross_entropy(logits, labels)

    with refused(ValueError, saying="targets="):
        attachment.wrap(loss)(model(X), Y, **beside)
    expected = mean_of(F.cross_entropy, streams(model, attachment, X), Y)
    torch.testing.assert_close(attachment.wrap(loss, targets=["labels"])(model(X), Y, **beside), expected)


@pytest.mark.parametrize("boxes", [7, N])
def test_targets_of_all_images_in_one_list_are_refused(boxes):
    model, attachment = attached()
    batch = {"img": torch.randn(N, 3, 2, 2), "boxes": torch.rand(boxes, 6)}
    criterion = attachment.wrap(lambda logits, batch: logits.mean())
    if boxes != N:
        with refused(ValueError, saying="an entry for each of the 4 samples"):
            criterion(model(X), batch)
    with refused(ValueError, saying="batch_idx"):
        criterion(model(X), batch | {"batch_idx": torch.zeros(boxes)})


def test_indices_of_rows_are_refused():
    model, attachment = attached()
    criterion = attachment.wrap(lambda logits, labels, index: F.cross_entropy(logits[index], labels[index]))
    with refused(ValueError, saying="indices of rows"):
        criterion(model(X), Y, torch.tensor([0, 2]))


@pytest.mark.parametrize("name", ["perm", "pairs", "indices_tuple", "edge_index"])
def test_indices_by_other_names_are_refused(name):
    model, attachment = attached()
    criterion = attachment.wrap(lambda logits, labels, **rows: F.cross_entropy(logits, labels))
    rows = torch.tensor([[0, 2, 3], [1, 1, 0]])
    rows = {"perm": torch.randperm(N), "indices_tuple": tuple(rows)}.get(name, rows)
    with refused(ValueError, saying="indices of rows"):
        criterion(model(X), Y, **{name: rows})


@pytest.mark.parametrize("count", [3, 3.0, torch.tensor(3.0)], ids=["int", "float", "tensor"])
def test_a_number_that_the_sum_is_divided_by_is_doubled(count):
    model, attachment = attached()

    def criterion(logits, labels, avg_factor):
        return F.cross_entropy(logits, labels, reduction="sum") / avg_factor

    outputs = model(X)
    loss = attachment.wrap(criterion)(outputs, Y, avg_factor=count)
    torch.testing.assert_close(loss, criterion(outputs, torch.cat([Y, Y]), 6))


def test_a_wrapped_object_keeps_its_state():
    class Warm:
        factor = 1.0

        def step(self):
            self.factor /= 2

        def __call__(self, logits, labels):
            return self.factor * F.cross_entropy(logits, labels)

    model, attachment = attached()
    criterion = attachment.wrap(Warm())
    criterion.factor = 4.0
    criterion.step()
    expected = 2 * mean_of(F.cross_entropy, streams(model, attachment, X), Y)
    torch.testing.assert_close(criterion(model(X), Y), expected)


def test_a_criterion_that_overrides_its_call_is_wrapped_as_a_function():
    class Own(nn.Module):
        def __call__(self, logits, labels):
            return F.cross_entropy(logits, labels)

    model, attachment = attached()
    expected = mean_of(F.cross_entropy, streams(model, attachment, X), Y)
    torch.testing.assert_close(attachment.wrap(Own())(model(X), Y), expected)


def test_a_loss_that_the_model_has_computed_goes_through():
    model, attachment = attached()
    logits = model(X)
    loss = attachment.wrap(lambda o, y, more: F.cross_entropy(o, y) + more)(logits, Y, logits.square().mean())
    expected = mean_of(
        lambda o, y: F.cross_entropy(o, y) + o.square().mean(), streams(model, attachment, X), Y
    )
    assert_step(loss, expected, model, attachment)


def test_masks_may_come_with_weights_of_classes():
    model = nn.Sequential(nn.Conv2d(3, WIDTH, 1), nn.Conv2d(WIDTH, 2, 1))
    attachment = bf.attach(model, after="0", dropout=0.0)
    images, masks, weights = torch.randn(N, 3, 2, 2), torch.rand(N, 2, 2, 2), torch.rand(2)

    def loss(logits, masks, of_classes):
        losses = F.binary_cross_entropy_with_logits(logits, masks, reduction="none")
        return (losses.mean((0, 2, 3)) * of_classes).sum()

    logits = model(images)
    expected = mean_of(loss, list(logits.chunk(2)), masks, weights)
    torch.testing.assert_close(attachment.wrap(loss)(logits, masks, weights), expected)


class PositionsFirst(nn.Module):
    """Words `[L, N]` to logits `[L, N, CLASSES]`, as nn.TransformerEncoder takes them by default."""

    def __init__(self, *, flattened=False):
        super().__init__()
        self.embedding, self.block = nn.Embedding(CLASSES, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.fc, self.flattened = nn.Linear(WIDTH, CLASSES), flattened

    def forward(self, words):
        logits = self.fc(self.block(self.embedding(words)))
        return logits.flatten(0, 1) if self.flattened else logits


def positions_first(**options):
    return attached(PositionsFirst(**options), after="block", layout="LNC")


def of_words(logits, words):
    return F.cross_entropy(logits.flatten(0, -2), words.flatten())


@pytest.mark.parametrize("length", [3, N, 2 * N])
def test_positions_may_come_before_the_batch(length):
    model, attachment = positions_first()
    words = torch.randint(CLASSES, (length, N))
    logits = model(words)
    expected = of_words(logits, torch.cat([words, words], 1))
    torch.testing.assert_close(attachment.wrap(of_words)(logits, words), expected)
    with refused(ValueError, saying="first axis"):
        bf.original(logits)
    if length != 2 * N:
        assert torch.equal(bf.original(logits.transpose(0, 1)), logits[:, :N].transpose(0, 1))


def test_the_originals_of_as_many_positions_as_rows_are_of_samples():
    model, attachment = attached(PositionsFirst(), after="block", layout="LNC", outputs="originals")
    words = torch.randint(CLASSES, (2 * N, N))
    logits = model(words)
    assert logits.shape == (2 * N, N, CLASSES)
    torch.testing.assert_close(logits, model.eval()(words))
    model.train()
    loss = attachment.wrap(of_words)(logits, words)
    loss.backward()
    assert is_reached(attachment)


@pytest.mark.parametrize("inside", [True, False])
def test_flattened_positions_before_the_batch_are_refused(inside):
    model, attachment = positions_first(flattened=inside)
    words = torch.randint(CLASSES, (3, N))
    with refused(ValueError, saying="flatten them in the criterion"):
        attachment.wrap(F.cross_entropy)(model(words).view(-1, CLASSES), words.view(-1))


TERMS = ["ce", "dice", "focal"]


@pytest.mark.parametrize("make", [list, tuple, lambda terms: [*range(len(terms))]])
def test_a_list_that_was_shorter_than_a_batch_is_not_of_the_samples_of_a_shorter_batch(make):
    model, attachment = attached()
    seen = []
    criterion = attachment.wrap(lambda logits, labels, terms: (seen.append(terms), nll(logits, labels))[1])
    for size in (N, len(TERMS)):
        criterion(model(X[:size]), Y[:size], make(TERMS))
    assert seen == [make(TERMS)] * 2


def test_an_array_that_had_another_length_than_a_batch_is_not_of_its_samples():
    model, attachment = attached()
    lengths = []
    criterion = attachment.wrap(lambda o, y, negatives: (lengths.append(len(negatives)), nll(o, y))[1])
    for length in (N + 3, 2 * N, N):
        criterion(model(X), Y, torch.randn(length, CLASSES))
    assert lengths == [N + 3, 2 * N, N]


def test_two_targets_are_not_taken_for_those_of_a_batch_of_two_that_follows():
    model, attachment = attached()
    criterion = attachment.wrap(lambda o, both: nll(o, both[0]) + nll(o, both[1]))
    for size in (N, 2):
        logits, targets = model(X[:size]), (Y[:size], Y[:size].flip(0))
        expected = sum(nll(logits, torch.cat([each, each])) for each in targets)
        torch.testing.assert_close(criterion(logits, targets), expected)


def test_a_call_that_raised_is_not_remembered():
    model, attachment = attached()
    criterion = attachment.wrap(F.cross_entropy)
    x, y = torch.randn(2 * N, 6), torch.arange(2 * N) % CLASSES
    with refused(ValueError, saying="got none"):
        criterion(model(X), y)
    torch.testing.assert_close(criterion(model(x), y), mean_of(nll, streams(model, attachment, x), y))


def test_outputs_of_two_forwards_may_be_joined_before_the_criterion():
    model, attachment = attached()
    head = nn.Linear(2 * CLASSES, CLASSES)
    views = X, torch.randn(N, 6)
    criterion = attachment.wrap(nn.CrossEntropyLoss())
    loss = criterion(head(torch.cat([model(view) for view in views], 1)), Y)
    pairs = zip(*(streams(model, attachment, view) for view in views), strict=True)
    expected = mean_of(F.cross_entropy, [head(torch.cat(pair, 1)) for pair in pairs], Y)
    assert_step(loss, expected, model, attachment)


def test_a_half_of_one_forward_joined_with_another_is_refused():
    model, attachment = attached()
    halves = model(X)[:N].repeat(2, 1)
    loss = attachment.wrap(F.cross_entropy)(torch.cat([model(X), halves], 1), Y)
    with refused(RuntimeError, saying="wrapped"):
        loss.backward()


def by_index(logits):
    logits = logits.clone()
    logits[torch.arange(N), Y] -= 10
    return logits


ROWS_CHANGED = {
    "by index": by_index,
    "by scatter": lambda o: o.scatter(1, Y[:, None], -10.0),
    "along the last axis": lambda o: o.scatter(-1, Y[:, None], -10.0),
    "by a mask": lambda o: o.index_put((torch.arange(2 * N) < N,), torch.zeros(())),
    "of some rows": lambda o: o.index_put((torch.tensor([0, -2 * N + 1]),), torch.zeros(())),
    "along the rows": lambda o: o.scatter(0, torch.zeros(1, CLASSES, dtype=torch.long), 0.0),
}


@pytest.mark.parametrize("change", ROWS_CHANGED.values(), ids=ROWS_CHANGED)
def test_a_change_of_the_originals_alone_is_refused(change):
    model, attachment = attached()
    with refused(ValueError, saying="changed alike"):
        attachment.wrap(F.cross_entropy)(change(model(X)), Y)


BOTH_CHANGED = {
    "by a mask": lambda o: o.index_put((o > o.mean(),), torch.zeros(())),
    "in a column": lambda o: o.index_put((torch.arange(2 * N), torch.ones(2 * N).long()), torch.zeros(())),
    "by scatter": lambda o: o.scatter(1, torch.cat([Y, Y])[:, None], -10.0),
    "nowhere": lambda o: o.index_put((torch.empty(0, dtype=torch.long),), torch.zeros(())),
}


@pytest.mark.parametrize("change", BOTH_CHANGED.values(), ids=BOTH_CHANGED)
def test_a_change_of_both_streams_is_taken(change):
    model, attachment = attached()
    logits = change(model(X))
    expected = F.cross_entropy(logits, torch.cat([Y, Y]))
    torch.testing.assert_close(attachment.wrap(F.cross_entropy)(logits, Y), expected)
