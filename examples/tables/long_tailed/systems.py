"""The networks and losses of three systems of long-tailed recognition, small enough for letters."""

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.tables.network import WIDTH, ConvNet, convolution, pooling

Loss = Callable[[Tensor, Tensor], Tensor]  # of logits and labels

DIVERSITY = 0.2  # of RIDE's experts
MOMENTUM = 0.99  # of PaCo's second encoder
TEMPERATURE = 0.2
SAMPLES = 0.05  # the weight of a positive sample relative to that of the class's centre


def balanced_softmax(log_prior: Tensor) -> Loss:
    """Cross-entropy of logits `[N, K]` shifted by the log of the class prior `[K]`, in training only.

    Labels are `[N]`, or probabilities `[N, K]`.

    Source: Ren et al., "Balanced meta-softmax for long-tailed visual recognition" (NeurIPS 2020), equation 4.
    """
    return lambda logits, labels: F.cross_entropy(logits + log_prior, labels)


class Experts(nn.Module):
    """Logits `[N, 3, K]` in training, their mean `[N, K]` in evaluation: three experts on one trunk.

    Source: Wang et al., "Long-tailed recognition by routing diverse distribution-aware experts" (ICLR 2021);
    without the router. One BatchFormer module goes in before the classifiers of all experts.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        layers = ConvNet(classes).features
        self.trunk = layers[: -len(convolution(1, 1)) - len(pooling())]  # to the third convolution
        self.experts = nn.ModuleList(
            nn.Sequential(*convolution(WIDTH // 2, WIDTH), *pooling()) for _ in range(3)
        )
        self.classifiers = nn.ModuleList(nn.Linear(WIDTH, classes) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.trunk(x)
        pairs = zip(self.experts, self.classifiers, strict=True)
        logits = torch.stack([classifier(expert(x)) for expert, classifier in pairs], 1)  # [N, 3, K]
        return logits if self.training else logits.mean(1)


def of_experts(log_prior: Tensor) -> Loss:
    """The sum over the experts of Balanced Softmax, minus the divergence of each from their mean.

    Source: Wang et al. (ICLR 2021), equation 3; its loss of a single expert, LDAM, is Balanced Softmax here.
    """

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        shifted = logits + log_prior  # [N, 3, K]
        mean = shifted.detach().mean(1).softmax(-1)  # [N, K]
        losses = []
        for expert in shifted.unbind(1):
            distance = F.kl_div(expert.log_softmax(-1), mean, reduction="batchmean")
            losses.append(F.cross_entropy(expert, labels) - DIVERSITY * distance)
        return torch.stack(losses).sum()

    return loss


class PaCo(nn.Module):
    """Centre logits `[N, K]` and an embedding `[N, 64]` of a view; a second encoder embeds another view.

    The second encoder is a moving average of the first. BatchFormer goes in after both, as one module.

    Source: Cui et al., "Parametric contrastive learning" (ICCV 2021).
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        network = ConvNet(classes)
        self.features, self.classifier = network.features, network.classifier
        self.projection = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 64))
        self.key_features = copy.deepcopy(self.features).requires_grad_(False)
        self.key_projection = copy.deepcopy(self.projection).requires_grad_(False)

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        features = self.features(x)  # [N, C]
        logits = self.classifier(features)  # [N, K]
        if other is None:
            return logits
        with torch.no_grad():
            keys = self.key_projection(self.key_features(other))
        return logits, self.projection(features), keys

    @torch.no_grad()
    def follow(self) -> None:
        """Move the second encoder a little towards the first."""
        pairs = ((self.features, self.key_features), (self.projection, self.key_projection))
        for first, second in pairs:
            for parameter, moving in zip(first.parameters(), second.parameters(), strict=True):
                moving.lerp_(parameter, 1 - MOMENTUM)


def parametric_contrast(log_prior: Tensor) -> Callable[..., Tensor]:
    """PaCo's loss: the centre of the class and the keys of its samples are positives, all else negatives.

    The returned loss takes logits `[N, K]`, queries and keys `[N, D]`, labels `[N]`, earlier keys `[M, D]`
    and their labels `[M]`, -1 where there is none yet.

    Source: Cui et al., "Parametric contrastive learning" (ICCV 2021), equation 5.
    """

    def loss(
        logits: Tensor, queries: Tensor, keys: Tensor, labels: Tensor, queue: Tensor, queue_labels: Tensor
    ) -> Tensor:
        keys = F.normalize(torch.cat([keys, queue]))  # [N + M, D]
        similarities = F.normalize(queries) @ keys.T / TEMPERATURE  # [N, N + M]
        same = labels[:, None] == torch.cat([labels, queue_labels])  # [N, N + M]
        weights = torch.cat([F.one_hot(labels, logits.shape[1]), SAMPLES * same], 1)  # [N, K + N + M]
        scores = torch.cat([logits + log_prior, similarities], 1)
        return -(weights * scores.log_softmax(1)).sum(1).div(weights.sum(1)).mean()

    return loss
