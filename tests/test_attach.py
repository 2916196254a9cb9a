"""attach() by path: what comes out is what the modules give by hand, and what goes in comes out again."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import batchformer as bf

X, Y = torch.randn(6, 8), torch.tensor([0, 1, 2, 1, 3, 0])


class Network(nn.Module):
    """A backbone, blocks over tokens, three classifiers of one feature."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(8, 32)
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 16)) for _ in range(3))
        self.norm = nn.BatchNorm1d(32)
        self.heads = nn.ModuleList(nn.Linear(32, 5) for _ in range(3))

    def forward(self, x):
        tokens = self.stem(x).view(len(x), 2, 16)
        for block in self.blocks:
            tokens = block(tokens)
        features = self.norm(tokens.flatten(1))
        return torch.stack([head(features) for head in self.heads]).mean(0)


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


HEADS = ["heads.0", "heads.1", "heads.2"]
PLACES = {
    "one classifier": {"before": "heads.1"},
    "three classifiers": {"before": HEADS},
    "three classifiers apart": {"before": HEADS, "shared": False},
    "after a block": {"after": "blocks.1", "layout": "NLC"},
    "after two blocks": {"after": ["blocks.0", "blocks.2"], "layout": "NLC"},
    "after two blocks apart": {"after": ["blocks.0", "blocks.2"], "layout": "NLC", "shared": False},
}


def test_features_of_classifiers_are_doubled_as_by_hand():
    model = nn.Sequential(nn.Linear(8, 32), nn.Linear(32, 5))
    attachment = bf.attach(model, before="1", dropout=0.0)
    features = model[0](X)
    related = attachment.inserted[0].encoder(features.unsqueeze(1)).squeeze(1)
    expected = F.linear(torch.cat([features, related]), model[1].weight, model[1].bias)
    assert torch.equal(model(X), expected)


def test_tokens_are_doubled_once_and_transformed_in_the_second_half_from_then_on():
    model = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 5))
    attachment = bf.attach(model, after=["0", "1"], layout="NLC", shared=False, dropout=0.0)
    x = torch.randn(6, 3, 8)
    first, second = (module.encoder for module in attachment.inserted)

    def plain(number, x):
        return F.linear(x, model[number].weight, model[number].bias)

    tokens = plain(0, x)
    original, related = plain(1, tokens), plain(1, first(tokens))
    assert torch.equal(model(x), plain(2, torch.cat([original, second(related)])))


def test_classifiers_share_one_module_unless_they_are_told_not_to():
    shared = bf.attach(Network(), before=HEADS)
    apart = bf.attach(Network(), before=HEADS, shared=False)
    assert len(shared.inserted) == 1
    assert len(apart.inserted) == 3


@pytest.mark.parametrize("place", [*PLACES.values()][1:], ids=[*PLACES][1:])  # all classifiers see one batch
def test_training_reaches_every_parameter_of_the_module_and_of_the_model(place):
    model = Network()
    attachment = bf.attach(model, **place)
    criterion = attachment.wrap(nn.CrossEntropyLoss())
    criterion(model(X), Y).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    assert {id(p) for p in attachment.parameters()} < {id(p) for p in model.parameters()}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_evaluation_is_the_stock_models_attached_and_removed(place):
    model = Network().eval()
    expected, keys, before = model(X), list(model.state_dict()), copy.deepcopy(model.state_dict())
    attachment = bf.attach(model, **place)
    assert torch.equal(model(X), expected)
    attachment.remove()
    assert torch.equal(model(X), expected)
    assert list(model.state_dict()) == keys
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert hooks(model) == 0
    assert vars(model).keys() == vars(Network()).keys()
    attachment.remove()  # a second time


def test_removal_while_training_gives_the_stock_model():
    model = Network()
    stock = copy.deepcopy(model)
    bf.attach(model, before=HEADS).remove()
    assert torch.equal(model(X), stock(X))
    bf.attach(model, before=HEADS)  # and there is room again


def test_the_stock_state_dict_loads_strict_into_the_stock_model():
    model = Network()
    attachment = bf.attach(model, before=HEADS)
    torch.nn.utils.vector_to_parameters(
        torch.randn(sum(p.numel() for p in model.parameters())), model.parameters()
    )
    stock = Network()
    stock.load_state_dict(attachment.stock_state_dict(), strict=True)
    assert torch.equal(stock.eval()(X), model.eval()(X))


def test_state_dicts_go_from_one_attached_model_to_another():
    model, other = Network(), Network()
    bf.attach(model, before=HEADS, dropout=0.0)
    bf.attach(other, before=HEADS, dropout=0.0)
    other.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(model(X), other(X))


def test_an_optimizer_trains_the_module_whether_it_was_built_before_or_after():
    for before in (True, False):
        model = Network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1) if before else None
        attachment = bf.attach(model, before=HEADS)
        if optimizer is None:
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        else:
            optimizer.add_param_group({"params": attachment.parameters()})
        old = [p.clone() for p in attachment.parameters()]
        attachment.wrap(nn.CrossEntropyLoss())(model(X), Y).backward()
        optimizer.step()
        assert not any(torch.equal(p, q) for p, q in zip(attachment.parameters(), old, strict=True))


def test_a_sequential_model_runs_no_layer_more():
    model = nn.Sequential(nn.Sequential(nn.Linear(8, 32)), nn.Sequential(nn.ReLU(), nn.Linear(32, 5)))
    attachment = bf.attach(model, before="1")
    assert len(model) == 2
    assert len(model[1]) == 2
    assert model(X).shape == (12, 5)
    attachment.remove()
    assert model(X).shape == (6, 5)


def test_the_attachment_can_be_switched_off_alone():
    model = Network()
    attachment = bf.attach(model, before=HEADS)
    criterion = attachment.wrap(nn.CrossEntropyLoss())
    attachment.eval()
    assert criterion(model(X), Y).isfinite()
    assert len(model(X)) == 6
    model.train()
    assert len(model(X)) == 12


def test_a_single_stream_doubles_nothing():
    model = Network()
    attachment = bf.attach(model, before=HEADS, two_stream=False)
    criterion = attachment.wrap(nn.CrossEntropyLoss())
    logits = model(X)
    assert len(logits) == 6
    criterion(logits, Y).backward()
    assert all(p.grad is not None for p in attachment.parameters())


def test_a_classifier_may_be_called_with_keywords_and_with_more_arguments():
    class Classifier(nn.Linear):
        def forward(self, features, scale):
            return super().forward(features) * scale

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = Classifier(8, 5)

        def forward(self, x, keyword):
            return self.fc(features=x, scale=2.0) if keyword else self.fc(x, 2.0)

    model = Model()
    bf.attach(model, before="fc", dropout=0.0)
    assert torch.equal(model(X, True), model(X, False))
    assert len(model(X, True)) == 12


def test_the_device_and_dtype_are_those_of_the_place():
    model = nn.Sequential(nn.Linear(8, 32), nn.Linear(32, 5)).double()
    attachment = bf.attach(model, before="1")
    assert {p.dtype for p in attachment.parameters()} == {torch.float64}
    assert model(X.double()).dtype == torch.float64


# Layouts and widths


@pytest.mark.parametrize(
    ("block", "x", "doubled"),
    [
        (nn.TransformerEncoderLayer(16, 4, 16, batch_first=True), (6, 3, 16), (12, 3, 16)),
        (nn.TransformerEncoderLayer(16, 4, 16), (3, 6, 16), (3, 12, 16)),
        (nn.Conv2d(8, 16, 1), (6, 8, 2, 2), (12, 16, 2, 2)),
        (
            nn.Sequential(nn.Conv2d(8, 24, 1), nn.BatchNorm2d(24), nn.Conv2d(24, 16, 1)),
            (6, 8, 2, 2),
            (12, 16, 2, 2),
        ),
    ],
    ids=["batch_first", "batch_second", "convolution", "convolutions"],
)
def test_layout_and_width_of_a_block_are_those_that_its_modules_tell(block, x, doubled):
    model = nn.Sequential(block, nn.Identity())
    bf.attach(model, after="0")
    assert model(torch.randn(x)).shape == doubled


def test_a_backbone_that_gives_features_has_a_layout_of_its_own():
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 16, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten()), nn.Linear(16, 5)
    )
    bf.attach(model, after="0", layout="NC")
    assert model(torch.randn(6, 3, 4, 4)).shape == (12, 5)


@pytest.mark.parametrize(
    ("classifier", "width"),
    [
        (nn.Linear(32, 5), 32),
        (nn.Sequential(nn.Dropout(), nn.ReLU(), nn.Linear(32, 8), nn.Linear(8, 5)), 32),
        (nn.Sequential(nn.BatchNorm1d(32), nn.Linear(32, 5)), 32),
        (nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 5)), 32),
    ],
    ids=["linear", "multi-layer", "batch_norm", "layer_norm"],
)
def test_the_width_of_a_classifier_is_that_of_its_first_layer(classifier, width):
    attachment = bf.attach(nn.Sequential(nn.Linear(8, 32), classifier), before="1")
    assert attachment.inserted[0].dim == width


# Criteria


def doubling():
    model = Network()
    return model, bf.attach(model, before=HEADS)


def test_a_wrapped_module_stays_the_object_that_it_is():
    _, attachment = doubling()
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    assert attachment.wrap(criterion) is criterion
    assert criterion.label_smoothing == 0.1
    attachment.remove()
    assert hooks(criterion) == 0


@pytest.mark.parametrize(
    "call",
    [
        lambda criterion, logits: criterion(logits, Y),
        lambda criterion, logits: criterion(logits, target=Y),
        lambda criterion, logits: criterion(input=logits, target=Y),
        lambda criterion, logits: criterion(logits, F.one_hot(Y, 5).float()),
    ],
    ids=["positions", "a keyword", "keywords", "soft"],
)
def test_targets_are_doubled_however_the_criterion_is_called(call):
    model, attachment = doubling()
    logits = model(X)
    expected = F.cross_entropy(logits, torch.cat([Y, Y]))
    torch.testing.assert_close(call(attachment.wrap(nn.CrossEntropyLoss()), logits), expected)
    torch.testing.assert_close(call(attachment.wrap(F.cross_entropy), logits), expected)


@pytest.mark.parametrize("collate", [list, tuple])
def test_one_dict_a_sample_is_doubled_in_a_list_and_in_a_tuple(collate):
    model, attachment = doubling()
    targets, seen = collate({"labels": label} for label in Y), []
    attachment.wrap(lambda outputs, targets: seen.append(targets))(model(X), targets)
    assert seen == [targets + targets]


def test_containers_of_outputs_are_left_alone():
    model, attachment = doubling()
    logits, seen = model(X), []
    criterion = attachment.wrap(lambda outputs, targets: seen.append((outputs, targets)))
    outputs = ({"logits": logits}, [logits[:, :3]])
    criterion(outputs, Y)
    assert len(seen[0][1]) == 12
    assert seen[0][0] is outputs


def test_the_order_of_outputs_targets_and_images_does_not_matter():
    model, attachment = doubling()
    logits, seen = model(X), []
    attachment.wrap(lambda *arguments: seen.extend(arguments))(X, Y, logits)
    assert [len(each) for each in seen] == [12, 12, 12]
    assert seen[2] is logits


def test_named_targets_are_doubled_and_nothing_else():
    model, attachment = doubling()
    seen = {}
    others = torch.ones(6)  # as many as samples
    criterion = attachment.wrap(lambda logits, **rest: seen.update(rest), targets=["target"])
    criterion(model(X), target=Y, others=others)
    assert len(seen["target"]) == 12
    assert seen["others"] is others


def test_a_wrapped_criterion_doubles_nothing_in_evaluation_and_after_removal():
    model, attachment = doubling()
    criterion, function = attachment.wrap(nn.CrossEntropyLoss()), attachment.wrap(F.cross_entropy)
    model(X)
    model.eval()
    assert torch.equal(criterion(model(X), Y), function(model(X), Y))
    model.train()
    attachment.remove()
    assert function(model(X), Y).isfinite()


def test_a_teacher_inside_the_criterion_sees_every_image_once():
    seen = []

    class Teacher(nn.Linear):
        def forward(self, images):
            seen.append(len(images))
            return super().forward(images)

    class Distillation(nn.Module):
        def __init__(self):
            super().__init__()
            self.teacher_model = Teacher(8, 5)

        def forward(self, images, outputs, labels):
            teacher = self.teacher_model(images)
            return F.cross_entropy(outputs, labels) + F.mse_loss(outputs, teacher)

    model, attachment = doubling()
    stock = Distillation()
    criterion = attachment.wrap(copy.deepcopy(stock))
    outputs = model(X)
    expected = [stock(X, half, Y) for half in outputs.chunk(2)]
    torch.testing.assert_close(criterion(X, outputs, Y), sum(expected) / 2)
    criterion.teacher_model(X)
    assert seen == [6, 6, 6, 6]


# Meters


def test_a_meter_of_training_accuracy_sees_the_originals_and_the_criterion_both_streams():
    torch.manual_seed(1)
    model = Network()
    whole = copy.deepcopy(model)
    attachment = bf.attach(model, before=HEADS, outputs="originals", dropout=0.0)
    reference = bf.attach(whole, before=HEADS, dropout=0.0)
    whole.load_state_dict(model.state_dict())
    logits, both = model(X), whole(X)
    assert torch.equal(logits, both[:6])
    assert (logits.argmax(1) == Y).shape == Y.shape
    loss = attachment.wrap(nn.CrossEntropyLoss())(logits, Y)
    expected = reference.wrap(nn.CrossEntropyLoss())(both, Y)
    assert torch.equal(loss, expected)
    loss.backward()
    assert all(p.grad is not None for p in attachment.parameters())


def test_outputs_of_equal_values_are_told_apart():
    class TwoHeads(nn.Module):
        def __init__(self):
            super().__init__()
            self.heads = nn.ModuleList(nn.Linear(8, 5) for _ in range(2))
            for head in self.heads:
                nn.init.zeros_(head.weight)
                nn.init.zeros_(head.bias)

        def forward(self, x):
            return [head(x) for head in self.heads]

    grads = []
    for outputs in ("both", "originals"):
        torch.manual_seed(1)
        model = TwoHeads()
        attachment = bf.attach(model, before=["heads.0", "heads.1"], outputs=outputs, dropout=0.0)
        criterion = attachment.wrap(lambda a, b, y: F.cross_entropy(a, y) + 2 * F.cross_entropy(b, y))
        criterion(*model(X), Y).backward()
        grads.append([head.weight.grad for head in model.heads])
    for plain, rejoined in zip(*grads, strict=True):
        torch.testing.assert_close(rejoined, plain)


def test_related_rows_that_reach_no_criterion_stop_the_training():
    model = Network()
    bf.attach(model, before=HEADS, outputs="originals")
    with pytest.raises(RuntimeError, match="criterion: expected every loss of the outputs to be wrapped"):
        F.cross_entropy(model(X), Y).backward()


def test_nothing_is_said_of_rows_that_reach_their_criterion():
    model = Network()
    attachment = bf.attach(model, before=HEADS, outputs="originals")
    criterion = attachment.wrap(nn.CrossEntropyLoss())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            criterion(model(X), Y)


@pytest.mark.parametrize("handed_on", [torch.clone, torch.Tensor.double], ids=["a copy", "another dtype"])
def test_a_copy_of_the_models_output_is_rejoined_as_well(handed_on):
    model = Network()
    attachment = bf.attach(model, before=HEADS, outputs="originals", dropout=0.0)
    seen = []
    criterion = attachment.wrap(lambda logits, labels: seen.append(logits) or F.cross_entropy(logits, labels))
    logits = handed_on(model(X))
    criterion(logits, Y).backward()
    assert seen[0].shape == (12, 5)
    assert seen[0].dtype == logits.dtype
    assert torch.equal(seen[0][:6], logits)
    assert all(p.grad is not None for p in attachment.parameters())


def test_a_criterion_that_gets_other_tensors_than_the_models_says_so():
    model = Network()
    attachment = bf.attach(model, before=HEADS, outputs="originals")
    logits = model(X)
    with pytest.raises(ValueError, match="expected the outputs that the model returned"):
        attachment.wrap(nn.CrossEntropyLoss())(logits * 2, Y)


# nn.DataParallel


def test_outside_of_data_parallel_the_whole_batch_is_doubled():
    classifier = nn.DataParallel(nn.Linear(8, 5))
    attachment = bf.attach(classifier, before="", dropout=0.0)
    assert classifier(X).shape == (12, 5)
    assert list(attachment.stock_state_dict()) == ["module.weight", "module.bias"]


def test_inside_of_data_parallel_over_several_devices_it_is_refused():
    model = nn.DataParallel(Network())
    model.device_ids = [0, 1]
    with pytest.raises(ValueError, match=r"expected no nn\.DataParallel around 'module.heads.0'.*over 2"):
        bf.attach(model, before="module.heads.0")
    assert hooks(model) == 0


def test_a_replica_of_data_parallel_is_refused_when_it_runs():
    model = nn.Sequential(nn.Linear(8, 32), nn.Linear(32, 5))
    bf.attach(model, before="1")
    model[1]._is_replica = True
    with pytest.raises(RuntimeError, match=r"replica of nn\.DataParallel"):
        model(X)


def test_models_that_are_wrapped_already_are_refused_whatever_is_asked_for():
    with pytest.raises(ValueError, match=r"before torch\.compile"):
        bf.attach(torch.compile(Network()))
    compiled = Network()
    compiled.compile()
    with pytest.raises(ValueError, match=r"before torch\.compile"):
        bf.attach(compiled, before="heads.0")
    with pytest.raises(ValueError, match=r"before torch\.compile"):
        bf.attach(torch.compile(Network()), before="_orig_mod.heads.0")
    with pytest.raises(ValueError, match="FullyShardedDataParallel"):
        bf.attach(nn.Sequential(type("FullyShardedDataParallel", (nn.Linear,), {})(8, 5)), before="0")
