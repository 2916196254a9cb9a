"""MoCo v2: before the projection heads of the query and the key encoder.

--repo: a checkout of facebookresearch/moco. Without it, the model of lightly's example.
"""

import copy
from collections.abc import Iterator
from pathlib import Path

import checkouts
import torch
import torchvision
from torch import nn
from trial import Trial, main

import batchformer as bf

QUERIES, KEYS = torch.randn(2, 4, 3, 64, 64)


def from_checkout(repo: Path) -> Iterator[Trial]:
    """Stock MoCo with its multi-layer head; queries of each stream with the keys of both, or of the same."""
    checkouts.use(repo)
    checkouts.on_a_cpu()
    checkouts.as_one_process()
    from moco.builder import MoCo

    criterion = nn.CrossEntropyLoss()
    for pairings in ("all", "aligned"):
        yield Trial(
            name=f"MoCo v2, ResNet-18, pairings: {pairings}",
            model=MoCo(checkouts.small_resnet(), K=16, mlp=True),
            attach=lambda model, pairings=pairings: bf.attach(model, "moco_v2", pairings=pairings),
            loss=lambda model, _: criterion(*model(QUERIES, KEYS)),
            evaluate=lambda model: model.encoder_q(QUERIES),
        )


class LightlyMoCo(nn.Module):
    """MoCo from lightly's parts."""

    def __init__(self) -> None:
        super().__init__()
        from lightly.models.modules import MoCoProjectionHead
        from lightly.models.utils import deactivate_requires_grad

        self.backbone = torchvision.models.resnet18()
        self.backbone.fc = nn.Identity()
        self.projection_head = MoCoProjectionHead(512, 512, 128)
        self.backbone_momentum = copy.deepcopy(self.backbone)
        self.projection_head_momentum = copy.deepcopy(self.projection_head)
        deactivate_requires_grad(self.backbone_momentum)
        deactivate_requires_grad(self.projection_head_momentum)

    def forward(self, x):
        return self.projection_head(self.backbone(x))

    def forward_momentum(self, x):
        return self.projection_head_momentum(self.backbone_momentum(x)).detach()


def from_packages() -> Iterator[Trial]:
    """lightly: the two aligned pairings, then all four."""
    from lightly.loss import NTXentLoss
    from lightly.models.utils import batch_shuffle, batch_unshuffle, update_momentum

    def step(pairings, criterion):
        def loss(model, _):
            update_momentum(model.backbone, model.backbone_momentum, m=0.99)
            update_momentum(model.projection_head, model.projection_head_momentum, m=0.99)
            queries = model(QUERIES)
            images, shuffle = batch_shuffle(KEYS)
            keys = model.forward_momentum(images)
            if len(keys) == len(KEYS):  # without BatchFormer
                return criterion(queries, batch_unshuffle(keys, shuffle))
            originals, relateds = (batch_unshuffle(stream, shuffle) for stream in keys.chunk(2))
            if pairings == "aligned":
                return criterion(queries, torch.cat([originals, relateds]))
            queries = [stream for stream in queries.chunk(2) for _ in range(2)]
            return criterion(torch.cat(queries), torch.cat([originals, relateds] * 2))

        return loss

    for pairings in ("aligned", "all"):
        yield Trial(
            name=f"lightly MoCo v2, ResNet-18, pairings: {pairings}",
            model=LightlyMoCo(),
            attach=lambda model: bf.attach(
                model,
                before=["projection_head", "projection_head_momentum"],
                optional=["projection_head_momentum"],  # which is not in the model's forward
                wrapped=False,  # the pairs are made below
            ),
            loss=step(pairings, NTXentLoss(memory_bank_size=(64, 128))),
            evaluate=lambda model: model(QUERIES),
        )


if __name__ == "__main__":
    main(__doc__, from_checkout, from_packages)
