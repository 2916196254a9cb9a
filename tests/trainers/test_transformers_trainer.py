"""transformers' Trainer, whose model computes its loss from the labels that it is given."""

from functools import partial

import pytest
import torch
import transformers as T
from safetensors.torch import load_file

from attach_oracle import refused
from trainers.pairs import KINDS, ByHand, check, difference, pair, samples

pytestmark = pytest.mark.filterwarnings(
    "ignore", "error:batchformer"
)  # of transformers, accelerate and torch in turn
KEY = {"vit": "pixel_values", "vit, two places": "pixel_values", "bert": "input_ids"}
RATE, EPOCHS = 5e-3, 2
ADAM = partial(torch.optim.AdamW, lr=RATE, weight_decay=0.0)
EACH = pytest.mark.parametrize("kind", KEY)


class Noting(T.Trainer):
    """The Trainer, which notes its batches and their losses."""

    def training_step(self, model, inputs, num_items_in_batch=None):
        self.batches.append(tuple(inputs[name].clone() for name in (self.key, "labels")))
        self.losses.append(super().training_step(model, inputs, num_items_in_batch))
        return self.losses[-1]


def trainer(kind, model, path, **options):
    x, y = samples(kind)
    data = [{KEY[kind]: x[number], "labels": y[number]} for number in range(len(x))]
    settings = {
        "num_train_epochs": EPOCHS,
        "per_device_train_batch_size": 8,
        "learning_rate": RATE,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "optim": "adamw_torch",
    }
    arguments = T.TrainingArguments(str(path), **(settings | options))
    result = Noting(model, arguments, train_dataset=data, eval_dataset=data)
    result.key, result.batches, result.losses = KEY[kind], [], []
    return result


def train_by_hand(by_hand: ByHand, steps, *, smoothing=0.0, precision=None, optimizer=ADAM):
    """The Trainer's loop: a mean over all samples of a step, clipped gradients, a rate that falls to 0.

    BERT takes `num_items_in_batch` and leaves it aside, with and without BatchFormer: a sum of means.
    """
    optimizer = optimizer(by_hand.parameters())
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / len(steps))
    losses = []
    for step in steps:
        step = [step] if isinstance(step, tuple) else step
        for x, y in step:
            rows = 2 * sum(len(y) for _, y in ([(x, y)] if by_hand.kind == "bert" else step))
            with torch.autocast("cpu", precision, enabled=precision is not None):
                logits = by_hand(x)
            loss = torch.nn.functional.cross_entropy(
                logits.float(), y.repeat(2), reduction="sum", label_smoothing=smoothing
            )
            losses.append(loss.detach() / rows)
            (loss / rows).backward()
        torch.nn.utils.clip_grad_norm_(by_hand.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    return losses


@EACH
def test_two_epochs_are_those_by_hand(kind, tmp_path, figure):
    model, _, by_hand = pair(kind)
    run = trainer(kind, model, tmp_path)
    run.train()
    expected = train_by_hand(by_hand, run.batches)
    figure("by hand", check(model, by_hand, run.losses, expected))


@pytest.mark.parametrize("kind", ["vit", "bert"])
def test_evaluation_is_that_of_the_stock_model_and_leaves_the_training_alone(kind, tmp_path, figure):
    model, attachment, by_hand = pair(kind)
    run = trainer(kind, model, tmp_path, eval_strategy="steps", eval_steps=1)
    run.train()
    expected = train_by_hand(by_hand, run.batches)
    figure("by hand, without evaluations", check(model, by_hand, run.losses, expected))
    stock = KINDS[kind][0]()
    stock.load_state_dict(attachment.stock_state_dict(), strict=True)
    of_stock = trainer(kind, stock, tmp_path)
    evaluated = [each for each in run.state.log_history if "eval_loss" in each]
    assert len(evaluated) == 6
    assert evaluated[-1]["eval_loss"] == run.evaluate()["eval_loss"] == of_stock.evaluate()["eval_loss"]
    ours, theirs = (torch.tensor(each.predict(each.eval_dataset).predictions) for each in (run, of_stock))
    assert torch.equal(ours, theirs)
    figure("predictions of the stock model", (ours - theirs).abs().max().item())


@pytest.mark.parametrize("kind", ["vit", "bert"])
def test_a_run_that_is_resumed_in_the_middle_of_an_epoch_is_the_whole_run(kind, tmp_path, figure):
    """With the names of the model's own parameters, as transformers 5.23 saves a ViT by others.

    Its Trainer does not find those again, with BatchFormer and without.
    """
    saving = {"save_strategy": "steps", "save_steps": 4}
    whole = pair(kind, dropout=0.5)[0]
    whole.save_pretrained = partial(whole.save_pretrained, save_original_format=False)
    first = trainer(kind, whole, tmp_path, **saving)
    first.train()
    saved = load_file(tmp_path / "checkpoint-4" / "model.safetensors")
    assert saved.keys() == whole.state_dict().keys()
    assert sum(name.startswith("batchformer.") for name in saved) == 12
    resumed = pair(kind, dropout=0.5)[0]
    torch.manual_seed(7)
    second = trainer(kind, resumed, tmp_path, **saving)
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert len(second.losses) == 2
    assert torch.equal(torch.stack(second.losses), torch.stack(first.losses[4:]))
    off = difference(resumed.state_dict(), whole.state_dict())
    assert off == 0
    figure("the uninterrupted run, with dropout", off)


def test_the_stock_model_loads_a_checkpoint_and_lists_the_module_as_unexpected(tmp_path):
    model = pair("vit")[0]
    trainer("vit", model, tmp_path).save_model()
    stock, report = T.ViTForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert len(report["unexpected_keys"]) == 12
    assert not report["missing_keys"]
    x = samples("vit")[0]
    assert torch.equal(stock.eval()(x).logits, model.eval()(x).logits)


@pytest.mark.parametrize("kind", ["vit", "bert"])
@pytest.mark.parametrize("accumulate", [2, 3])
def test_gradients_that_are_accumulated(kind, accumulate, tmp_path, figure):
    model, _, by_hand = pair(kind)
    run = trainer(kind, model, tmp_path, gradient_accumulation_steps=accumulate, num_train_epochs=3)
    run.train()
    epochs = [run.batches[at : at + 3] for at in range(0, 9, 3)]  # whose last step may have fewer batches
    steps = [epoch[at : at + accumulate] for epoch in epochs for at in range(0, 3, accumulate)]
    expected = train_by_hand(by_hand, steps)
    figure("by hand", check(model, by_hand, run.losses, expected))


@pytest.mark.parametrize("kind", ["vit", "bert"])
def test_labels_that_are_smoothed_with_the_line_of_the_documentation(kind, tmp_path, figure):
    model, attachment, by_hand = pair(kind)
    run = trainer(kind, model, tmp_path, label_smoothing_factor=0.1)
    run.label_smoother = attachment.wrap(run.label_smoother)
    run.train()
    expected = train_by_hand(by_hand, run.batches, smoothing=0.1)
    figure("by hand", check(model, by_hand, run.losses, expected, 2e-5))


def test_labels_that_are_smoothed_without_it_are_refused(tmp_path):
    run = trainer("vit", pair("vit")[0], tmp_path, label_smoothing_factor=0.1)
    with refused(RuntimeError, saying="label_smoother = attachment.wrap"):
        run.train()


def test_a_loss_function_of_the_user(tmp_path, figure):
    def loss(outputs, labels, num_items_in_batch=None):
        return torch.nn.functional.cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch

    model, attachment, by_hand = pair("vit")
    run = trainer("vit", model, tmp_path, gradient_accumulation_steps=3)
    run.compute_loss_func = attachment.wrap(loss)
    run.train()
    expected = train_by_hand(by_hand, [run.batches[:3], run.batches[3:]])
    figure("by hand", check(model, by_hand, run.losses, expected))


@EACH
@pytest.mark.parametrize("use_reentrant", [True, False], ids=["reentrant", "not reentrant"])
def test_checkpointed_layers(kind, use_reentrant, tmp_path, figure):
    model, _, by_hand = pair(kind)
    kwargs = {"use_reentrant": use_reentrant}
    run = trainer(kind, model, tmp_path, gradient_checkpointing=True, gradient_checkpointing_kwargs=kwargs)
    run.train()
    assert model.is_gradient_checkpointing
    expected = train_by_hand(by_hand, run.batches)
    figure("by hand, without checkpoints", check(model, by_hand, run.losses, expected))


@EACH
def test_brain_floats(kind, tmp_path, figure):
    model, _, by_hand = pair(kind)
    run = trainer(kind, model, tmp_path, bf16=True)
    run.train()
    expected = train_by_hand(by_hand, run.batches, precision=torch.bfloat16)
    figure("by hand, under autocast", check(model, by_hand, run.losses, expected))


@pytest.mark.parametrize("kind", ["vit", "bert"])
def test_a_compiled_model(kind, tmp_path, figure):
    model, _, by_hand = pair(kind)
    backend = {"vit": "inductor", "bert": "aot_eager"}[kind]
    run = trainer(kind, model, tmp_path, torch_compile_backend=backend, optim="sgd", learning_rate=0.1)
    run.train()
    expected = train_by_hand(by_hand, run.batches, optimizer=partial(torch.optim.SGD, lr=0.1))
    figure("by hand, not compiled", check(model, by_hand, run.losses, expected, 2e-5))
    assert run.evaluate()["eval_loss"] > 0
