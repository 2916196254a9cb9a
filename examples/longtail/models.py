"""The three arms: features, BatchFormer or nothing in the middle, one linear classifier."""

import itertools
from collections.abc import Callable

import torch
import torchvision
from torch import Tensor, nn

import batchformer as bf

BASELINE = "baseline"
WITH_BATCHFORMER = "+ BatchFormer"
CONTROL = "control (self only)"
ATTEND = {BASELINE: None, WITH_BATCHFORMER: "batch", CONTROL: "alone"}
ARMS = tuple(ATTEND)

MakeFeatures = Callable[[], tuple[nn.Module, int]]  # a backbone [N, ...] -> [N, C], and its C


class Recogniser(nn.Module):
    """Logits `[N, K]` of N images, and their labels; with BatchFormer in training `[2N, K]`, both streams."""

    def __init__(self, make_features: MakeFeatures, classes: int, attend: str | None) -> None:
        super().__init__()
        # BatchFormer comes last, so that the weights drawn before it are the same in every arm.
        self.features, dim = make_features()
        self.classifier = nn.Linear(dim, classes)
        self.batchformer = bf.BatchFormer(dim, attend=attend) if attend else None

    def forward(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Logits and labels of images x `[N, ...]` and labels y `[N]`, doubled where the class says so."""
        x = self.features(x)  # [N, C]
        if self.batchformer is not None:
            x, y = self.batchformer(x, y)  # [2N, C], [2N] in training
        return self.classifier(x), y


def make_model(make_features: MakeFeatures, classes: int, arm: str, seed: int) -> Recogniser:
    """The model of one arm; for one seed, all arms start from the same features and classifier.

    It seeds torch's global generator, which then serves dropout and nothing else.
    """
    torch.manual_seed(seed)
    return Recogniser(make_features, classes, ATTEND[arm])


def small_convnet() -> tuple[nn.Module, int]:
    """A ConvNet from digits `[N, 1, 8, 8]` to features `[N, 64]`, and 64."""
    channels = (1, 16, 32, 64)
    blocks: list[nn.Module] = []
    for block, (narrow, wide) in enumerate(itertools.pairwise(channels)):
        blocks += [nn.Conv2d(narrow, wide, 3, padding=1, bias=False), nn.BatchNorm2d(wide), nn.ReLU()]
        if block < 2:
            blocks.append(nn.MaxPool2d(2))  # 8 -> 4 -> 2 pixels
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten()), channels[-1]


def resnet(name: str) -> tuple[nn.Module, int]:
    """A torchvision ResNet, not pretrained and without its last layer, and the width of its features."""
    backbone = torchvision.models.get_model(name, weights=None)
    dim = backbone.fc.in_features
    backbone.fc = nn.Identity()
    return backbone, dim
