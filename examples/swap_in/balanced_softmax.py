"""Balanced Softmax: between the feature model and the classifier, outside of nn.DataParallel.

--repo: a checkout of jiawei-ren/BalancedMetaSoftmax-Classification.
"""

from collections.abc import Iterator
from pathlib import Path

import checkouts
import torch
from torch import nn
from trial import Trial, main

import batchformer as bf

IMAGES, LABELS = torch.randn(6, 3, 224, 224), torch.tensor([0, 1, 2, 1, 3, 0])
FREQUENCIES = torch.tensor([50, 20, 10, 5, 2])


def from_checkout(repo: Path) -> Iterator[Trial]:
    """The stock networks and loss, in what run_networks.py does with a batch; then as published."""
    checkouts.use(repo)
    from loss.BalancedSoftmaxLoss import BalancedSoftmax
    from models import DotProductClassifier, ResNet10Feature

    criterion = BalancedSoftmax.__new__(BalancedSoftmax)  # its constructor reads the frequencies from a file
    nn.Module.__init__(criterion)
    criterion.sample_per_class = FREQUENCIES

    def step(networks, criterion):
        features, _ = networks["feat_model"](IMAGES)
        logits, _ = networks["classifier"](features, None)
        loss = criterion(logits, LABELS)
        _, predictions = torch.max(logits, 1)
        assert (predictions == LABELS).shape == LABELS.shape  # a meter
        return loss

    for as_published in (False, True):
        networks = nn.ModuleDict(
            {
                "feat_model": nn.DataParallel(ResNet10Feature.create_model()),
                "classifier": nn.DataParallel(DotProductClassifier.create_model(512, 5)),
            }
        )
        yield Trial(
            name=f"Balanced Softmax, ResNet-10{', as published' if as_published else ''}",
            model=networks,
            attach=lambda networks, as_published=as_published: bf.attach(
                networks["classifier"], "balanced_softmax", as_published=as_published
            ),
            criterion=criterion,
            loss=step,
            evaluate=lambda networks: networks["classifier"](networks["feat_model"](IMAGES)[0])[0],
        )


if __name__ == "__main__":
    main(__doc__, from_checkout)
