"""FSDP2 (fully_shard) in two processes after attach(), beside one process by hand."""

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from trainers.pairs import check, difference, pair
from trainers.processes import RANKS, batches_of, inputs, sgd, together, train_by_hand

pytestmark = pytest.mark.filterwarnings("ignore")  # of the processes' start
WHOLE = StateDictOptions(full_state_dict=True)


def blocks_of(model):
    return {
        "ViTForImageClassification": lambda: model.vit.layers,
        "BertForSequenceClassification": lambda: model.bert.encoder.layer,
    }[type(model).__name__]()


def shard(model, how, **options):
    mesh = init_device_mesh("cpu", (RANKS,))
    if "blocks" in how:
        for block in blocks_of(model):
            fully_shard(block, mesh=mesh, **options)
    if "module" in how:
        fully_shard(model.batchformer.inserted[0], mesh=mesh, **options)
    fully_shard(model, mesh=mesh, **options)


RUNS = {
    "root": ("vit", "root", {}),
    "blocks and root": ("vit", "blocks", {}),
    "blocks, module and root": ("vit", "blocks module", {}),
    "two places": ("vit, two places", "blocks", {}),
    "two places, module": ("vit, two places", "blocks module", {}),
    "checkpointed": ("vit", "blocks checkpointed", {}),
    "checkpointed, two places": ("vit, two places", "blocks checkpointed", {}),
    "bert, root": ("bert", "root", {}),
    "bert, blocks": ("bert", "blocks module", {}),
    "kept gathered": ("vit", "blocks module", {"reshard_after_forward": False}),
}


def train(rank, names):
    found = {}
    for name in names:
        kind, how, options = RUNS[name]
        try:
            found[name] = _train(rank, kind, how, options)
        except Exception as error:
            raise RuntimeError(f"in {name}") from error
    return found


def _train(rank, kind, how, options):
    model, _, by_hand = pair(kind)
    if "checkpointed" in how:
        model.activation_checkpointing_enable({"use_reentrant": False})
    shard(model, how, **options)
    optimizer, losses = sgd(model), []
    for x, y in batches_of(rank, kind):
        loss = model(**inputs(kind, x, y)).loss
        loss.backward()
        losses.append(loss.detach())
        optimizer.step()
        optimizer.zero_grad()
    expected = train_by_hand(by_hand, sgd(by_hand), rank)
    whole, _, _ = pair(kind)
    whole.load_state_dict(get_model_state_dict(model, options=WHOLE))
    off = check(whole, by_hand, losses, expected, 2e-5)
    other, _, _ = pair(kind)
    nn.init.zeros_(other.batchformer.inserted[0].encoder.linear1.weight)
    shard(other, how, **options)
    set_model_state_dict(other, whole.state_dict(), options=WHOLE)
    assert difference(get_model_state_dict(other, options=WHOLE), whole.state_dict()) == 0
    return off


def test_shards_are_trained_as_one_process_does(tmp_path, figure):
    for name, off in together(train, tmp_path, list(RUNS)).items():
        figure(f"{name}: one process by hand", off)
