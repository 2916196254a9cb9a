"""RIDE: one module before the classifiers of all experts.

--repo: a checkout of frank-xwang/RIDE-LongTailRecognition. Without it, a torchvision ResNet with three heads.
"""

from collections.abc import Iterator
from pathlib import Path

import checkouts
import torch
import torchvision
from torch import nn
from trial import Trial, main

import batchformer as bf

LABELS = torch.tensor([0, 1, 2, 1, 3, 0])
CLASSES = [50, 20, 10, 5, 2]  # training images of each


def from_checkout(repo: Path) -> Iterator[Trial]:
    """The three backbones of RIDE's configurations; two streams, the published single one, distillation."""
    checkouts.use(repo, "pandas", "logger")
    checkouts.on_a_cpu()
    from model import loss as losses
    from model import metric
    from model import model as models

    images = {"imagenet": torch.randn(6, 3, 224, 224), "cifar": torch.randn(6, 3, 32, 32)}

    def trainer_step(kind, teacher=None):
        """What RIDE's trainer does with a batch."""

        def step(model, criterion):
            model._hook_before_iter()
            criterion._hook_before_epoch(1)
            output, extra_info = model(images[kind]), {}
            if isinstance(output, dict):
                extra_info["logits"] = output["logits"].transpose(0, 1)
                output = output["output"]
            else:
                extra_info["logits"] = model.backbone.logits
            if teacher is None:
                loss = criterion(output_logits=output, target=LABELS, extra_info=extra_info)
            else:
                with torch.no_grad():
                    logits = teacher(images[kind])["output"]
                loss = criterion(student=output, target=LABELS, teacher=logits, extra_info=extra_info)
            metric.accuracy(output, LABELS, return_length=True)
            return loss

        return step

    def evaluate(kind):
        def logits(model):
            output = model(images[kind])
            return output["output"] if isinstance(output, dict) else output

        return logits

    common = {"reduce_dimension": True, "num_experts": 3}
    resnet = {"layer3_output_dim": 32, "layer4_output_dim": 64, "share_layer3": True, "returns_feat": True}
    models_of = {
        "ResNet-10, cosine classifiers": lambda: models.ResNet10Model(5, use_norm=True, **common, **resnet),
        "ResNeXt-50": lambda: models.ResNeXt50Model(5, **common, returns_feat=True),
        "CIFAR ResNet-32": lambda: models.ResNet32Model(5, use_norm=True, **common),
    }
    for name, make in models_of.items():
        kind = "cifar" if "CIFAR" in name else "imagenet"
        for two_stream in (True, False):
            yield Trial(
                name=f"RIDE {name}, {'two streams' if two_stream else 'one stream, as published'}",
                model=make(),
                attach=lambda model, two_stream=two_stream: bf.attach(model, "ride", two_stream=two_stream),
                criterion=losses.RIDELoss(CLASSES, reweight_epoch=5),
                loss=trainer_step(kind),
                evaluate=evaluate(kind),
            )
    make = models_of["ResNet-10, cosine classifiers"]
    yield Trial(
        name="RIDE ResNet-10, distillation",
        model=make(),
        attach=lambda model: bf.attach(model, "ride"),
        criterion=losses.RIDELossWithDistill(CLASSES, reweight_epoch=5),
        loss=trainer_step("imagenet", teacher=make()),
        evaluate=evaluate("imagenet"),
    )


class ThreeHeads(nn.Module):
    """A torchvision ResNet with a classifier for each of three experts."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = torchvision.models.resnet18()
        self.backbone.fc = nn.Identity()
        self.heads = nn.ModuleList(nn.Linear(512, 5) for _ in range(3))

    def forward(self, x):
        features = self.backbone(x)
        return torch.stack([head(features) for head in self.heads]).mean(0)


def from_packages() -> Iterator[Trial]:
    """Three heads by their paths, in a script that measures training accuracy."""
    images = torch.randn(6, 3, 32, 32)

    def step(model, criterion):
        logits = model(images)
        loss = criterion(logits, LABELS)
        assert len(logits.argmax(1) == LABELS) == len(LABELS)  # a meter
        return loss

    yield Trial(
        name="torchvision ResNet-18 with three heads",
        model=ThreeHeads(),
        attach=lambda model: bf.attach(model, before=["heads.0", "heads.1", "heads.2"], outputs="originals"),
        criterion=nn.CrossEntropyLoss(),
        loss=step,
        evaluate=lambda model: model(images),
    )


if __name__ == "__main__":
    main(__doc__, from_checkout, from_packages)
