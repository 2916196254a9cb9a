"""Detectors of transformers at the size of the scenes: made from a configuration, with random weights."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from examples.glyphs.scenes import Scenes, scenes
from examples.tables.draws import generator, shuffled
from examples.tables.optimization import Recipe, descend, device_of

WIDTH = 64
RELATED = 16  # images of the batch whose attention is measured
TRANSFORMER = {
    "d_model": WIDTH,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "num_queries": 10,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 2 * WIDTH,
    "decoder_ffn_dim": 2 * WIDTH,
    "num_channels": 1,
    "dropout": 0.0,
    "auxiliary_loss": True,
    "init_std": WIDTH**-0.5,  # transformers' 0.02 is for wide layers that get pretrained weights anyway
}
WIDTHS = (16, 32, 96)  # of the stages of the backbone
# 5 and 2 in the papers. With those, detectors of this size learn late to tell letters apart.
WEIGHTS = {"bbox_loss_coefficient": 1, "giou_loss_coefficient": 1}
Targets = Sequence[Mapping[str, Tensor]]


def training_and_test(chosen: Mapping[str, Any], seed: int) -> tuple[Scenes, Scenes]:
    """As many scenes as the settings say."""
    training = scenes(chosen["trained"], generator(seed, "training"))
    return training, scenes(chosen["tested"], generator(seed, "test"))


def residual_network(levels: Sequence[str]) -> transformers.ResNetConfig:
    """A ResNet with one basic block a stage; the transformer gets the outputs of `levels`."""
    return transformers.ResNetConfig(
        num_channels=1,
        embedding_size=WIDTHS[0],
        hidden_sizes=list(WIDTHS),
        depths=[1] * len(WIDTHS),
        layer_type="basic",
        out_features=list(levels),
    )


def adapt_backbone(backbone: nn.Module) -> None:
    """Adapt the backbone of a DETR to small images and no pretraining.

    Its stem keeps every second pixel, not every fourth: the stages have 32, 16 and 8 positions a side. All of
    it is trained, where transformers freezes the first stage and all batch norms.
    """
    backbone.model.embedder.pooler = nn.Identity()
    for parent in [*backbone.modules()]:
        for name, child in parent.named_children():
            if type(child).__name__.endswith("FrozenBatchNorm2d"):
                setattr(parent, name, nn.BatchNorm2d(len(child.weight)))
    backbone.requires_grad_(True)


def draw_queries(transformer: nn.Module) -> None:
    """Draw the queries of a DETR from the standard normal distribution, as its authors' code does.

    In transformers they have the standard deviation of all weights, and so are more alike at the start.
    """
    nn.init.normal_(transformer.query_position_embeddings.weight)


def fit(
    model: nn.Module,
    scenes: Scenes,
    targets: Targets,
    recipe: Recipe,
    seed: int,
    frozen: nn.Module | None = None,
) -> None:
    """Train a model that computes its loss, and leave it in evaluation.

    The labels are passed with the images, so the attachment doubles both.

    Args:
        model: of transformers.
        scenes: the training set.
        targets: the labels for the model, one entry for each scene.
        recipe: how to train.
        seed: of the order of the scenes; dropout uses torch's global generator.
        frozen: a part of the model that is left as it is.
    """
    if frozen is not None:
        frozen.requires_grad_(False)
    images = scenes.images.to(device_of(model))
    targets = [{name: value.to(images.device) for name, value in each.items()} for each in targets]

    def losses() -> Iterator[Tensor]:
        if frozen is not None:
            frozen.eval()
        order = shuffled(len(scenes), recipe.batch_size, generator(seed, "order"))
        for _ in range(recipe.steps):
            batch = next(order)
            yield model(pixel_values=images[batch], labels=[targets[scene] for scene in batch]).loss

    descend(model, losses(), recipe)


@torch.no_grad()
def outputs(model: nn.Module, images: Tensor) -> Iterator[Any]:
    """The outputs of a model in evaluation, for one part of the images after the other."""
    for part in images.split(100):
        yield model(pixel_values=part)


def relative_boxes(boxes: Tensor, size: int) -> Tensor:
    """Centres and sides `[K, 4]` as fractions of the image, as DETR learns, of edges `[K, 4]` in pixels."""
    corner, opposite = boxes.split(2, dim=1)
    return torch.cat([(corner + opposite) / 2, opposite - corner], 1) / size
