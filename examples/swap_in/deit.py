"""DeiT: samples attend to each other at every token after the ninth block; mixup, distillation, EMA.

--repo: a checkout of facebookresearch/deit. Without it, timm's, transformers' and torchvision's models.
"""

import copy
from collections.abc import Iterator
from pathlib import Path

import checkouts
import torch
from trial import Trial, main

import batchformer as bf

IMAGES, LABELS = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 1])
SMALL = {"img_size": 32, "num_classes": 5}


def from_checkout(repo: Path) -> Iterator[Trial]:
    """Stock DeiT with mixup's soft labels, and distilled from a teacher, soft and hard."""
    checkouts.use(repo)
    checkouts.module("timm.models.registry", register_model=lambda function: function)
    import losses
    import models
    from timm.data import Mixup
    from timm.loss import SoftTargetCrossEntropy

    images, soft = Mixup(mixup_alpha=0.8, num_classes=5)(IMAGES.clone(), LABELS)
    teacher = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 5)).eval()
    for kind, name in (
        ("none", "deit_tiny_patch16_224"),
        ("soft", "deit_tiny_distilled_patch16_224"),
        ("hard", "deit_tiny_distilled_patch16_224"),
    ):
        yield Trial(
            name=f"{name}, mixup, distillation: {kind}",
            model=getattr(models, name)(**SMALL),
            attach=lambda model: bf.attach(model, "deit"),
            criterion=losses.DistillationLoss(
                SoftTargetCrossEntropy(), copy.deepcopy(teacher), kind, 0.5, 3.0
            ),
            loss=lambda model, criterion: criterion(images, model(images), soft),
            evaluate=lambda model: model(IMAGES),
        )


def from_packages() -> Iterator[Trial]:
    """Timm's deit and vit; transformers' DeiT and ViT, which compute their loss inside; torchvision's ViT."""
    import timm
    import torchvision
    import transformers

    cross_entropy = torch.nn.CrossEntropyLoss()
    for name in ("deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "vit_tiny_patch16_224"):
        yield Trial(
            name=f"timm {name}",
            model=timm.create_model(name, **SMALL),
            attach=bf.attach,
            criterion=cross_entropy,
            loss=lambda model, criterion: criterion(model(IMAGES), LABELS),
            evaluate=lambda model: model(IMAGES),
        )
    small = {
        "hidden_size": 32,
        "num_attention_heads": 4,
        "intermediate_size": 32,
        "image_size": 32,
        "num_labels": 5,
    }
    for kind in ("ViT", "DeiT"):
        config = getattr(transformers, f"{kind}Config")(**small)
        yield Trial(
            name=f"transformers {kind}ForImageClassification",
            model=getattr(transformers, f"{kind}ForImageClassification")(config),
            attach=bf.attach,
            loss=lambda model, _: model(pixel_values=IMAGES, labels=LABELS).loss,
            evaluate=lambda model: model(pixel_values=IMAGES).logits,
        )
    yield Trial(
        name="torchvision VisionTransformer",
        model=torchvision.models.VisionTransformer(32, 16, 12, 4, 32, 32, num_classes=5),
        attach=bf.attach,
        criterion=cross_entropy,
        loss=lambda model, criterion: criterion(model(IMAGES), LABELS),
        evaluate=lambda model: model(IMAGES),
    )


if __name__ == "__main__":
    main(__doc__, from_checkout, from_packages)
