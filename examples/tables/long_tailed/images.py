"""Images named by lists, as training, validation and test batches for a ResNet."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision.transforms import v2

from examples.tables.draws import generator, shuffled
from examples.tables.long_tailed.groups import by_count
from examples.tables.long_tailed.image_lists import Entry, ListError, Lists

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, by channel

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Loading:
    """How images are loaded, the same for every seed."""

    image_size: int
    batch_size: int  # in evaluation
    workers: int


class ListedImages:
    """The images of the lists; the seed draws the order and the augmentation of those for training."""

    def __init__(self, lists: Lists, loading: Loading, seed: int) -> None:
        self.seed = seed
        labels = torch.tensor([entry.label for entry in lists.train])
        self.counts = labels.bincount(minlength=lists.classes)  # [K]
        self.groups = by_count(self.counts)
        self._loading = loading
        to_tensor = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, DEVIATION)]
        size = loading.image_size
        varied = [v2.RandomResizedCrop(size), v2.RandomHorizontalFlip(), *to_tensor]
        central = [v2.Resize(round(size * 256 / 224)), v2.CenterCrop(size), *to_tensor]
        self._train = _Images(lists.train, v2.Compose(varied))
        self._validation = _Images(lists.validation, v2.Compose(central))
        self._test = _Images(lists.test, v2.Compose(central))

    def train_batches(self, steps: int, batch_size: int) -> Iterator[Pair]:
        """Images `[N, 3, H, W]` and labels `[N]`, augmented, one pair a step; the same at every call."""
        order = shuffled(len(self._train), batch_size, generator(self.seed, "order"))
        draws = generator(self.seed, "augmentation")
        batches = []
        for _ in range(steps):
            batch = next(order)
            batches.append(list(zip(batch.tolist(), _draw(len(batch), draws), strict=True)))
        yield from self._load(self._train, batches)

    def test_batches(self) -> Iterator[Pair]:
        """Images `[N, 3, H, W]` and labels `[N]` of the whole test list, in its order."""
        return self._in_order(self._test)

    def validation_batches(self) -> Iterator[Pair]:
        """The same of the validation list."""
        return self._in_order(self._validation)

    def _in_order(self, images: "_Images") -> Iterator[Pair]:
        size = self._loading.batch_size
        indices = range(len(images))
        batches = [[(i, 0) for i in indices[start : start + size]] for start in indices[::size]]
        return self._load(images, batches)

    def _load(self, images: "_Images", batches: list[list[tuple[int, int]]]) -> Iterator[Pair]:
        loader = DataLoader(
            images,
            batch_sampler=batches,
            num_workers=self._loading.workers,
            collate_fn=_collate,
            generator=generator(self.seed, "workers"),  # or it would draw from the generator of dropout
        )
        for batch in loader:
            if isinstance(batch, ListError):
                raise batch
            yield batch


class _Images(Dataset[tuple[Tensor, int] | ListError]):
    """Images of a list by (index, seed of the augmentation); for an unreadable one, the error itself."""

    def __init__(self, entries: Sequence[Entry], transform: v2.Transform) -> None:
        self.entries = entries
        self.transform = transform

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, drawn: tuple[int, int]) -> tuple[Tensor, int] | ListError:
        index, seed = drawn
        entry = self.entries[index]
        try:
            with Image.open(entry.image) as file:
                image = file.convert("RGB")
        # PIL's words for a file that is no image, or a damaged or a suspiciously large one.
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            return ListError(f"{entry.where}: image cannot be read: {entry.image.absolute()} ({error})")
        with torch.random.fork_rng(devices=[]):
            # torchvision draws from the global generator of the CPU only.
            torch.random.default_generator.manual_seed(seed)
            return self.transform(image), entry.label


def _collate(samples: list[tuple[Tensor, int] | ListError]) -> Pair | ListError:
    """The batch, or the first error: raised in a worker process it would lose its one-line message."""
    return next((sample for sample in samples if isinstance(sample, ListError)), None) or default_collate(
        samples
    )


def _draw(number: int, draws: torch.Generator) -> list[int]:
    seeds: list[int] = torch.randint(2**62, (number,), generator=draws).tolist()
    return seeds
