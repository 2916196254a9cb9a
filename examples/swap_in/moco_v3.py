"""MoCo v3: before the projectors of the base and the momentum encoder, ResNet and ViT.

--repo: a checkout of facebookresearch/moco-v3. Without it, a timm ViT with lightly's heads.
"""

import copy
from collections.abc import Iterator
from pathlib import Path

import checkouts
import torch
import torch.nn.functional as F
from torch import nn
from trial import Trial, main

import batchformer as bf

VIEW1, VIEW2 = torch.randn(2, 4, 3, 64, 64)


def from_checkout(repo: Path) -> Iterator[Trial]:
    """Stock MoCo v3; the module trained, and frozen as in the published code."""
    import timm.layers

    checkouts.use(repo)
    checkouts.on_a_cpu()
    checkouts.as_one_process()
    checkouts.module("timm.models.layers", PatchEmbed=timm.layers.PatchEmbed)
    checkouts.module("timm.models.layers.helpers", to_2tuple=timm.layers.to_2tuple)
    import timm.models.vision_transformer
    from moco import builder

    timm.models.vision_transformer.VisionTransformer.num_tokens = 1  # its old name for num_prefix_tokens
    for kind in ("ResNet-18", "ViT"):
        for as_published in (False, True):
            if kind == "ViT":
                model = builder.MoCo_ViT(vit(), 32, 64, 0.2)
            else:
                model = builder.MoCo_ResNet(checkouts.small_resnet(), 32, 64, 1.0)
            yield Trial(
                name=f"MoCo v3, {kind}, {'frozen, as published' if as_published else 'trained'}",
                model=model,
                attach=lambda model, as_published=as_published: bf.attach(
                    model, "moco_v3", as_published=as_published
                ),
                loss=lambda model, _: model(VIEW1, VIEW2, 0.99),
                evaluate=lambda model: model.predictor(model.base_encoder(VIEW1)),
            )


def vit():
    """A small one of moco-v3's own vision transformers."""
    import functools

    import vits

    return functools.partial(
        vits.VisionTransformerMoCo, img_size=64, patch_size=16, embed_dim=32, depth=2, num_heads=4
    )


class LightlyMoCoV3(nn.Module):
    """MoCo v3 from a timm ViT and lightly's projection and prediction heads."""

    def __init__(self) -> None:
        super().__init__()
        import timm
        from lightly.models.modules import MoCoProjectionHead

        self.base = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=0)
        self.projector = MoCoProjectionHead(192, 64, 32, num_layers=3, batch_norm=True)
        self.predictor = MoCoProjectionHead(32, 64, 32, num_layers=2, batch_norm=True)
        self.base_momentum = copy.deepcopy(self.base).requires_grad_(False)
        self.projector_momentum = copy.deepcopy(self.projector).requires_grad_(False)

    def forward(self, x):
        return self.predictor(self.projector(self.base(x)))

    @torch.no_grad()
    def forward_momentum(self, x):
        return self.projector_momentum(self.base_momentum(x))


def info_nce(queries, keys):
    """Of keys of one stream, so that the other stream of an image is never its negative."""
    logits = F.normalize(queries, dim=1) @ F.normalize(keys, dim=1).T / 0.2
    return F.cross_entropy(logits, torch.arange(len(logits)))


def from_packages() -> Iterator[Trial]:
    """All four pairings of the streams, each view with the other."""

    def step(model, _):
        losses = [
            info_nce(query, key)
            for view, other in ((VIEW1, VIEW2), (VIEW2, VIEW1))
            for query in model(view).split(len(view))
            for key in model.forward_momentum(other).split(len(view))
        ]
        return sum(losses) / len(losses)

    yield Trial(
        name="timm ViT with lightly's MoCo v3 heads",
        model=LightlyMoCoV3(),
        attach=lambda model: bf.attach(
            model,
            before=["projector", "projector_momentum"],
            optional=["projector_momentum"],  # which is not in the model's forward
            wrapped=False,  # the pairs are made above
        ),
        loss=step,
        evaluate=lambda model: model(VIEW1),
    )


if __name__ == "__main__":
    main(__doc__, from_checkout, from_packages)
