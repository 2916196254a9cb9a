"""The shapes that are measured: those of the systems that BatchFormer trains in."""

from collections.abc import Sequence
from typing import NamedTuple


class Shape(NamedTuple):
    """N samples, L positions, C channels, H heads; the feed-forward is C wide.

    With K keys the N samples attend to those of all ranks, their own among them, as with
    `gather_distributed`, but without the communication.
    """

    name: str
    samples: int
    positions: int
    channels: int
    heads: int = 4
    keys: int = 0  # 0: the samples' own, in the layer

    @property
    def tokens(self) -> int:
        """M = N L."""
        return self.samples * self.positions

    def __str__(self) -> str:
        """The shape as the table prints it."""
        positions = f" L={self.positions}" if self.positions > 1 else ""
        keys = f" K={self.keys}" if self.keys else ""
        return f"{self.name} N={self.samples}{keys}{positions} C={self.channels}"


V1 = (
    Shape("SWAD", 96, 1, 512),
    Shape("RIDE CIFAR", 128, 1, 48, heads=1),
    Shape("V1", 256, 1, 512),
    Shape("V1", 256, 1, 2048),
    Shape("V1", 1024, 1, 512),
    Shape("V1", 4096, 1, 512),
)
V2 = (
    Shape("DETR", 2, 850, 256),
    Shape("DETR", 4, 850, 256),
    Shape("DETR", 16, 850, 256),
    Shape("DeiT-T", 64, 197, 192),
    Shape("DeiT-S", 64, 197, 384),
    Shape("Deformable DETR", 2, 17821, 256),  # four levels of an 800 x 1066 image
)
SCALE = tuple(Shape("scale", 1024 * 2**power, 1, 512) for power in range(6))
GATHER = (
    Shape("one rank", 256, 1, 512, keys=256),
    Shape("one rank", 1024, 1, 512, keys=1024),
    Shape("64 ranks", 64, 1, 512, keys=4096),
    Shape("DETR, 8 ranks", 2, 850, 256, keys=16),
)

GPU = (*V2, *V1, Shape("V1", 4096, 1, 2048))

SETS = {"paper": V2 + V1, "v1": V1, "v2": V2, "gpu": GPU, "scale": SCALE, "gather": GATHER}


def find_shapes(words: Sequence[str]) -> tuple[Shape, ...]:
    """The shapes of these sets; another word selects the shapes whose text has it, as "N=2 L=850" does.

    Raises:
        ValueError: a word that no set and no shape has.
    """
    every = dict.fromkeys(shape for shapes in SETS.values() for shape in shapes)
    found: dict[Shape, None] = {}
    for word in words:
        shapes = SETS.get(word) or [shape for shape in every if word in str(shape)]
        if not shapes:
            raise ValueError(f"expected of {', '.join(SETS)}, or part of the name of a shape, got {word}")
        found.update(dict.fromkeys(shapes))
    return tuple(found)
