"""Vision transformers."""

import transformers as T

from families.case import Case
from families.images import IMAGES, LABELS, TINY


def _vit() -> T.ViTForImageClassification:
    return T.ViTForImageClassification(T.ViTConfig(**TINY, num_hidden_layers=9, image_size=32, patch_size=8))


CASES = {"ViT": Case("deit", _vit, {"pixel_values": IMAGES, "labels": LABELS})}
