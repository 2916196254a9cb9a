"""Lightning's Trainer, with its callbacks that average weights, and with metrics of torchmetrics."""

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import get_ema_avg_fn
from torch.utils.data import DataLoader, TensorDataset

import batchformer as bf
from trainers.pairs import CLASSES, check, difference, of_model, pair, samples, step_by_hand

lightning = pytest.importorskip("lightning.pytorch")
torchmetrics = pytest.importorskip("torchmetrics")
callbacks = pytest.importorskip("lightning.pytorch.callbacks")

pytestmark = pytest.mark.filterwarnings("ignore", "error:batchformer")  # of lightning in turn
BATCH, EPOCHS = 6, 2
LOOSE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}  # a mean over batches is of rounded means


class Lit(lightning.LightningModule):
    """A module as people write it; attach() is a line of its constructor or of the script."""

    def __init__(self, model, criterion):
        super().__init__()
        self.model, self.criterion = model, criterion
        self.accuracy = torchmetrics.Accuracy("multiclass", num_classes=CLASSES)
        self.validated = torchmetrics.Accuracy("multiclass", num_classes=CLASSES)
        self.losses, self.right, self.rows = [], 0, 0

    def training_step(self, batch, number):
        x, y = batch
        logits = self.model(x)
        loss = self.criterion(logits, y)
        self.accuracy(logits, y)
        self.right += int((logits.argmax(1) == y).sum())
        self.rows += len(logits)
        self.log("accuracy", self.accuracy, on_step=False, on_epoch=True)
        self.losses.append(loss.detach())
        return loss

    def validation_step(self, batch, number):
        x, y = batch
        logits = self.model(x)
        self.validated(logits, y)
        self.log("validated", self.validated)
        self.log("val_loss", self.criterion(logits, y))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=5e-3)


def data():
    return DataLoader(TensorDataset(*samples("normed")), batch_size=BATCH)


def lit(dropout=0.0):
    model, attachment, by_hand = pair("normed", dropout=dropout, outputs="originals")
    return Lit(model, attachment.wrap(nn.CrossEntropyLoss())), by_hand


def trainer(path, epochs=EPOCHS, **options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    saving = {"enable_checkpointing": False} | options
    return lightning.Trainer(
        accelerator="cpu", devices=1, max_epochs=epochs, default_root_dir=path, **quiet, **saving
    )


def train_by_hand(by_hand, *, epochs=EPOCHS, accumulate=1, precision=None, after=lambda: None):
    optimizer, losses = torch.optim.AdamW(by_hand.parameters(), lr=5e-3), []
    for _ in range(epochs):
        for number, (x, y) in enumerate(data()):
            with torch.autocast("cpu", precision, enabled=precision is not None):
                loss = step_by_hand(by_hand, x, y)
            losses.append(loss.detach())
            (loss / accumulate).backward()
            if (number + 1) % accumulate == 0:
                optimizer.step()
                optimizer.zero_grad()
                after()
    return losses


OPTIONS = {
    "plain": ({}, {}),
    "accumulated": ({"accumulate_grad_batches": 2}, {"accumulate": 2}),
    "bf16": ({"precision": "bf16-mixed"}, {"precision": torch.bfloat16}),
}


@pytest.mark.parametrize(("options", "settings"), OPTIONS.values(), ids=OPTIONS)
def test_two_epochs_and_their_metrics(options, settings, tmp_path, figure):
    module, by_hand = lit()
    run = trainer(tmp_path, **options)
    run.fit(module, data(), data())
    assert module.rows == EPOCHS * len(samples("normed")[0]), "metrics are of the originals alone"
    measured = {name: float(value) for name, value in run.callback_metrics.items()}
    expected = train_by_hand(by_hand, **settings)
    figure("by hand", check(module.model, by_hand, module.losses, expected))
    stock = by_hand.stock.eval()
    x, y = samples("normed")
    with torch.autocast("cpu", settings.get("precision"), enabled="precision" in settings):
        logits = stock(x)
        loss = nn.functional.cross_entropy(logits, y)
    right = (logits.argmax(1) == y).float().mean()
    assert measured["validated"] == pytest.approx(float(right))
    assert measured["val_loss"] == pytest.approx(float(loss), rel=LOOSE[loss.dtype])


def test_accuracy_in_training_is_that_of_the_originals(tmp_path):
    module, _ = lit()
    run = trainer(tmp_path, epochs=1)
    run.fit(module, data())
    assert float(run.callback_metrics["accuracy"]) == pytest.approx(module.right / module.rows)
    assert module.rows == 24


def test_an_exponential_average_of_weights(tmp_path, figure):
    module, by_hand = lit()
    averages = callbacks.EMAWeightAveraging(decay=0.9)
    run = trainer(tmp_path, callbacks=[averages])
    validated = []
    module.on_validation_end = lambda: validated.append(copy.deepcopy(module.model.state_dict()))
    run.fit(module, data(), data())
    average = torch.optim.swa_utils.AveragedModel(by_hand, avg_fn=get_ema_avg_fn(0.9), use_buffers=True)
    expected = train_by_hand(by_hand, after=lambda: average.update_parameters(by_hand))
    losses = (torch.stack(module.losses) - torch.stack(expected)).abs().max().item()
    learnt = difference(module.model.state_dict(), of_model(average.module.state_dict()))
    assert max(losses, learnt) == 0
    figure("AveragedModel of the loop by hand", max(losses, learnt))
    stock = pair("normed")[2].stock
    stock.load_state_dict(module.model.batchformer.stock_state_dict(), strict=True)
    x = samples("normed")[0]
    assert torch.equal(module.model.eval()(x), stock.eval()(x))
    assert len(validated) == EPOCHS + 1


def test_stochastic_weight_averaging(tmp_path, figure):
    """The mean of the weights with which the epochs from the second on begin.

    An epoch more gives the batch norm its statistics, in training mode. At its end Lightning's optimizer
    takes a step with the gradients that were left, with BatchFormer and without: weights are noted before.
    """
    module, by_hand = lit()
    averaged = {}

    def note(batch, number):
        if module.trainer.current_epoch == 4 and number == 0:
            averaged.update({name: each.clone() for name, each in module.model.named_parameters()})

    module.on_train_batch_start = note
    swa = callbacks.StochasticWeightAveraging(swa_lrs=5e-3, swa_epoch_start=2, annealing_epochs=1)
    trainer(tmp_path, epochs=4, callbacks=[swa]).fit(module, data())
    average, steps = torch.optim.swa_utils.AveragedModel(by_hand), [0]

    def after():
        steps[0] += 1
        if steps[0] in (4, 8, 12):
            average.update_parameters(by_hand)

    expected = train_by_hand(by_hand, epochs=4, after=after)
    assert torch.equal(torch.stack(module.losses[:16]), torch.stack(expected))
    off = difference(averaged, of_model(dict(average.module.named_parameters())))
    assert off < 1e-6
    figure("weights: AveragedModel of the loop by hand", off)
    torch.optim.swa_utils.update_bn(data(), average)
    statistics = {name: each for name, each in module.model.named_buffers() if "running" in name}
    expected = {
        name: each for name, each in of_model(average.module.state_dict()).items() if name in statistics
    }
    off = difference(statistics, expected)
    assert off < 1e-5
    figure("statistics: update_bn() of the loop by hand", off)


def test_a_run_that_is_resumed_is_the_whole_run(tmp_path, figure):
    """With the random state of that, which Lightning does not keep."""
    whole, resumed = lit(dropout=0.5)[0], lit(dropout=0.5)[0]
    states = []

    def at_second_epoch(module, act):
        def hook(batch, number):
            if module.trainer.current_epoch == 1 and number == 0:
                act()

        module.on_train_batch_start = hook

    at_second_epoch(whole, lambda: states.append(torch.get_rng_state()))
    at_second_epoch(resumed, lambda: torch.set_rng_state(states[0]))
    checkpoints = callbacks.ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    trainer(tmp_path, callbacks=[checkpoints], enable_checkpointing=True).fit(whole, data())
    path = str(tmp_path / "epoch=0.ckpt")
    saved = torch.load(path, weights_only=False)["state_dict"]
    assert sum(".batchformer." in name for name in saved) == 12
    torch.manual_seed(7)
    trainer(tmp_path).fit(resumed, data(), ckpt_path=path)
    assert torch.equal(torch.stack(resumed.losses), torch.stack(whole.losses[4:]))
    off = difference(resumed.state_dict(), whole.state_dict())
    assert off == 0
    figure("the uninterrupted run, with dropout", off)


def test_a_run_without_dropout_that_is_resumed_is_the_loop_by_hand(tmp_path, figure):
    first, by_hand = lit()
    checkpoints = callbacks.ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    trainer(tmp_path, epochs=1, callbacks=[checkpoints], enable_checkpointing=True).fit(first, data())
    second, _ = lit()
    trainer(tmp_path, epochs=2).fit(second, data(), ckpt_path=str(tmp_path / "epoch=0.ckpt"))
    expected = train_by_hand(by_hand)
    losses = [*first.losses, *second.losses]
    figure("by hand, uninterrupted", check(second.model, by_hand, losses, expected))


def test_a_module_that_attaches_to_itself(tmp_path, figure):
    """LightningModules that are the model: the place is named from there."""

    class Own(Lit):
        def __init__(self):
            super().__init__(pair("normed")[2].stock, None)
            self.attachment = bf.attach(self.model, before="fc", outputs="originals", dropout=0.0)
            self.criterion = self.attachment.wrap(nn.CrossEntropyLoss())

    module, (_, by_hand) = Own(), lit()
    by_hand.module.load_state_dict(module.attachment.inserted[0].state_dict())
    by_hand.start = {name: each.detach().clone() for name, each in by_hand.named_parameters()}
    trainer(tmp_path).fit(module, data())
    expected = train_by_hand(by_hand)
    figure("by hand", check(module.model, by_hand, module.losses, expected))
