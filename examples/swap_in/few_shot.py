"""A contrastive and a classification branch, for few-shot and generalized zero-shot recognition.

There is no official code; this is the general recipe: on the feature that both branches share.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from trial import Trial, main

import batchformer as bf

FEATURES = torch.randn(6, 64)
IMAGES, LABELS = torch.randn(6, 3, 32, 32), torch.tensor([0, 1, 2, 1, 0, 2])


class TwoBranches(nn.Module):
    """A projection for the contrastive loss and a classifier, on one feature."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = torchvision.models.resnet18()
        self.backbone.fc = nn.Identity()
        self.projection = nn.Sequential(nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 32))
        self.classifier = nn.Linear(512, 3)

    def forward(self, x):
        features = self.backbone(x)
        return F.normalize(self.projection(features), dim=1), self.classifier(features)


def supervised_contrastive(embeddings, labels, temperature=0.1):
    """Khosla et al., "Supervised contrastive learning" (NeurIPS 2020), equation 2.

    The two rows of an image have one label, so that they are positives of each other.
    """
    apart = ~torch.eye(len(labels), dtype=torch.bool)
    similarities = embeddings @ embeddings.T / temperature
    log_probabilities = similarities - torch.logsumexp(similarities.where(apart, -torch.inf), 1, keepdim=True)
    positives = (labels[:, None] == labels) & apart
    return -(log_probabilities * positives).sum(1).div(positives.sum(1)).mean()


def both_losses(outputs, labels):
    """What the script minimises."""
    embeddings, logits = outputs
    return supervised_contrastive(embeddings, labels) + F.cross_entropy(logits, labels)


class EmbeddingNetwork(nn.Module):
    """Image features to an embedding, that to a projection: contrastive embedding for zero-shot recognition.

    The embedding is scored with the attributes of each class, seen and unseen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Linear(64, 48)
        self.projection = nn.Linear(48, 32)
        self.attributes = nn.Linear(16, 48, bias=False)
        self.register_buffer("classes", torch.randn(5, 16))

    def forward(self, features):
        embedding = self.embedding(features).relu()
        scores = embedding @ self.attributes(self.classes).T
        return F.normalize(self.projection(embedding), dim=1), scores


def from_packages() -> Iterator[Trial]:
    """After the backbone, whose output is a feature vector: layout "NC"; and before the embedding."""
    yield Trial(
        name="ResNet-18 with a contrastive branch and a classifier",
        model=TwoBranches(),
        attach=lambda model: bf.attach(model, after="backbone", layout="NC"),
        criterion=both_losses,
        loss=lambda model, criterion: criterion(model(IMAGES), LABELS),
        evaluate=lambda model: model(IMAGES)[1],
    )
    yield Trial(
        name="generalized zero-shot: an embedding for a contrastive loss and for class attributes",
        model=EmbeddingNetwork(),
        attach=lambda model: bf.attach(model, before="embedding"),
        criterion=both_losses,
        loss=lambda model, criterion: criterion(model(FEATURES), LABELS),
        evaluate=lambda model: model(FEATURES)[1],
    )


if __name__ == "__main__":
    main(__doc__, packages=from_packages)
