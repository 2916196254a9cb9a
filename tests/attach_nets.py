"""Small models for the tests of attach(), and both streams of theirs by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import batchformer as bf
from attach_oracle import related

N, WIDTH, CLASSES = 4, 16, 5
X, Y = torch.randn(N, 6), torch.tensor([0, 1, 2, 1])
TOKENS = torch.randn(N, 3, WIDTH)
BOTH_MODES = pytest.mark.parametrize("outputs", ["both", "originals"])
BOTH_KINDS = pytest.mark.parametrize(
    "make", [nn.CrossEntropyLoss, lambda: F.cross_entropy], ids=["module", "function"]
)


class Net(nn.Module):
    def __init__(self, classes=CLASSES):
        super().__init__()
        self.stem, self.fc = nn.Linear(6, WIDTH), nn.Linear(WIDTH, classes)

    def forward(self, x):
        return self.fc(self.stem(x).relu())


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Linear(6, WIDTH), nn.BatchNorm1d(WIDTH)
        self.fc = nn.Linear(WIDTH, CLASSES)

    def forward(self, x):
        return self.fc(self.norm(self.stem(x)))


class Blocks(nn.Module):
    """Blocks over [N, L, C]; those in `skipped` do not run."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)) for _ in range(3)
        )
        self.fc = nn.Linear(WIDTH, CLASSES)
        self.skipped, self.checkpointed = (), False

    def forward(self, x):
        for number, block in enumerate(self.blocks):
            if number not in self.skipped:
                x = checkpoint(block, x, use_reentrant=False) if self.checkpointed else block(x)
        return self.fc(x.mean(1))


def plain(layer, x):
    """What a linear layer makes of x, without its hooks."""
    return F.linear(x, layer.weight, layer.bias)


def streams(model, attachment, x):
    """The logits of a Net for the originals and for the related rows."""
    features = plain(model.stem, x).relu()
    return [plain(model.fc, each) for each in (features, related(attachment, features))]


def attached(model=None, **options):
    """A model and what is attached to it, before the classifier unless it is said where."""
    model = Net() if model is None else model
    where = {} if options.keys() & {"before", "after"} else {"before": "fc"}
    return model, bf.attach(model, dropout=0.0, **where, **options)


def nll(logits, labels):
    """Takes rows by the labels, and does not see that there are more."""
    return -F.log_softmax(logits, 1).gather(1, labels[:, None]).mean()
