"""Small models with attach(), and with the module between their parts by hand; how far trainings are off."""

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
import transformers as T
from timm.models import VisionTransformer
from torch import Tensor, nn

import batchformer as bf
from families.images import CLASSES, TINY

SAMPLES, BATCH = 24, 8
WITHOUT_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


class Normed(nn.Module):
    """Features behind a batch norm, whose statistics are of the N originals, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.fc = nn.Linear(6, 32), nn.BatchNorm1d(32), nn.Linear(32, CLASSES)

    def forward(self, x):
        return self.fc(self.norm(self.stem(x)).relu())


def vit() -> nn.Module:
    config = T.ViTConfig(**TINY, **WITHOUT_DROPOUT, num_hidden_layers=3, image_size=16, patch_size=8)
    return T.ViTForImageClassification(config)


def bert() -> nn.Module:
    config = T.BertConfig(**TINY, **WITHOUT_DROPOUT, num_hidden_layers=2, vocab_size=20)
    return T.BertForSequenceClassification(config)


def timm_vit() -> nn.Module:
    return VisionTransformer(
        img_size=16, patch_size=8, embed_dim=32, depth=3, num_heads=4, num_classes=CLASSES
    )


def timm_by_hand(stock: nn.Module, module: nn.Module, x: Tensor) -> Tensor:
    tokens = stock.norm_pre(stock.patch_drop(stock._pos_embed(stock.patch_embed(x))))
    for number, block in enumerate(stock.blocks):
        tokens = block(tokens)
        tokens = module(tokens) if number == 1 else tokens  # [2N, L, C]
    return stock.forward_head(stock.norm(tokens))


def normed_by_hand(stock: nn.Module, module: nn.Module, x: Tensor) -> Tensor:
    return stock.fc(module(stock.norm(stock.stem(x)).relu())[0])


def vit_by_hand(*places: int) -> Callable[[nn.Module, nn.Module, Tensor], Tensor]:
    def logits(stock: nn.Module, module: nn.Module, pixel_values: Tensor) -> Tensor:
        tokens = stock.vit.embeddings(pixel_values)
        for number, layer in enumerate(stock.vit.layers):
            tokens = layer(tokens, None)
            if number in places:
                tokens = module(tokens, 1 if number == places[0] else 2)  # [2N, L, C]
        return stock.classifier(stock.vit.layernorm(tokens)[:, 0])

    return logits


def bert_by_hand(stock: nn.Module, module: nn.Module, input_ids: Tensor) -> Tensor:
    return stock.classifier(module(stock.bert(input_ids).pooler_output)[0])


class ByHand(nn.Module):
    """The stock model and the module: in training 2N rows of logits, originals first."""

    def __init__(self, kind: str, stock: nn.Module, module: nn.Module) -> None:
        super().__init__()
        self.kind, self.stock, self.module = kind, stock, module
        self.start = {name: parameter.detach().clone() for name, parameter in self.named_parameters()}

    def forward(self, x: Tensor) -> Tensor:
        return KINDS[self.kind][2](self.stock, self.module, x)


# How a model is made, where BatchFormer goes in, and its parts by hand.
KINDS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], Callable[..., Tensor]]] = {
    "normed": (Normed, {"before": "fc"}, normed_by_hand),
    "vit": (vit, {"after": 1}, vit_by_hand(1)),
    "vit, two places": (vit, {"after": [0, 1]}, vit_by_hand(0, 1)),
    "timm": (timm_vit, {"after": 1}, timm_by_hand),
    "bert": (bert, {"before": "classifier"}, bert_by_hand),
}


def pair(kind: str, *, dropout: float = 0.0, **options: Any) -> tuple[nn.Module, nn.Module, ByHand]:
    """A model, what is attached to it, and the same by hand with the same weights."""
    make, where, _ = KINDS[kind]
    torch.manual_seed(0)
    model = make().train()
    stock = copy.deepcopy(model)
    attachment = bf.attach(model, **where, dropout=dropout, **options)
    return model, attachment, ByHand(kind, stock, copy.deepcopy(attachment.inserted[0])).train()


def samples(kind: str) -> tuple[Tensor, Tensor]:
    """Inputs and labels that can be learnt."""
    generator = torch.Generator().manual_seed(1)
    y = torch.randint(CLASSES, (SAMPLES,), generator=generator)
    if kind == "bert":
        x = torch.randint(CLASSES, 20, (SAMPLES, 6), generator=generator)
        x[:, 1] = y
        return x, y
    shape = (6,) if kind == "normed" else (3, 16, 16)
    x = torch.randn(SAMPLES, *shape, generator=generator)
    return x + y.view(-1, *(1 for _ in shape)) / 2, y


def inputs(kind: str, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """The arguments of a model that takes labels."""
    return {"input_ids" if kind == "bert" else "pixel_values": x, "labels": y}


def step_by_hand(by_hand: nn.Module, x: Tensor, y: Tensor, **cross_entropy: Any) -> Tensor:
    """The loss of both streams."""
    return F.cross_entropy(by_hand(x), y.repeat(2), **cross_entropy)


def of_model(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters and buffers of a model by hand, by the names that they have with attach()."""
    names = {"stock.": "", "module.": "batchformer.inserted.0."}
    return {
        new + name.removeprefix(old): value
        for name, value in state.items()
        for old, new in names.items()
        if name.startswith(old)
    }


def difference(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """The largest between tensors of the same names."""
    assert actual.keys() == expected.keys(), actual.keys() ^ expected.keys()
    pairs = [(actual[name].double(), expected[name].double()) for name in expected]
    return max((a - b).abs().max().item() for a, b in pairs)


def check(
    model: nn.Module, by_hand: nn.Module, losses: Iterable[Any], expected: Iterable[Any], bound: float = 0.0
) -> float:
    """The largest difference between two trainings, in losses and all that they have learnt.

    Each parameter has moved, or else they would agree on nothing.
    """
    losses, expected = torch.tensor([*map(float, losses)]), torch.tensor([*map(float, expected)])
    assert losses.shape == expected.shape
    for name, parameter in by_hand.named_parameters():
        assert not torch.equal(parameter, by_hand.start[name]), f"{name} was not trained"
    off = max(
        difference(model.state_dict(), of_model(by_hand.state_dict())),
        (losses - expected).abs().max().item(),
    )
    assert off <= bound, f"{off} above {bound}"
    return off
