"""Detectors of transformers that are built on DETR."""

import functools

import torch
import transformers as T
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers.models.rf_detr.configuration_rf_detr import RfDetrDinov2Config

from families.case import Case
from families.images import CLASSES

N = 3
IMAGES = torch.randn(N, 3, 64, 64)
MASK = torch.ones(N, 64, 64, dtype=torch.long)
MASK[2, :, 48:] = 0  # padding
COUNTS = (2, 1, 3)  # boxes of each image
LABELS = [
    {
        "class_labels": torch.randint(CLASSES, (count,)),
        "boxes": 0.3 + 0.2 * torch.rand(count, 4),
        "masks": (torch.rand(count, 64, 64) > 0.5).float(),
    }
    for count in COUNTS
]
BATCH = {"pixel_values": IMAGES, "pixel_mask": MASK, "labels": LABELS}

RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [1] * 4, "layer_type": "basic"}
LEVELS = ["stage2", "stage3", "stage4"]
DETR = {
    "d_model": 32,
    "hidden_size": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "num_queries": 6,
    "num_labels": CLASSES,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "auxiliary_loss": True,
    "group_detr": 2,
}
HYBRID = {
    "encoder_layers": 2,
    "encoder_hidden_dim": 32,
    "encoder_in_channels": [16, 24, 32],
    "decoder_in_channels": [32] * 3,
    "hidden_expansion": 0.5,
    "num_denoising": 0,
}


def resnet(levels):
    return T.ResNetConfig(**RESNET, out_features=levels)


def timm_resnet(levels):
    return T.TimmBackboneConfig(backbone="test_resnet", out_indices=levels, use_pretrained_backbone=False)


def with_steady_statistics(model):
    """Running statistics are left as they are: the variance of 2N rows is not quite that of N."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0
            nn.init.ones_(module.weight)  # the stock one of 0.01 leaves next to no gradient
    return model


class OneDraw(TorchFunctionMode):
    """Random numbers that are the same for every row, and so for both streams."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in (torch.rand_like, torch.randint_like):
            x, *others = args
            return func(x[:1], *others, **kwargs).repeat(len(x), *[1] * (x.dim() - 1))
        if func is torch.rand and len(args) > 1:
            rows, *others = args
            return func(1, *others, **kwargs).repeat(rows, *[1] * len(others))
        return func(*args, **kwargs)


def with_one_draw(kind):
    """A class of models whose forward draws so."""

    @functools.wraps(kind.forward)
    def forward(self, *args, **kwargs):
        with OneDraw():
            return kind.forward(self, *args, **kwargs)

    return type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})


def make(name, head="ForObjectDetection", **changed):
    known = {**DETR, **(HYBRID if name in HYBRIDS else {}), **changed}
    config = getattr(T, f"{name}Config")
    config = config(**{key: value for key, value in known.items() if hasattr(config, key)})
    kind = with_one_draw(getattr(T, f"{name}{head}"))
    return with_steady_statistics(kind(config)).train()


HYBRIDS = ("RTDetr", "RTDetrV2", "DFine", "Deimv2")


def detr(name, levels=("stage4",), **changed):
    return make(name, backbone_config=resnet(list(levels)), **changed)


def hybrid(name, head="ForObjectDetection", **changed):
    return make(name, head, backbone_config=resnet(LEVELS), **changed)


def deimv2_lite():
    levels = {"encoder_in_channels": [24, 32], "decoder_in_channels": [32] * 2, "num_feature_levels": 2}
    return make("Deimv2", backbone_config=resnet(LEVELS[1:]), encoder_type="lite", **levels)


def lw_detr(head="ForObjectDetection", scales=(2.0, 0.5)):
    backbone = T.LwDetrViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=64,
        pretrain_image_size=64,
        patch_size=8,
        num_windows=4,
        window_block_indices=[0],
        out_indices=[1, 2],
    )
    return make(
        "LwDetr",
        head,
        backbone_config=backbone,
        projector_scale_factors=list(scales),
        decoder_self_attention_heads=4,
        decoder_cross_attention_heads=4,
    )


def rf_detr(head="ForObjectDetection"):
    backbone = RfDetrDinov2Config(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=64,
        patch_size=8,
        num_windows=2,
        out_indices=[1, 2],
    )
    return make(
        "RfDetr",
        head,
        backbone_config=backbone,
        decoder_self_attention_heads=4,
        decoder_cross_attention_heads=4,
    )


def states(output, targets):
    """A loss of one's own, for a model without a head."""
    return (output.last_hidden_state[..., 0].mean(1) - targets).square().mean()


WITHOUT_HEAD = {
    "inputs": {"pixel_values": IMAGES, "pixel_mask": MASK},
    "labels": torch.randn(N),
    "criterion": states,
}

case = functools.partial(Case, inputs=BATCH)
CASES = {
    "TableTransformer": case("detr", lambda: detr("TableTransformer")),
    "TableTransformer, timm": case(
        "detr", lambda: make("TableTransformer", backbone_config=timm_resnet([4]))
    ),
    "DabDetr": case("detr", lambda: detr("DabDetr")),
    "DabDetr, patterns": case("detr", lambda: detr("DabDetr", num_patterns=2)),
    "RTDetr, second layer": case("rt_detr", lambda: hybrid("RTDetr"), options={"after": 1}),
    "RTDetr, two levels": case(
        "rt_detr",
        lambda: hybrid("RTDetr", encode_proj_layers=[1, 2]),
        options={"after": [0, 1], "shared": False},
    ),
    "RTDetr, timm": case(
        "rt_detr",
        lambda: make("RTDetr", backbone_config=timm_resnet([2, 3, 4]), encoder_in_channels=[48, 96, 160]),
    ),
    **{name: case("rt_detr", functools.partial(hybrid, name)) for name in HYBRIDS},
    **{
        f"{name}, denoising": case("rt_detr", functools.partial(hybrid, name, num_denoising=6))
        for name in HYBRIDS
    },
    "Deimv2 lite": case("lw_detr", deimv2_lite),
    "RTDetr, no head": Case("rt_detr", lambda: hybrid("RTDetr", "Model"), **WITHOUT_HEAD),
    "LwDetr": case("lw_detr", lw_detr),
    "LwDetr, no head": Case("lw_detr", lambda: lw_detr("Model"), **WITHOUT_HEAD),
    "RfDetr": case("lw_detr", rf_detr),
}
