"""Classifiers of timm."""

from functools import partial
from typing import Any

import torch.nn.functional as F
from timm import models as M
from timm.layers import BatchNormAct2d
from timm.models import levit, mlp_mixer, repvit, volo
from timm.models.resnet import BasicBlock

from families.case import Case
from families.images import CLASSES, IMAGES, LABELS

_SWIN = {"img_size": 32, "embed_dim": 16, "depths": (1, 1), "num_heads": (2, 2), "window_size": 4}
_LEVIT = {"img_size": 32, "embed_dim": (16,), "key_dim": 8, "depth": (1,), "num_heads": (2,)}
_CROSSVIT = {
    "img_size": 32,
    "patch_size": (8, 16),
    "embed_dim": (16, 32),
    "depth": ((1, 1, 0),),
    "num_heads": (2, 2),
    "mlp_ratio": (2.0, 2.0, 1.0),
    "img_scale": (1.0, 1.0),
}
_VOLO = {
    "img_size": 32,
    "layers": (1, 1),
    "embed_dims": (16, 16),
    "num_heads": (2, 2),
    "downsamples": (False, False),
    "outlook_attention": (True, False),
    "mlp_ratio": 2.0,
    "stem_hidden_dim": 8,
    "post_layers": ("ca",),
}


def _case(make: Any, **config: Any) -> Case:
    images = {"x": IMAGES}
    return Case("timm", partial(make, num_classes=CLASSES, **config), images, LABELS, F.cross_entropy)


def _mixer(num_classes: int) -> mlp_mixer.MlpMixer:
    model = mlp_mixer.MlpMixer(num_classes, img_size=32, patch_size=8, num_blocks=1, embed_dim=16)
    model.head.reset_parameters()  # which begins with zeros: no gradient would come to what is before
    return model


CASES = {
    "timm's ResNet": _case(M.ResNet, block=BasicBlock, layers=(1, 1, 1, 1), channels=(8, 8, 8, 16)),
    "ResNetV2, a 1x1 convolution": _case(
        M.ResNetV2, layers=(1, 1, 1, 1), channels=(16, 16, 16, 16), stem_chs=8, norm_layer=BatchNormAct2d
    ),
    "timm's Swin": _case(M.SwinTransformer, **_SWIN),
    "timm's ConvNeXt": _case(M.ConvNeXt, depths=(1, 1, 1, 1), dims=(8, 8, 8, 16)),
    "LeViT, distilled": _case(levit.LevitDistilled, **_LEVIT),
    "RepViT, a batch norm in both heads": _case(
        repvit.RepVit, embed_dim=(8, 16), depth=(1, 1), distillation=True
    ),
    "MLP-Mixer": _case(_mixer),
    "timm's EfficientNet": _case(partial(M.create_model, "test_efficientnet")),
    "CoAtNet": _case(partial(M.create_model, "test_coatnet"), img_size=64)._replace(
        inputs={"x": F.interpolate(IMAGES, 64)}
    ),
    "CrossViT, heads of two widths": _case(M.CrossVit, **_CROSSVIT),
    "VOLO, a head of all tokens": _case(volo.VOLO, **_VOLO),
}
