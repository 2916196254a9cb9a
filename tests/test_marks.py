"""The registry of marks on storages: it keeps nothing, and costs the same however much a script keeps."""

import torch
from torch import nn

import batchformer as bf
from batchformer import marks

X = torch.randn(4, 8)


def evaluated():
    model = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 5))
    bf.attach(model, before="1")
    return model.eval()


@torch.no_grad()
def test_what_a_script_keeps_of_an_evaluation_is_not_searched_at_every_forward(monkeypatch):
    model, asked = evaluated(), []
    expired = marks.StorageWeakRef.expired
    monkeypatch.setattr(marks.StorageWeakRef, "expired", lambda self: asked.append(1) or expired(self))
    kept = [model(X) for _ in range(1000)]
    assert len(marks._STORAGES) >= len(kept)
    assert len(asked) < 3 * len(kept)


@torch.no_grad()
def test_what_a_script_does_not_keep_is_forgotten():
    model = evaluated()
    kept = [model(X) for _ in range(1000)]
    kept.clear()
    for _ in range(3000):
        model(X)
    assert len(marks._STORAGES) < 200
