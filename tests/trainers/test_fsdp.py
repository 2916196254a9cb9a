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

from trainers.pairs import check, difference, inputs, pair
from trainers.processes import RANKS, batches_of, sgd, together, train_by_hand

pytestmark = pytest.mark.filterwarnings("ignore", "error:batchformer")  # of the processes' start
WHOLE = StateDictOptions(full_state_dict=True)


LOW = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)


def blocks_of(model):
    paths = {
        "ViTForImageClassification": "vit.layers",
        "BertForSequenceClassification": "bert.encoder.layer",
        "VisionTransformer": "blocks",
    }
    return model.get_submodule(paths[type(model).__name__])


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
    "checkpointed, reentrant": ("vit", "blocks checkpointed reentrant", {}),
    "checkpointed, two places": ("vit, two places", "blocks checkpointed", {}),
    "bert, root": ("bert", "root", {}),
    "bert, blocks": ("bert", "blocks module", {}),
    "kept gathered": ("vit", "blocks module", {"reshard_after_forward": False}),
    "all given back": ("vit, two places", "blocks module", {"reshard_after_forward": True}),
    "criterion, both": ("timm", "blocks", {}),
    "criterion, originals, root": ("timm", "root originals", {}),
    "criterion, originals": ("timm", "blocks module originals", {}),
    "accumulated": ("vit", "blocks accumulated", {}),
    "evaluated between the steps": ("vit", "blocks evaluated", {}),
    "compiled": ("vit", "blocks module compiled", {}),
    "compiled blocks": ("vit", "blocks module each_compiled", {}),
    "compiled blocks, two places": ("vit, two places", "blocks each_compiled", {}),
    "bf16": ("vit", "blocks module", {"mp_policy": LOW}),
    "bf16, root": ("bert", "root", {"mp_policy": LOW}),
    "bf16, checkpointed": ("vit, two places", "blocks checkpointed", {"mp_policy": LOW}),
}


def train(rank, names):
    found = {}
    for name in names:
        try:
            found[name] = _train(rank, *RUNS[name])
        except Exception as error:
            raise RuntimeError(f"in {name}") from error
    return found


def _train(rank, kind, how, options):
    accumulate = 2 if "accumulated" in how else 1
    model, attachment, by_hand = pair(kind, **({"outputs": "originals"} if "originals" in how else {}))
    criterion = attachment.wrap(nn.CrossEntropyLoss()) if kind == "timm" else None
    if "checkpointed" in how:
        model.activation_checkpointing_enable({"use_reentrant": "reentrant" in how})
    torch._dynamo.reset()
    for block in blocks_of(model) if "each_compiled" in how else ():
        block.compile(backend="aot_eager")
    shard(model, how, **options)
    if "compiled" in how.split():
        model.compile(backend="aot_eager")
    optimizer, losses = sgd(model), []
    for step, (x, y) in enumerate(batches_of(rank, kind)):
        last = (step + 1) % accumulate == 0
        model.set_requires_gradient_sync(last)
        loss = criterion(model(x), y) if criterion else model(**inputs(kind, x, y)).loss
        loss.backward()
        losses.append(loss.detach())
        if last:
            nn.utils.clip_grad_norm_(model.parameters(), 1e3)
            optimizer.step()
            optimizer.zero_grad()
        if "evaluated" in how:
            with torch.no_grad():
                assert len(model.eval()(**inputs(kind, x, y)).logits) == len(y)
            model.train()
    low = "mp_policy" in options
    expected = train_by_hand(by_hand, sgd(by_hand), rank, accumulate=accumulate, low=low)
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
