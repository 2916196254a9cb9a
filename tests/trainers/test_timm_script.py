"""The parts of timm's training script: losses, mixed images, groups of parameters, averages, checkpoints."""

import argparse
import itertools

import numpy as np
import pytest
import timm
import torch
from timm.data import Mixup
from timm.loss import BinaryCrossEntropy, JsdCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2, param_groups_layer_decay, param_groups_weight_decay
from timm.utils import CheckpointSaver, ModelEmaV3, accuracy
from torch import nn

import batchformer as bf
from attach_oracle import refused
from trainers.pairs import CLASSES, check, difference, of_model, pair, samples

BATCH, EPOCHS = 6, 2
BOTH_MODES = pytest.mark.parametrize("outputs", ["both", "originals"])


def batches(mix=None):
    x, y = samples("timm")
    np.random.seed(0)
    parts = [(x[at : at + BATCH].clone(), y[at : at + BATCH]) for at in range(0, len(x), BATCH)] * EPOCHS
    return [mix(*part) for part in parts] if mix else parts


def train(loss_of, optimizer, data, after=lambda: None):
    """The script's loop."""
    losses = []
    for x, y in data:
        loss = loss_of(x, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        after()
        losses.append(loss.detach())
    return losses


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def mixup(**options):
    return Mixup(num_classes=CLASSES, **options)


LOSSES = {
    "mixup and cutmix": (SoftTargetCrossEntropy, mixup(mixup_alpha=0.8, cutmix_alpha=1.0)),
    "mixup of pairs": (SoftTargetCrossEntropy, mixup(mixup_alpha=0.8, cutmix_alpha=1.0, mode="pair")),
    "cutmix of each": (SoftTargetCrossEntropy, mixup(cutmix_alpha=1.0, mode="elem")),
    "binary, mixed": (lambda: BinaryCrossEntropy(target_threshold=0.2), mixup(mixup_alpha=0.2)),
    "binary, of classes": (lambda: BinaryCrossEntropy(smoothing=0.1), None),
    "binary, a sum over classes": (lambda: BinaryCrossEntropy(sum_classes=True), None),
    "smoothed": (lambda: LabelSmoothingCrossEntropy(0.1), None),
}


@BOTH_MODES
@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_timm(name, outputs, figure):
    make, mix = LOSSES[name]
    model, attachment, by_hand = pair("timm", outputs=outputs)
    criterion, plain = attachment.wrap(make()), make()
    losses = train(lambda x, y: criterion(model(x), y), sgd(model.parameters()), batches(mix))
    expected = train(
        lambda x, y: plain(by_hand(x), torch.cat([y, y])), sgd(by_hand.parameters()), batches(mix)
    )
    figure("by hand", check(model, by_hand, losses, expected))
    x, y = samples("timm")
    with torch.no_grad():
        evaluated, stock = model.eval()(x), by_hand.stock.eval()(x)
    assert torch.equal(evaluated, stock)
    assert accuracy(evaluated, y, topk=(1, 5))[1] == 100


def test_augmix_is_refused_for_a_wrapped_criterion():
    _, attachment, _ = pair("timm")
    with refused(ValueError, saying="splits the batch itself"):
        attachment.wrap(JsdCrossEntropy(3))


def test_augmix_with_a_call_for_each_stream(figure):
    model, _, by_hand = pair("timm", wrapped=False)
    jsd = JsdCrossEntropy(num_splits=3, smoothing=0.1)

    def loss_of(x, y):
        logits = model(x)
        return (jsd(bf.original(logits), y) + jsd(bf.related(logits), y)) / 2

    def loss_by_hand(x, y):
        originals, related = by_hand(x).split(len(x))
        return (jsd(originals, y) + jsd(related, y)) / 2

    noise = torch.randn(2, BATCH, 3, 16, 16) / 4
    data = [(torch.cat([x, x + noise[0], x + noise[1]]), y.repeat(3)) for x, y in batches()]
    losses = train(loss_of, sgd(model.parameters()), data)
    expected = train(loss_by_hand, sgd(by_hand.parameters()), data)
    figure("by hand", check(model, by_hand, losses, expected))


GROUPS = {
    "weight decay": lambda model: param_groups_weight_decay(model, 0.05),
    "layer decay": lambda model: param_groups_layer_decay(model, 0.05, layer_decay=0.5),
}


@pytest.mark.parametrize("name", GROUPS)
def test_groups_of_parameters_hold_each_of_the_module_once(name, figure):
    model, attachment, by_hand = pair("timm")
    groups = GROUPS[name](model)
    named = {id(parameter): parameter_name for parameter_name, parameter in model.named_parameters()}
    names = [[named[id(parameter)] for parameter in group["params"]] for group in groups]
    assert sorted(itertools.chain.from_iterable(names)) == sorted(named.values())
    # Of the module, as of the head: the whole rate, and weight decay for matrices alone.
    for group, members in zip(groups, names, strict=True):
        for member in members:
            if "batchformer" in member:
                assert group.get("lr_scale", 1.0) == 1.0
                assert (group["weight_decay"] > 0) == (model.get_parameter(member).dim() > 1)
    same = of_model(dict(by_hand.named_parameters()))
    others = [
        group | {"params": [same[member] for member in members]}
        for group, members in zip(groups, names, strict=True)
    ]
    for group in (*groups, *others):
        group["lr"] = 0.1 * group.get("lr_scale", 1.0)
    criterion = attachment.wrap(nn.CrossEntropyLoss())
    losses = train(lambda x, y: criterion(model(x), y), sgd(groups), batches())
    expected = train(
        lambda x, y: nn.functional.cross_entropy(by_hand(x), y.repeat(2)), sgd(others), batches()
    )
    figure("by hand", check(model, by_hand, losses, expected))


def test_an_average_a_checkpoint_and_what_is_resumed_from_it(tmp_path, figure):
    model, attachment, by_hand = pair("timm")
    optimizer = create_optimizer_v2(model, "adamw", lr=5e-3, weight_decay=0.05, layer_decay=0.75)
    average, plain = (ModelEmaV3(each, decay=0.9, use_warmup=True) for each in (model, by_hand))
    criterion = attachment.wrap(nn.CrossEntropyLoss())
    data, updates = batches(), [0, 0]

    def update(number, ema, of):
        updates[number] += 1
        ema.update(of, step=updates[number])

    losses = train(
        lambda x, y: criterion(model(x), y), optimizer, data[:4], lambda: update(0, average, model)
    )
    saver = CheckpointSaver(
        model,
        optimizer,
        model_ema=average,
        checkpoint_dir=tmp_path,
        recovery_dir=tmp_path,
        args=argparse.Namespace(model="vit"),
    )
    saver.save_checkpoint(0, 1.0)
    resumed, other, _ = pair("timm")
    again = create_optimizer_v2(resumed, "adamw", lr=5e-3, weight_decay=0.05, layer_decay=0.75)
    epoch = timm.models.resume_checkpoint(resumed, str(tmp_path / "last.pth.tar"), again)
    assert epoch == 1
    ema = ModelEmaV3(resumed, decay=0.9, use_warmup=True)
    timm.models.load_checkpoint(ema.module, str(tmp_path / "last.pth.tar"), use_ema=True)
    assert difference(ema.module.state_dict(), average.module.state_dict()) == 0
    updates[0] = 4
    criterion = other.wrap(nn.CrossEntropyLoss())
    losses += train(lambda x, y: criterion(resumed(x), y), again, data[4:], lambda: update(0, ema, resumed))
    same = of_model(dict(by_hand.named_parameters()))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = [
        {"params": [same[names[id(p)]] for p in group["params"]], "lr": group["lr"]}
        | {key: group[key] for key in ("weight_decay", "lr_scale") if key in group}
        for group in optimizer.param_groups
    ]
    expected = train(
        lambda x, y: nn.functional.cross_entropy(by_hand(x), y.repeat(2)),
        torch.optim.AdamW(groups),
        data,
        lambda: update(1, plain, by_hand),
    )
    figure("by hand, uninterrupted", check(resumed, by_hand, losses, expected))
    off = difference(ema.module.state_dict(), of_model(plain.module.state_dict()))
    assert off == 0
    figure("ModelEmaV3 of the model by hand", off)
    stock = pair("timm")[2].stock
    stock.load_state_dict(ema.module.batchformer.stock_state_dict(), strict=True)
    x = samples("timm")[0]
    assert torch.equal(ema.module.eval()(x), stock.eval()(x))
