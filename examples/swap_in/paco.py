"""PaCo: on the pooled features of the query and the key encoder.

--repo: a checkout of dvlab-research/Parametric-Contrastive-Learning.
"""

from collections.abc import Iterator
from pathlib import Path

import checkouts
import torch
from trial import Trial, main

import batchformer as bf

QUERIES, KEYS = torch.randn(2, 4, 3, 64, 64)
LABELS = torch.tensor([0, 1, 2, 1])


def from_checkout(repo: Path) -> Iterator[Trial]:
    """Stock PaCo in what paco_lt.py does with a batch."""
    checkouts.use(repo / "PaCo" / "LT")
    checkouts.on_a_cpu()
    checkouts.as_one_process()
    from losses import PaCoLoss
    from moco.builder import MoCo
    from models import resnet_imagenet

    criterion = PaCoLoss(alpha=0.05, beta=1.0, gamma=1.0, supt=1.0, temperature=0.2, K=16, num_classes=5)
    criterion.weight = torch.tensor([[0.5, 0.2, 0.1, 0.1, 0.1]])  # cal_weight_for_classes() wants CUDA

    def step(model, criterion):
        features, labels, logits = model(im_q=QUERIES, im_k=KEYS, labels=LABELS)
        loss = criterion(features, labels, logits)
        assert (logits.argmax(1) == LABELS).shape == LABELS.shape  # a meter
        return loss

    yield Trial(
        name="PaCo, ResNet-18",
        model=MoCo(resnet_imagenet.resnet18, K=16, mlp=True, feat_dim=512, num_classes=5),
        attach=lambda model: bf.attach(model, "paco"),
        criterion=criterion,
        loss=step,
        evaluate=lambda model: model(QUERIES),
    )


if __name__ == "__main__":
    main(__doc__, from_checkout)
