"""scikit-learn's handwritten digits, made long-tailed."""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor

from examples.tables.draws import generator, shuffled
from examples.tables.long_tailed.data import class_sizes
from examples.tables.long_tailed.groups import by_thirds

CLASSES = 10
# Images of each class; the most frequent one has as many for training as are left of the smallest, 100.
TEST_IMAGES = 50
VALIDATION_IMAGES = 24


class LongTailedDigits:
    """Digits with an exponential profile of class sizes; test and validation sets have them evenly.

    The seed draws which class is rare, which images are for training, their order and their augmentation.

    Args:
        imbalance: training images of the most frequent class over those of the rarest.
        seed: of all the draws above.
    """

    def __init__(self, imbalance: float, seed: int) -> None:
        self.seed = seed
        digits = load_digits()
        images = torch.from_numpy(digits.images).float().unsqueeze(1) / 16  # [1797, 1, 8, 8], in [0, 1]
        labels = torch.from_numpy(digits.target).long()
        draws = generator(seed, "split")
        held_out = TEST_IMAGES + VALIDATION_IMAGES
        largest = int(labels.bincount().min()) - held_out
        profile = class_sizes(largest, imbalance, CLASSES)
        self.counts = torch.tensor(profile)[torch.randperm(CLASSES, generator=draws)]  # [10]
        train, validation, test = [], [], []
        for label in range(CLASSES):
            members = (labels == label).nonzero().squeeze(1)
            members = members[torch.randperm(len(members), generator=draws)]
            test.append(members[:TEST_IMAGES])
            validation.append(members[TEST_IMAGES:held_out])
            train.append(members[held_out : held_out + int(self.counts[label])])
        self.groups = by_thirds(self.counts)
        self._train = (images[torch.cat(train)], labels[torch.cat(train)])
        self._validation = (images[torch.cat(validation)], labels[torch.cat(validation)])
        self._test = (images[torch.cat(test)], labels[torch.cat(test)])

    def train_batches(self, steps: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Images `[N, 1, 8, 8]` and labels `[N]`, augmented, one pair a step; the same at every call."""
        images, labels = self._train
        batches = shuffled(len(labels), batch_size, generator(self.seed, "order"))
        draws = generator(self.seed, "augmentation")
        for _ in range(steps):
            batch = next(batches)
            yield random_affine(images[batch], draws), labels[batch]

    def test_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Images `[500, 1, 8, 8]` and labels `[500]`, in one batch."""
        yield self._test

    def validation_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Images `[240, 1, 8, 8]` and labels `[240]`, in one batch."""
        yield self._validation


def random_affine(images: Tensor, draws: torch.Generator) -> Tensor:
    """Images `[N, C, H, W]` turned by up to 15°, scaled by up to 15 %, sheared and shifted a little.

    One call for the whole batch; every image has its own map. Draws five numbers an image.
    """
    turn, scale, shear, right, down = torch.rand(5, len(images), generator=draws) * 2 - 1  # [N] each
    angle, scale, shear = turn * math.radians(15), 1 + 0.15 * scale, 0.15 * shear
    cos, sin = angle.cos() * scale, angle.sin() * scale
    right, down = 0.25 * right, 0.25 * down  # of half the image: one pixel of eight
    rows = [torch.stack([cos, shear - sin, right], 1), torch.stack([sin, cos, down], 1)]
    maps = torch.stack(rows, 1).to(images)  # [N, 2, 3]
    grid = F.affine_grid(maps, list(images.shape), align_corners=False)  # [N, H, W, 2]
    return F.grid_sample(images, grid, align_corners=False)
