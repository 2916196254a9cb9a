"""MoCo v2 and v3 from lightly's heads, loss and momentum update, around the ConvNet's features."""

import copy
from typing import ClassVar

import torch
import torch.nn.functional as F
from lightly.loss import NTXentLoss
from lightly.models.modules import MoCoProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.utils.scheduler import cosine_schedule
from torch import Tensor, nn

from examples.tables.network import WIDTH, features

EMBEDDING = 64


class MoCo(nn.Module):
    """Queries `[N, E]` of images `[N, 1, 24, 24]`, or keys from an encoder that is a moving average.

    BatchFormer goes in at `places`, before both projectors. Queries and keys come from separate
    forwards, so that their streams can be paired in four ways.
    """

    options: ClassVar[tuple[str, ...]] = ("momentum", "temperature")
    places: ClassVar[tuple[str, ...]] = ("projector", "projector_of_keys")

    def __init__(self, projector: nn.Module, criterion: nn.Module, momentum: float) -> None:
        super().__init__()
        self.backbone = features().to(memory_format=torch.channels_last)
        self.projector = projector
        self.predictor: nn.Module = nn.Identity()
        self.backbone_of_keys = copy.deepcopy(self.backbone)
        self.projector_of_keys = copy.deepcopy(self.projector)
        deactivate_requires_grad(self.backbone_of_keys)
        deactivate_requires_grad(self.projector_of_keys)
        self.criterion = criterion
        self.momentum = momentum

    def forward(self, x: Tensor, keys: bool = False) -> Tensor:
        """Queries, or keys without a gradient."""
        if not keys:
            return self.predictor(self.projector(self.backbone(x)))
        with torch.no_grad():
            return self.projector_of_keys(self.backbone_of_keys(x))

    def move_keys(self, progress: float) -> None:
        """Update the encoder of the keys; `progress` is the fraction of the steps that are done."""
        momentum = self.momentum_at(progress)
        update_momentum(self.backbone, self.backbone_of_keys, momentum)
        update_momentum(self.projector, self.projector_of_keys, momentum)

    def momentum_at(self, progress: float) -> float:
        """The momentum, constant over the training."""
        del progress
        return self.momentum


class MoCoV2(MoCo):
    """One view gives queries, the other keys; the negatives are the originals' keys of earlier steps.

    Source: Chen et al., "Improved baselines with momentum contrastive learning" (arXiv 2003.04297).
    """

    options: ClassVar[tuple[str, ...]] = (*MoCo.options, "queue")

    def __init__(self, momentum: float, temperature: float, queue: int) -> None:
        projector = MoCoProjectionHead(WIDTH, WIDTH, EMBEDDING)
        super().__init__(projector, NTXentLoss(temperature, memory_bank_size=(queue, EMBEDDING)), momentum)

    def loss(self, first: Tensor, second: Tensor) -> Tensor:
        """The loss of two views `[N, 1, 24, 24]`."""
        return self.criterion(self(first), self(second, keys=True))


class MoCoV3(MoCo):
    """Each view predicts the other among those of the batch, through a predictor.

    The momentum rises to 1 by a cosine, as in the official code.

    Source: Chen et al., "An empirical study of training self-supervised vision transformers" (ICCV 2021).
    """

    def __init__(self, momentum: float, temperature: float) -> None:
        projector = MoCoProjectionHead(WIDTH, WIDTH, EMBEDDING, num_layers=3, batch_norm=True)
        super().__init__(projector, InBatch(temperature), momentum)
        self.predictor = MoCoProjectionHead(EMBEDDING, WIDTH, EMBEDDING, num_layers=2, batch_norm=True)

    def loss(self, first: Tensor, second: Tensor) -> Tensor:
        """The loss of two views `[N, 1, 24, 24]`, in both directions."""
        of_first = self.criterion(self(first), self(second, keys=True))
        return of_first + self.criterion(self(second), self(first, keys=True))

    def momentum_at(self, progress: float) -> float:
        """The momentum, which rises from `momentum` to 1."""
        return cosine_schedule(round(1000 * progress), 1001, self.momentum, 1.0)


class InBatch(nn.Module):
    """InfoNCE of queries `[N, E]` with keys `[N, E]`: the key of the same row against all others.

    Source: algorithm 1 of MoCo v3.
    """

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Cross entropy over the keys, times twice the temperature as in the source."""
        similarity = F.normalize(queries) @ F.normalize(keys).T  # [N, N]
        rows = torch.arange(len(queries), device=queries.device)
        return F.cross_entropy(similarity / self.temperature, rows) * (2 * self.temperature)
