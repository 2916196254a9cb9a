"""Contrastive learning: MoCo v2 and v3 on images without labels, judged by probes of their features."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

import batchformer as bf
from examples.glyphs.alphabet import CYRILLIC, FACES, GREEK, LATIN
from examples.glyphs.instances import Affine, affine, instances
from examples.glyphs.rendering import glyphs
from examples.tables.arms import insert
from examples.tables.draws import generator, shuffled
from examples.tables.letters import channels_last, every_letter, one_of_each, predict, some_faces
from examples.tables.moco import MoCoV2, MoCoV3
from examples.tables.optimization import Recipe, descend, device_of
from examples.tables.probes import linear_accuracy, neighbour_accuracy
from examples.tables.relating import related
from examples.tables.table import Job, Outcome, Table

SYSTEMS = {"MoCo v2": MoCoV2, "MoCo v3": MoCoV3}
OWN = {"MoCo v2": {"queue": 1024}, "MoCo v3": {}}
RECIPE = Recipe(steps=3000, batch_size=128, learning_rate=0.3, weight_decay=1e-3)
COMMON = asdict(RECIPE) | {
    "momentum": 0.99,  # of the encoder of the keys
    "temperature": 0.2,
    "images": 8000,  # to learn from, without labels
    "each": 2,  # images of each letter in each face to fit the probes, and as many to test them
    "faces": len(FACES),
}
VIEW = Affine(turn=15.0, scale=0.2, shear=0.2, shift=0.15)
SCRIPTS = (*(letter.text for letter in LATIN), *GREEK, *CYRILLIC)  # 226


def settings(job: Job) -> Mapping[str, Any]:
    """All that decides the numbers of a run."""
    chosen = COMMON | OWN[job.system]
    return job.adapted(chosen, quick={"steps": 4, "batch_size": 24, "images": 64, "each": 1, "faces": 2})


def train(job: Job) -> Outcome:
    """One run: the training without labels, then both probes of the features, which stay as they are."""
    chosen = settings(job)
    torch.manual_seed(job.seed)
    model = SYSTEMS[job.system](**{name: chosen[name] for name in SYSTEMS[job.system].options})
    attachment = insert(model, job.arm, before=list(model.places), optional=list(model.places))
    images = unlabelled(chosen["images"], generator(job.seed, "unlabelled"))
    fit(model.to(job.device), attachment, images, chosen, job.seed)

    faces = some_faces(chosen["faces"])
    labelled, test = (
        every_letter(job.seed, purpose, chosen["each"], faces) for purpose in ("labelled", "test")
    )
    features = predict(model.backbone, labelled.x), predict(model.backbone, test.x)  # [N, 128] each
    metrics = {
        "linear": linear_accuracy(*features, labelled.y, test.y),
        "20 neighbours": neighbour_accuracy(*features, labelled.y, test.y),
    }
    return Outcome(metrics, **related(attachment, one_of_each(test), job))


def fit(
    model: MoCoV2 | MoCoV3,
    attachment: bf.Attachment | None,
    images: Tensor,
    chosen: Mapping[str, Any],
    seed: int,
) -> None:
    """Train the model on images `[M, 1, 24, 24]`, and leave it in evaluation.

    With an attachment each stream of a view is paired with each stream of the other: a mean of four losses.
    """
    if attachment is not None:
        attachment.wrap(model.criterion, targets=[])

    device = device_of(model)

    def losses() -> Iterator[Tensor]:
        for step, (first, second) in enumerate(pairs(images, chosen["steps"], chosen["batch_size"], seed)):
            model.move_keys(step / chosen["steps"])
            yield model.loss(first.to(device), second.to(device))

    descend(model, losses(), Recipe.of(chosen))


def unlabelled(count: int, draws: torch.Generator) -> Tensor:
    """Images `[count, 1, 24, 24]` of letters of three scripts, each letter equally often, in any face."""
    letters = torch.randint(len(SCRIPTS), (count,), generator=draws)
    faces = torch.randint(len(FACES), (count,), generator=draws)
    return instances(glyphs(SCRIPTS)[letters, faces], draws)


def pairs(images: Tensor, steps: int, batch_size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Two views `[N, 1, 24, 24]` of the same images, one pair a step; the same at every call."""
    order = shuffled(len(images), batch_size, generator(seed, "order"))
    draws = generator(seed, "views")
    for _ in range(steps):
        batch = images[next(order)]
        yield view(batch, draws), view(batch, draws)


def view(images: Tensor, draws: torch.Generator) -> Tensor:
    """Images `[N, 1, H, W]` under another affine map, contrast and brightness, with some noise."""
    x = affine(images, draws, VIEW)
    contrast = 0.6 + 0.8 * torch.rand(len(x), 1, 1, 1, generator=draws)
    brightness = 0.4 * torch.rand(len(x), 1, 1, 1, generator=draws) - 0.2
    x = x * contrast + brightness + 0.1 * torch.randn(x.shape, generator=draws)
    return channels_last(x)


TABLE = Table(
    name="contrastive",
    title="Contrastive learning",
    systems=tuple(SYSTEMS),
    columns=("linear", "20 neighbours"),
    primary=("linear",),
    settings=settings,
    train=train,
    paper="""\
| ResNet-50 on ImageNet, linear probe | top 1 | + BatchFormer |
|---|---|---|
| MoCo v2, 200 epochs | 67.5 | 68.4 |
| MoCo v3, 100 epochs | 68.9 | 70.1 |

As printed in the README of the authors' code. There MoCo v2 with BatchFormer has one more perceptron in its
projector than the baseline, and the module of MoCo v3 is frozen by accident. Here both have the heads of the
baseline, the module is trained, and a loss is the mean over the four pairings of streams. The backbone is the
ConvNet, on 8,000 images of letters of three scripts; the probes are of the 106 Latin ones.""",
    short=("MoCo v2",),
    short_seeds=1,
    tuned="""\
Linear probe of MoCo v2's baseline on seed 100, one run each, by learning rate and weight decay: 0.1 and
1e-4 51.6; 0.1 and 3e-3 52.7; 0.3 and 1e-3 52.7, used, and 52.1 with a temperature of 0.1. MoCo v3 has the
same settings.
""",
    grid={"learning_rate": (0.1, 0.3), "weight_decay": (1e-4, 1e-3, 3e-3), "temperature": (0.1, 0.2)},
)
