"""The Latin letters as images to learn from, and the training of a network on them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import batchformer as bf
from examples.glyphs.alphabet import FACES, LATIN
from examples.glyphs.instances import augment, instances
from examples.glyphs.rendering import glyphs
from examples.tables.arms import SOFTENED, softened, wrap
from examples.tables.draws import generator, shuffled
from examples.tables.optimization import Recipe, descend, device_of

CLASSES = len(LATIN)  # 106


@dataclass(frozen=True)
class Images:
    """Images x `[N, 1, 24, 24]` of the letters y `[N]`."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)


def draw(letters: Tensor, faces: Tensor, draws: torch.Generator) -> Tensor:
    """Images `[N, 1, 24, 24]` of letters `[N]` (of 106) in faces `[N]` (of 16)."""
    return instances(glyphs(tuple(letter.text for letter in LATIN))[letters, faces], draws)


def random_faces(count: int, draws: torch.Generator) -> Tensor:
    """Faces `[count]`, each drawn from all 16."""
    return torch.randint(len(FACES), (count,), generator=draws)


def some_faces(count: int) -> Tensor:
    """Faces `[count]`, evenly spread over the 16; `count` is a divisor of 16."""
    return torch.arange(len(FACES))[:: len(FACES) // count]


def in_every_face(letters: Tensor, each: int, draws: torch.Generator, faces: Tensor | None = None) -> Images:
    """`each` images of each of the letters `[K]` in each of the faces `[F]`; y counts from 0 to K - 1.

    If faces is None, in all.
    """
    faces = torch.arange(len(FACES)) if faces is None else faces
    y = torch.arange(len(letters)).repeat_interleave(len(faces) * each)
    return Images(draw(letters[y], faces.repeat_interleave(each).repeat(len(letters)), draws), y)


def every_letter(seed: int, purpose: str, each: int, faces: Tensor | None = None) -> Images:
    """`in_every_face` for all letters, drawn for a purpose of a seed."""
    return in_every_face(torch.arange(CLASSES), each, generator(seed, purpose), faces)


def one_of_each(images: Images) -> Tensor:
    """One image of each letter `[106, 1, 24, 24]`, from those of `in_every_face`, the faces by turns."""
    each = len(images) // CLASSES
    letters = torch.arange(CLASSES)
    return images.x[letters * each + letters % each]


def batches(images: Images, steps: int, batch_size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Augmented images `[N, 1, 24, 24]` and labels `[N]`, one pair a step; the same at every call."""
    order = shuffled(len(images), batch_size, generator(seed, "order"))
    draws = generator(seed, "augmentation")
    for _ in range(steps):
        batch = next(order)
        yield augment(images.x[batch], draws), images.y[batch]


def fit(
    model: nn.Module,
    arm: str,
    attachment: bf.Attachment | None,
    criterion: Callable[[Tensor, Tensor], Tensor],
    images: Images,
    recipe: Recipe,
    seed: int,
) -> None:
    """Train a classifier, and leave it in evaluation.

    Args:
        model: gives logits `[N, K]`; for the arm "softened" by its `features` and its `classifier`.
        arm: one of the arms.
        attachment: that of the arm, or None.
        criterion: of logits `[N, K]` and labels `[N]`, or probabilities of labels `[N, K]`.
        images: the training set.
        recipe: how to train.
        seed: of the order of the images and of their augmentation; dropout uses torch's global generator.
    """
    criterion = wrap(attachment, criterion)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        if arm != SOFTENED:
            return criterion(model(x), y)
        features, targets = softened(model.features(x), y, model.classifier.out_features)
        return criterion(model.classifier(features), targets)

    minimise(loss, model, images, recipe, seed)


def minimise(
    loss: Callable[[Tensor, Tensor], Tensor], model: nn.Module, images: Images, recipe: Recipe, seed: int
) -> None:
    """Train a model by the loss of images `[N, 1, 24, 24]` and labels `[N]`, and leave it in evaluation."""
    drawn = batches(images, recipe.steps, recipe.batch_size, seed)
    device = device_of(model)
    descend(model, (loss(channels_last(x).to(device), y.to(device)) for x, y in drawn), recipe)


def channels_last(x: Tensor) -> Tensor:
    """Images `[N, 1, H, W]` in the layout in which the ConvNet is fastest."""
    return x.contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def predict(model: nn.Module, x: Tensor) -> Tensor:
    """Logits `[N, K]` of images `[N, 1, 24, 24]`, in evaluation."""
    model.eval()
    parts = channels_last(x).split(512)
    return torch.cat([model(part) for part in parts])
