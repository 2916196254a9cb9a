"""LoRA of PEFT: around a model that has BatchFormer, and inside of one that gets it afterwards."""

import copy

import pytest
import torch
from torch import nn

import batchformer as bf
from attach_oracle import said_of
from trainers.pairs import ByHand, difference, of_model, samples, step_by_hand, vit

peft = pytest.importorskip("peft")
safetensors = pytest.importorskip("safetensors.torch")

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # PEFT asks transformers by an old name


def lora(**options):
    return peft.LoraConfig(target_modules=["q_proj", "v_proj"], lora_alpha=16, r=4, **options)


def batches():
    x, y = samples("vit")
    return [(x[at : at + 6], y[at : at + 6]) for at in range(0, len(x), 6)] * 2


def trained(model):
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def train(model, loss_of):
    optimizer, losses = torch.optim.AdamW(trained(model), lr=5e-3), []
    for x, y in batches():
        optimizer.zero_grad()
        loss = loss_of(x, y)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return losses


def with_adapter(model, **options):
    torch.manual_seed(2)
    return peft.get_peft_model(model, lora(**options)).train()


def by_labels(model):
    return lambda x, y: model(pixel_values=x, labels=y).loss


def compare(model, by_hand, losses, expected):
    """The largest difference, in losses and in all that an adapter trains; nothing else has moved."""
    parts = {"base_model.model.": "", ".original_module": "", "batchformer.modules_to_save.default": ""}
    actual = {}
    for name, parameter in model.named_parameters():
        for part, other in parts.items():
            name = name.replace(part, other)
        actual[name] = parameter
    wanted = of_model(dict(by_hand.named_parameters()))
    trains = {name for name, each in actual.items() if each.requires_grad}
    assert sum("batchformer" in name for name in trains) == 12
    for name, start in of_model(by_hand.start).items():
        assert torch.equal(actual[name], start) != (name in trains), name
    off = max(
        difference({name: actual[name] for name in trains}, {name: wanted[name] for name in trains}),
        (torch.stack(losses) - torch.stack(expected)).abs().max().item(),
    )
    assert off == 0
    return off


@pytest.mark.parametrize("by_path", [True, False], ids=["by path", "to the base model"])
def test_an_adapter_first_and_then_attach(by_path, tmp_path, figure):
    stock = with_adapter(vit().train())
    model = copy.deepcopy(stock)
    if by_path:
        attachment = bf.attach(model, after="base_model.model.vit.layers.1", dropout=0.0)
    else:
        attachment = bf.attach(model.get_base_model(), after=1, dropout=0.0)
    by_hand = ByHand("vit", stock.get_base_model(), copy.deepcopy(attachment.inserted[0])).train()
    losses = train(model, by_labels(model))
    expected = train(by_hand, lambda x, y: step_by_hand(by_hand, x, y))
    figure("by hand", compare(model, by_hand, losses, expected))
    model.save_pretrained(tmp_path)
    saved = safetensors.load_file(tmp_path / "adapter_model.safetensors")
    assert not [name for name in saved if "batchformer" in name], "it is for attachment.state_dict() to save"


def attach_first(saved):
    """attach(), then an adapter; and by hand."""
    torch.manual_seed(0)
    stock = vit().train()
    model = copy.deepcopy(stock)
    attachment = bf.attach(model, after=1, dropout=0.0)
    model = with_adapter(model, modules_to_save=saved)
    by_hand = ByHand("vit", with_adapter(stock).get_base_model(), copy.deepcopy(attachment.inserted[0]))
    by_hand.module.requires_grad_(True)
    by_hand.start = {name: each.detach().clone() for name, each in by_hand.named_parameters()}
    return model, attachment, by_hand.train()


def test_attach_first_and_a_module_that_is_named_for_saving(tmp_path, figure):
    model, attachment, by_hand = attach_first(["batchformer"])
    losses = train(model, by_labels(model))
    expected = train(by_hand, lambda x, y: step_by_hand(by_hand, x, y))
    figure("by hand", compare(model, by_hand, losses, expected))
    model.save_pretrained(tmp_path)
    saved = safetensors.load_file(tmp_path / "adapter_model.safetensors")
    assert sum("batchformer" in name for name in saved) == 12
    torch.manual_seed(0)
    stock = vit()
    other = copy.deepcopy(stock)
    loaded = bf.attach(other, after=1, dropout=0.0)
    nn.init.zeros_(loaded.inserted[0].encoder.linear1.weight)
    adapted = peft.PeftModel.from_pretrained(other, tmp_path, is_trainable=True).train()
    off = difference(loaded.inserted[0].state_dict(), attachment.inserted[0].state_dict())
    assert off == 0
    figure("the module from an adapter's checkpoint", off)
    x, y = batches()[0]
    assert torch.equal(by_labels(adapted)(x, y), by_labels(model.train())(x, y))
    merged = adapted.merge_and_unload()
    stock.load_state_dict(merged.batchformer.stock_state_dict(), strict=True)
    assert torch.equal(merged.eval()(x).logits, stock.eval()(x).logits)


def test_attach_first_without_it_is_warned_of():
    model, _, _ = attach_first(None)
    (said,) = said_of(lambda: train(model, by_labels(model)), times=1)
    assert "its parameters are frozen" in said


def test_attach_first_and_the_line_of_the_warning(figure):
    model, attachment, by_hand = attach_first(None)
    attachment.requires_grad_(True)
    losses = train(model, by_labels(model))
    expected = train(by_hand, lambda x, y: step_by_hand(by_hand, x, y))
    figure("by hand", compare(model, by_hand, losses, expected))
