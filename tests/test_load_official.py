"""Checkpoints as the official forks write them: their names, written down here a second time."""

import argparse
import copy

import pytest
import timm
import torch
from torch import nn

import batchformer as bf
import stand_ins
from stand_ins import WIDTH


def official_encoder(seed: int = 0, width: int = WIDTH, layers: int = 1) -> dict[str, torch.Tensor]:
    """The state_dict of what the forks insert, with random values in all of it."""
    layer = nn.TransformerEncoderLayer(width, 4, width)
    encoder = layer if layers == 1 else nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
    torch.manual_seed(seed)
    return {name: torch.randn_like(tensor) for name, tensor in encoder.state_dict().items()}


def at(prefix: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def random_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """A state_dict for the stock model, with random values in it."""
    torch.manual_seed(9)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for tensor in (*other.parameters(), *other.buffers()):
            if tensor.is_floating_point():
                tensor.normal_()
    return other.state_dict()


def shift_projector(state, head, by=1):
    """MoCo v3: BatchFormer is the first layer of both projectors, so that the others move."""
    moved = {}
    for name, tensor in state.items():
        for encoder in ("base_encoder", "momentum_encoder"):
            start = f"{encoder}.{head}."
            if name.startswith(start):
                number, rest = name.removeprefix(start).split(".", 1)
                name = f"{start}{int(number) + by}.{rest}"
        moved[name] = tensor
    return moved


def shift_blocks(state, inserted):
    """DeiT: the module after block i is a block, so that those behind it move."""
    moved = {}
    for name, tensor in state.items():
        if name.startswith("blocks."):
            number, rest = name.removeprefix("blocks.").split(".", 1)
            number = int(number) + sum(after < int(number) for after in inserted)
            name = f"blocks.{number}.{rest}"
        moved[name] = tensor
    return moved


def vit():
    return timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=5, embed_dim=16, num_heads=2)


ENCODER = official_encoder()
CASES = {
    "RIDE": (
        stand_ins.Ride,
        {"preset": "ride"},
        lambda s: {"arch": "RIDE", "state_dict": at("module.", s | at("backbone.encoder_layers.", ENCODER))},
    ),
    "Balanced Softmax": (
        lambda: nn.DataParallel(stand_ins.DotProductClassifier()),
        {"preset": "balanced_softmax"},
        lambda s: {
            "state_dict_best": {"feat_model": {"module.x": torch.ones(1)}, "classifier": s, "bt": ENCODER}
        },
    ),
    "MoCo v3": (
        stand_ins.MoCoV3,
        {"preset": "moco_v3"},
        lambda s: {
            "epoch": 3,
            "state_dict": at(
                "module.",
                shift_projector(s, "fc")
                | at("base_encoder.fc.0.encoder_layers.", ENCODER)
                | at("momentum_encoder.fc.0.encoder_layers.", ENCODER)
                | at("encoder_global.encoder_layers.", ENCODER),
            ),
        },
    ),
    "SWAD": (
        stand_ins.SwadERM,
        {"preset": "swad"},
        lambda s: {
            "args": {},
            "model_dict": {
                name.replace("classifier.", "classifier.fc.").replace("network.1.", "network.1.fc."): tensor
                for name, tensor in s.items()
            }
            | at("classifier.encoder_layers.", ENCODER)
            | at("network.1.encoder_layers.", ENCODER),
        },
    ),
    "CGE": (
        stand_ins.GraphFull,
        {"preset": "cge"},
        lambda s: {"net": at("model.", s) | at("encoder_layers.", ENCODER), "AUC": 0.1},
    ),
    "DETR, shared": (
        stand_ins.Detr,
        {},
        lambda s: {"model": s | at("transformer.bf.", ENCODER), "args": argparse.Namespace()},
    ),
    "DETR, one of its own": (
        stand_ins.Detr,
        {},
        lambda s: {
            "model": s | at("transformer.bf.0.", ENCODER) | at("transformer.encoder.bf.0.", ENCODER),
        },
    ),
    "DETR panoptic": (
        stand_ins.DetrSegm,
        {"after": [0, 1, 2]},
        lambda s: {"model": s | at("detr.transformer.bf.", ENCODER)},
    ),
    "Deformable DETR": (
        stand_ins.DeformableDetr,
        {},
        lambda s: {"model": s | at("transformer.bf.", ENCODER)},
    ),
    "DeiT": (
        vit,
        {},
        lambda s: {"model": shift_blocks(s, [8]) | at("blocks.9.encoder_layers.", ENCODER), "epoch": 1},
    ),
    "DeiT, one module twice": (
        vit,
        {"after": [2, 8]},
        lambda s: {
            "model": shift_blocks(s, [2, 8])
            | at("blocks.3.encoder_layers.", ENCODER)
            | at("blocks.10.encoder_layers.", ENCODER)
        },
    ),
    "a bare state_dict": (stand_ins.Detr, {}, lambda s: s | at("transformer.bf.", ENCODER)),
}


@pytest.mark.parametrize(("make", "where", "checkpoint"), CASES.values(), ids=CASES)
def test_a_checkpoint_of_a_fork_is_loaded_module_and_all(make, where, checkpoint):
    model = make()
    state = random_state(model)
    attachment = bf.attach(model, **where)
    bf.load_official(model, checkpoint(state))
    assert all(torch.equal(tensor, state[name]) for name, tensor in attachment.stock_state_dict().items())
    loaded = attachment.inserted[0].encoder.state_dict()
    assert loaded.keys() == ENCODER.keys()
    assert all(torch.equal(tensor, ENCODER[name]) for name, tensor in loaded.items())


@pytest.mark.parametrize(("make", "where", "checkpoint"), CASES.values(), ids=CASES)
def test_a_stock_model_takes_the_rest_for_deployment(make, where, checkpoint):
    model = make()
    state = random_state(model)
    bf.load_official(model, checkpoint(state))
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_modules_of_their_own_are_loaded_in_the_order_of_their_numbers():
    model, encoders = stand_ins.DeformableDetr(), [official_encoder(1), official_encoder(2)]
    state = random_state(model)
    attachment = bf.attach(model, after=[0, 2], shared=False)
    both = at("transformer.bf.2.", encoders[1]) | at("transformer.bf.0.", encoders[0])
    copies = {name.replace("transformer.bf", "transformer.encoder.bf"): t for name, t in both.items()}
    bf.load_official(model, {"model": state | both | copies})
    for module, encoder in zip(attachment.inserted, encoders, strict=True):
        assert all(torch.equal(tensor, encoder[name]) for name, tensor in module.encoder.state_dict().items())


def test_a_stack_of_layers_is_loaded():
    model, encoder = stand_ins.DeformableDetr(), official_encoder(layers=2)
    state = random_state(model)
    attachment = bf.attach(model, num_layers=2)
    bf.load_official(model, {"model": state | at("transformer.bf.", encoder)})
    loaded = attachment.inserted[0].encoder.state_dict()
    assert all(torch.equal(tensor, encoder[name]) for name, tensor in loaded.items())


BROKEN = {
    "expected a mapping": lambda s: [s],
    "1 missing ['query_embed.weight']": lambda s: {
        "model": {n: t for n, t in s.items() if n != "query_embed.weight"} | at("transformer.bf.", ENCODER)
    },
    "1 unknown ['more']": lambda s: s | at("transformer.bf.", ENCODER) | {"more": torch.ones(1)},
    "expected shape [3, 16] of query_embed.weight, got [4, 16]": lambda s: (
        s | at("transformer.bf.", ENCODER) | {"query_embed.weight": torch.ones(4, 16)}
    ),
    "expected 1 module of BatchFormer, got 0": lambda s: s,
    "expected 1 module of BatchFormer, got 2; attach with shared=False": lambda s: (
        s | at("transformer.bf.0.", official_encoder(1)) | at("transformer.bf.1.", official_encoder(2))
    ),
    "of inserted.0.encoder.self_attn.in_proj_weight, got [96, 32]": lambda s: (
        s | at("transformer.bf.", official_encoder(width=32))
    ),
}


@pytest.mark.parametrize(("sentence", "checkpoint"), BROKEN.items(), ids=BROKEN)
def test_a_checkpoint_that_does_not_fit_gets_a_sentence_and_changes_nothing(sentence, checkpoint):
    model = stand_ins.Detr()
    bf.attach(model)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises((TypeError, ValueError)) as caught:
        bf.load_official(model, checkpoint(random_state(stand_ins.Detr())))
    assert sentence in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
