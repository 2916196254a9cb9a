"""A CIFAR-LT style script: ResNet-18, LDAM with deferred reweighting, an accuracy meter, and BatchFormer.

Two lines add BatchFormer; they are marked. The images are scikit-learn's digits, made long-tailed:

    python examples/ldam.py
    python examples/ldam.py --stock  # without the two lines
"""

import argparse

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torchvision.models import resnet18

import batchformer as bf

CLASSES, BATCH_SIZE = 10, 64


def long_tailed_digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images `[N, 1, 8, 8]` and labels `[N]` of a training set (120 to 3 a class) and of a test set."""
    images, labels = map(torch.from_numpy, load_digits(return_X_y=True))
    images = images.float().view(-1, 1, 8, 8) / 16
    train, test = [], []
    for label in range(CLASSES):
        of_class = (labels == label).nonzero().squeeze(1)
        test.append(of_class[:50])
        train.append(of_class[50 : 50 + round(120 * 40 ** (-label / (CLASSES - 1)))])
    train, test = torch.cat(train), torch.cat(test)
    return images[train], labels[train], images[test], labels[test]


class NormedLinear(nn.Linear):
    """The cosine of features `[N, C]` and the classes' weights, `[N, K]`."""

    def forward(self, features: Tensor) -> Tensor:
        """As the classifier of LDAM."""
        return F.linear(F.normalize(features), F.normalize(self.weight))


class LDAMLoss(nn.Module):
    """Cross-entropy with a margin for each class; Cao et al. (NeurIPS 2019), equation 13."""

    def __init__(self, counts: Tensor, largest_margin: float = 0.5, scale: float = 30.0) -> None:
        super().__init__()
        margins = counts**-0.25
        self.margins = margins * (largest_margin / margins.max())  # [K]
        self.weight: Tensor | None = None
        self.scale = scale

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The mean over logits `[N, K]` and labels `[N]`."""
        margins = F.one_hot(labels, CLASSES) * self.margins  # [N, K]
        return F.cross_entropy(self.scale * (logits - margins), labels, self.weight)


def main(epochs: int, with_batchformer: bool) -> None:
    """Train and print the accuracy of the batches seen and of the test set, epoch by epoch."""
    torch.manual_seed(0)
    images, labels, test_images, test_labels = long_tailed_digits()
    counts = labels.bincount()
    model = resnet18()
    model.conv1, model.maxpool = nn.Conv2d(1, 64, 3, padding=1, bias=False), nn.Identity()
    model.fc = NormedLinear(512, CLASSES, bias=False)
    criterion = LDAMLoss(counts)
    if with_batchformer:
        attachment = bf.attach(model, before="fc", outputs="originals", dropout=0.1)  # <- one
        criterion = attachment.wrap(criterion)  # <- two
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for epoch in range(epochs):
        if epoch == epochs * 4 // 5:  # by the effective number of samples, Cui et al. (CVPR 2019)
            weight = (1 - 0.99) / (1 - 0.99**counts)
            criterion.weight = weight / weight.mean()
        model.train()
        correct = 0
        for batch in torch.randperm(len(labels)).split(BATCH_SIZE):
            logits = model(images[batch])  # [N, K]
            loss = criterion(logits, labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            correct += int((logits.argmax(1) == labels[batch]).sum())  # the meter
        schedule.step()
        model.eval()
        with torch.no_grad():
            hits = (model(test_images).argmax(1) == test_labels).float()  # [500]
        rare = hits[counts[test_labels] <= counts.median()].mean()
        print(
            f"epoch {epoch + 1:2d}: loss {loss:.3f}, training {correct / len(labels):.1%}, "
            f"test {hits.mean():.1%}, its rarer half {rare:.1%}"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="ResNet-18 with LDAM on long-tailed digits.")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--stock", action="store_true", help="without BatchFormer")
    options = parser.parse_args()
    main(options.epochs, not options.stock)
