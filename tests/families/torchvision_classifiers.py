"""Classifiers of torchvision."""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models as M
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.mobilenetv3 import InvertedResidualConfig
from torchvision.models.resnet import BasicBlock

from families.case import Case
from families.images import CLASSES, IMAGES, LABELS

_MOBILENET = {"last_channel": 16, "dropout": 0.0}
_MOBILENET |= {"inverted_residual_setting": [InvertedResidualConfig(16, 3, 16, 8, True, "RE", 2, 1, 0.5)]}
_SWIN = {"patch_size": [4, 4], "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": [4, 4]}
_GOOGLENET = {"init_weights": False, "dropout": 0.0, "dropout_aux": 0.0}
_CONVNEXT = {"block_setting": [CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)]}


def _case(make: Any, x: Tensor = IMAGES, **config: Any) -> Case:
    return Case(
        "torchvision", partial(make, num_classes=CLASSES, **config), {"x": x}, LABELS, F.cross_entropy
    )


def _with_auxiliary(criterion: Any, output: Any, labels: Tensor) -> Tensor:
    auxiliary = criterion(output.aux_logits1, labels) + criterion(output.aux_logits2, labels)
    return criterion(output.logits, labels) + 0.3 * auxiliary


def _s3d(num_classes: int) -> M.video.S3D:
    model = M.video.S3D(num_classes, dropout=0.0)
    model.features = nn.Conv3d(3, 1024, 1)
    return model


CASES = {
    "torchvision's ResNet": _case(M.ResNet, block=BasicBlock, layers=[1, 1, 1, 1]),
    "DenseNet": _case(M.DenseNet, growth_rate=4, block_config=(1, 1), num_init_features=8),
    "MobileNetV3": _case(M.MobileNetV3, **_MOBILENET),
    "torchvision's ConvNeXt": _case(M.ConvNeXt, **_CONVNEXT),
    "torchvision's Swin": _case(M.SwinTransformer, stochastic_depth_prob=0.0, **_SWIN),
    "SqueezeNet, a convolution on maps": _case(
        M.SqueezeNet, x=F.interpolate(IMAGES, 64), version="1_1", dropout=0.0
    ),
    "GoogLeNet, auxiliary logits of N rows": _case(
        M.GoogLeNet, x=F.interpolate(IMAGES, 64), **_GOOGLENET
    )._replace(terms=_with_auxiliary),
    "S3D, a convolution in three dimensions": _case(_s3d, x=torch.randn(len(LABELS), 3, 3, 7, 8)),
}
