"""DistributedDataParallel in two processes, in the modes that people set, beside one process by hand."""

import contextlib
import copy

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from trainers.pairs import check, inputs, pair
from trainers.processes import batches_of, sgd, together, train_by_hand

pytestmark = pytest.mark.filterwarnings("ignore", "error:batchformer")  # of the processes' start
MODES = {
    "plain": {},
    "unused": {"find_unused_parameters": True},
    "views": {"gradient_as_bucket_view": True},
    "static": {"static_graph": True},
    "static, unused, views": {
        "static_graph": True,
        "find_unused_parameters": True,
        "gradient_as_bucket_view": True,
    },
    "no broadcast": {"broadcast_buffers": False},
    "tiny buckets": {"bucket_cap_mb": 0.001},
    "no_sync": {},
    "compiled outside": {},
    "compiled inside": {},
}
RUNS = {
    "normed, both": ("normed", {}),
    "normed, originals": ("normed", {"outputs": "originals"}),
    "vit": ("vit", {}),
    "vit, checkpointed": ("vit", {}),
    "bert": ("bert", {}),
}


def train(rank, name, modes):
    """The largest difference of all modes from the loop by hand."""
    return {mode: _train(rank, name, mode) for mode in modes}


def _train(rank, name, mode):
    kind, options = RUNS[name]
    model, attachment, by_hand = pair(kind, **options)
    if "checkpointed" in name:
        model.activation_checkpointing_enable({"use_reentrant": False})
    criterion = attachment.wrap(nn.CrossEntropyLoss()) if kind == "normed" else None
    torch._dynamo.reset()
    inner = torch.compile(model, backend="aot_eager") if mode == "compiled inside" else model
    parallel = DistributedDataParallel(inner, **MODES[mode])
    outer = torch.compile(parallel, backend="aot_eager") if mode == "compiled outside" else parallel
    optimizer, losses = sgd(model), []
    accumulate = 2 if mode == "no_sync" else 1
    for step, (x, y) in enumerate(batches_of(rank, kind)):
        last = (step + 1) % accumulate == 0
        with contextlib.nullcontext() if last else parallel.no_sync():
            loss = criterion(outer(x), y) if criterion else outer(**inputs(kind, x, y)).loss
            loss.backward()
        losses.append(loss.detach())
        if last:
            optimizer.step()
            optimizer.zero_grad()
    own = mode == "no broadcast"
    expected = train_by_hand(by_hand, sgd(by_hand), rank, accumulate=accumulate, own_buffers=own)
    if not own and rank:  # buffers are broadcast when the next forward begins
        model, by_hand = copy.deepcopy(model), copy.deepcopy(by_hand)
        for each in (*model.buffers(), *by_hand.buffers()):
            each.zero_()
    return check(model, by_hand, losses, expected, 2e-5)


@pytest.mark.parametrize("name", RUNS)
def test_gradients_are_the_means_over_the_processes(name, tmp_path, figure):
    modes = [mode for mode in MODES if "compiled" not in mode or "checkpointed" not in name]
    for mode, off in together(train, tmp_path, name, modes).items():
        figure(f"{mode}: one process by hand", off)


@pytest.mark.skip(reason="nn.SyncBatchNorm runs on CUDA alone")
def test_synchronised_batch_norms():
    pass
