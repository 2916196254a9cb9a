"""accelerate's Accelerator, around the loops that people write with it; `bf.accelerate` is something else."""

import accelerate
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from trainers.pairs import CLASSES, check, difference, inputs, pair, samples

pytestmark = pytest.mark.filterwarnings("ignore", "error:batchformer")  # of accelerate and torch in turn
EPOCHS = 2


@pytest.fixture(autouse=True)
def _no_state():
    """An Accelerator keeps what it was told for the next one."""
    yield
    accelerate.state.AcceleratorState._reset_state(True)
    accelerate.state.GradientState._reset_state()


def batches(kind, size=6):
    return DataLoader(TensorDataset(*samples(kind)), batch_size=size)


def optimizer_of(model):
    return torch.optim.AdamW(model.parameters(), lr=5e-3)


class Run:
    """A model, its optimizer and its data, prepared."""

    def __init__(self, kind, model, **options):
        self.accelerator = accelerate.Accelerator(cpu=True, **options)
        optimizer, data = optimizer_of(model), batches(kind)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 8)
        self.model, self.optimizer, self.data, self.scheduler = self.accelerator.prepare(
            model, optimizer, data, scheduler
        )
        self.losses = []

    def train(self, loss_of, steps=None):
        for x, y in self.data if steps is None else steps:
            with self.accelerator.accumulate(self.model):
                loss = loss_of(self.model, x, y)
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(self.model.parameters(), 1.0)
                self.optimizer.step()
                self.scheduler.step()
                self.optimizer.zero_grad()
            self.losses.append(loss.detach())


def by_its_labels(kind):
    return lambda model, x, y: model(**inputs(kind, x, y)).loss


def by_a_criterion(criterion):
    """A loop that compares what the model returns with the labels, and then judges it."""

    def loss_of(model, x, y):
        logits = model(x)
        assert (logits.argmax(1) == y).shape == y.shape
        return criterion(logits, y)

    return loss_of


def train_by_hand(by_hand, kind, *, accumulate=1, precision=None):
    data, losses = list(batches(kind)), []
    optimizer = optimizer_of(by_hand)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 8)
    for _ in range(EPOCHS):
        for number, (x, y) in enumerate(data):
            with torch.autocast("cpu", precision, enabled=precision is not None):
                logits = by_hand(x)
            loss = nn.functional.cross_entropy(logits.float(), y.repeat(2))
            losses.append(loss.detach())
            (loss / accumulate).backward()
            if (number + 1) % accumulate == 0 or number + 1 == len(data):
                nn.utils.clip_grad_norm_(by_hand.parameters(), 1.0)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
    return losses


OPTIONS = {
    "plain": ({}, {}),
    "accumulate 2": ({"gradient_accumulation_steps": 2}, {"accumulate": 2}),
    "accumulate 3, with a rest": ({"gradient_accumulation_steps": 3}, {"accumulate": 3}),
    "bf16": ({"mixed_precision": "bf16"}, {"precision": torch.bfloat16}),
}
EACH = pytest.mark.parametrize(("options", "settings"), OPTIONS.values(), ids=OPTIONS)


@EACH
@pytest.mark.parametrize("kind", ["vit", "bert"])
def test_models_with_labels(kind, options, settings, figure):
    model, _, by_hand = pair(kind)
    run = Run(kind, model, **options)
    for _ in range(EPOCHS):
        run.train(by_its_labels(kind))
    expected = train_by_hand(by_hand, kind, **settings)
    figure("by hand", check(model, by_hand, run.losses, expected))


@EACH
def test_a_criterion_behind_a_model_that_returns_the_originals(options, settings, figure):
    model, attachment, by_hand = pair("normed", outputs="originals")
    run = Run("normed", model, **options)
    loss_of = by_a_criterion(attachment.wrap(nn.CrossEntropyLoss()))
    for _ in range(EPOCHS):
        run.train(loss_of)
    expected = train_by_hand(by_hand, "normed", **settings)
    figure("by hand", check(model, by_hand, run.losses, expected))


def test_a_state_that_is_loaded_in_the_middle_of_an_epoch_goes_on_as_the_whole_run(tmp_path, figure):
    whole, attachment, _ = pair("normed", dropout=0.5, outputs="originals")
    first = Run("normed", whole)
    loss_of = by_a_criterion(attachment.wrap(nn.CrossEntropyLoss()))
    data = list(first.data)
    first.train(loss_of, data[:2])
    first.accelerator.save_state(tmp_path)
    first.train(loss_of, data[2:])
    accelerate.state.AcceleratorState._reset_state(True)
    other, attachment, _ = pair("normed", dropout=0.5, outputs="originals")
    torch.manual_seed(7)
    second = Run("normed", other)
    rest = list(second.accelerator.skip_first_batches(second.data, 2))  # a loader draws a seed when it begins
    second.accelerator.load_state(tmp_path)
    second.train(by_a_criterion(attachment.wrap(nn.CrossEntropyLoss())), rest)
    assert torch.equal(torch.stack(second.losses), torch.stack(first.losses[2:]))
    off = difference(other.state_dict(), whole.state_dict())
    assert off == 0
    figure("the uninterrupted run, with dropout", off)


def test_metrics_that_are_gathered_are_of_the_originals():
    model, _, _ = pair("normed", outputs="originals")
    run = Run("normed", model)
    for x, y in run.data:
        logits, labels = run.accelerator.gather_for_metrics((run.model(x), y))
        assert logits.shape == (len(labels), CLASSES)


def test_the_saved_model_is_the_attached_one(tmp_path):
    model, attachment, _ = pair("normed")
    run = Run("normed", model)
    run.accelerator.save_model(run.model, tmp_path)
    other, _, _ = pair("normed")
    nn.init.zeros_(other.batchformer.inserted[0].encoder.linear1.weight)
    accelerate.load_checkpoint_in_model(other, tmp_path)
    assert difference(other.state_dict(), model.state_dict()) == 0
    assert run.accelerator.unwrap_model(run.model).batchformer is attachment
