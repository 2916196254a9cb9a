"""torchvision's ResNet-18, thin enough for letters."""

from typing import Any

from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

CHANNELS = (64, 512)  # of torchvision's, after its first and its last layer
THINNER = 4


class ThinResNet(ResNet):
    """Logits `[N, K]` of images `[N, 1, 24, 24]`: a ResNet-18 with a quarter of the channels."""

    def __init__(self, classes: int) -> None:
        first, last = (channels // THINNER for channels in CHANNELS)
        super().__init__(BasicBlock, [2, 2, 2, 2])
        self.conv1 = nn.Conv2d(1, first, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.fc = nn.Linear(last, classes)

    def _make_layer(self, block: Any, planes: int, *arguments: Any, **options: Any) -> nn.Sequential:
        if planes == CHANNELS[0]:
            self.inplanes = planes // THINNER  # what comes from conv1
        return super()._make_layer(block, planes // THINNER, *arguments, **options)
