"""The ConvNet of the tables on letters."""

from torch import Tensor, nn

WIDTH = 128  # of its features


class ConvNet(nn.Module):
    """Logits `[N, K]` of images `[N, 1, 24, 24]`: four convolutions, a mean, a norm and a classifier.

    BatchFormer goes in before "classifier". The norm gives it features of one scale; the batch norms before
    the pooling do not.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.features = features()
        self.classifier = nn.Linear(WIDTH, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))


def features() -> nn.Sequential:
    """The part of the ConvNet from images `[N, 1, 24, 24]` to features `[N, 128]`."""
    return nn.Sequential(
        *convolution(1, 16, stride=2),  # 24 -> 12 pixels
        *convolution(16, 32),
        nn.MaxPool2d(2),  # 6
        *convolution(32, 64),
        nn.MaxPool2d(2),  # 3
        *convolution(64, WIDTH),
        *pooling(),
    )


def convolution(narrow: int, wide: int, stride: int = 1) -> list[nn.Module]:
    """A convolution with its batch norm and its ReLU."""
    return [nn.Conv2d(narrow, wide, 3, stride, padding=1, bias=False), nn.BatchNorm2d(wide), nn.ReLU()]


def pooling() -> list[nn.Module]:
    """From a map `[N, 128, H, W]` to features `[N, 128]`."""
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(WIDTH)]
