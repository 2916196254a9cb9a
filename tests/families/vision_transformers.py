"""Vision transformers."""

import functools

import torch
import transformers as T

from families.case import Case
from families.images import IMAGES, LABELS, TINY, N

VIDEOS = torch.randn(N, 2, 3, 16, 16)
SMALL = TINY | {"num_hidden_layers": 9, "image_size": 32, "patch_size": 8}
SHORT = SMALL | {"image_size": 16, "num_frames": 2}

# Images of 12, 16, 8 and 16 patches, in 16 rows of 8 x 8 pixels.
SHAPES = torch.tensor([[3, 4], [4, 4], [2, 4], [4, 4]])
MASK = (torch.arange(16) < SHAPES.prod(1, keepdim=True)).long()
PATCHES = {"pixel_values": torch.randn(N, 16, 192), "pixel_attention_mask": MASK, "spatial_shapes": SHAPES}


def _plain(name, config, **inputs):
    """A model of one list of blocks, which takes images if nothing else is said."""
    cls = getattr(T, name)
    make = functools.partial(lambda: cls(cls.config_class(**config)))
    return Case("vit", make, (inputs or {"pixel_values": IMAGES}) | {"labels": LABELS})


def _in_vision_config(name, config, **inputs):
    vision = {key: value for key, value in config.items() if key != "num_labels"}
    return _plain(name, {"vision_config": vision, "num_labels": config["num_labels"]}, **inputs)


def _of_timm():
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 9, "num_heads": 4}
    name = "deit_tiny_patch16_224"
    config = T.TimmWrapperConfig(architecture=name, model_args=sizes, num_labels=TINY["num_labels"])
    return T.TimmWrapperForImageClassification(config)


CASES = {
    "ViT": _plain("ViTForImageClassification", SMALL),
    "DINOv2": _plain("Dinov2ForImageClassification", SMALL),
    "DINOv2 with registers": _plain("Dinov2WithRegistersForImageClassification", SMALL),
    "BEiT": _plain("BeitForImageClassification", SMALL | {"use_relative_position_bias": True}),
    "Data2VecVision": _plain("Data2VecVisionForImageClassification", SMALL),
    "ViT-MSN": _plain("ViTMSNForImageClassification", SMALL),
    "I-JEPA": _plain("IJepaForImageClassification", SMALL),
    "CLIP with a classifier": _in_vision_config("CLIPForImageClassification", SMALL),
    "SigLIP with a classifier": _in_vision_config("SiglipForImageClassification", SMALL),
    "SigLIP 2 with a classifier": _in_vision_config(
        "Siglip2ForImageClassification", SMALL | {"num_patches": 16}, **PATCHES
    ),
    "timm's DeiT in transformers": Case("vit", _of_timm, {"pixel_values": IMAGES, "labels": LABELS}),
    "VideoMAE": _plain("VideoMAEForVideoClassification", SHORT, pixel_values=VIDEOS),
    "TimeSformer": _plain("TimesformerForVideoClassification", SHORT, pixel_values=VIDEOS),
    "ViViT": _plain("VivitForVideoClassification", SHORT | {"tubelet_size": [2, 8, 8]}, pixel_values=VIDEOS),
}
