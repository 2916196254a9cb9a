"""Scenes: one to three letters of various sizes on a ground of two textures, with their annotations.

Each letter has a dark rim, as a sticker has, and its mask covers both: strokes alone would be one or two
pixels wide. Letters do not overlap. The ground is "stuff", of which there are no instances.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_iou, masks_to_boxes

from examples.glyphs.alphabet import FACES
from examples.glyphs.instances import Affine, affine, thickness
from examples.glyphs.rendering import SIZE, glyphs

LETTERS = "aeghkmrstw"  # of different shapes, also when turned a little
STUFF = ("plain", "stripes", "checks")
CANVAS = 64  # height and width, in pixels
MOST = 3  # letters of a scene
SMALLEST, LARGEST = 0.5, 1.3  # of the size of a drawing
RIM = 2  # pixels
DISTORTION = Affine(turn=12.0, scale=0.1, shear=0.2, shift=0.0)
TRIES = 10  # places tried for a letter; if none is free, the letter is left out
AT_ONCE = 256  # scenes, to limit the memory of their drawings


@dataclass(frozen=True)
class Scene:
    """The annotations of a scene with K letters."""

    labels: Tensor  # [K], of LETTERS
    boxes: Tensor  # [K, 4], left, top, right and bottom in pixels, the right and the bottom one excluded
    masks: Tensor  # [K, 64, 64] of bool, without overlap
    ground: Tensor  # [64, 64] of uint8, of STUFF, as it would be without letters


@dataclass(frozen=True)
class Scenes:
    """Images `[N, 1, 64, 64]`, most values in [0, 1], and the annotations of each."""

    images: Tensor
    found: tuple[Scene, ...]

    def __len__(self) -> int:
        return len(self.found)


def scenes(count: int, draws: torch.Generator) -> Scenes:
    """`count` scenes, each with other letters, faces, sizes, places and textures."""
    sizes = [min(AT_ONCE, count - start) for start in range(0, count, AT_ONCE)]
    parts = [_draw(size, draws) for size in sizes]
    return Scenes(
        torch.cat([part.images for part in parts]), tuple(scene for part in parts for scene in part.found)
    )


def _draw(count: int, draws: torch.Generator) -> Scenes:
    images, grounds = _grounds(count, draws)
    counts = torch.randint(1, MOST + 1, (count,), generator=draws)
    labels = torch.randint(len(LETTERS), (int(counts.sum()),), generator=draws)
    inks = _inks(labels, draws)  # [M, 48, 48]
    shapes = F.max_pool2d(inks[:, None], 2 * RIM + 1, 1, RIM)[:, 0] > 0.5  # [M, 48, 48]
    dark = 0.2 * torch.rand(len(labels), 1, 1, generator=draws)
    bright = 0.7 + 0.3 * torch.rand(len(labels), 1, 1, generator=draws)
    stickers = dark + inks * (bright - dark)
    crops = masks_to_boxes(shapes).long() + torch.tensor([0, 0, 1, 1])  # [M, 4]
    places = torch.rand(len(labels), TRIES, 2, generator=draws)

    found = []
    letter = 0
    for image, ground, most in zip(images, grounds, counts.tolist(), strict=True):
        scene = Scene(labels[:0], torch.empty(0, 4), torch.zeros(0, CANVAS, CANVAS, dtype=torch.bool), ground)
        for index in range(letter, letter + most):
            left, top, right, bottom = crops[index].tolist()
            box = _free(scene.boxes, right - left, bottom - top, places[index])
            if box is None:
                continue
            x0, y0, x1, y1 = (int(edge) for edge in box)
            mask = torch.zeros(1, CANVAS, CANVAS, dtype=torch.bool)
            mask[0, y0:y1, x0:x1] = shapes[index, top:bottom, left:right]
            image[0, mask[0]] = stickers[index][shapes[index]]
            scene = Scene(
                torch.cat([scene.labels, labels[index : index + 1]]),
                torch.cat([scene.boxes, box[None]]),
                torch.cat([scene.masks, mask]),
                ground,
            )
        found.append(scene)
        letter += most
    noise = 0.08 * torch.rand(count, 1, 1, 1, generator=draws)
    return Scenes(images + noise * torch.randn(images.shape, generator=draws), tuple(found))


def _inks(labels: Tensor, draws: torch.Generator) -> Tensor:
    """Drawings `[M, 48, 48]` of letters `[M]`, each in a face, a size and a distortion of its own."""
    faces = torch.randint(len(FACES), labels.shape, generator=draws)
    x = thickness(affine(glyphs(LETTERS)[labels, faces][:, None], draws, DISTORTION), draws)  # [M, 1, 48, 48]
    share = torch.rand(len(labels), generator=draws)
    zoom = (math.log(SMALLEST) + share * math.log(LARGEST / SMALLEST)).exp()
    maps = torch.zeros(len(labels), 2, 3)
    maps[:, 0, 0] = maps[:, 1, 1] = 1 / zoom
    grid = F.affine_grid(maps, [len(labels), 1, SIZE, SIZE], align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)[:, 0].clamp(0, 1)


def _free(taken: Tensor, width: int, height: int, places: Tensor) -> Tensor | None:
    """The first of the boxes at the places `[TRIES, 2]` that overlaps none of `taken` `[K, 4]`."""
    room = torch.tensor([CANVAS - width + 1, CANVAS - height + 1])
    corners = (places * room).floor()  # [TRIES, 2]
    boxes = torch.cat([corners, corners + torch.tensor([width, height])], 1)
    free = (box_iou(boxes, taken) == 0).all(1)
    return boxes[free.int().argmax()] if free.any() else None


def _grounds(count: int, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images `[N, 1, 64, 64]` of two textures with a straight border, and the STUFF of each pixel."""
    first = torch.randint(len(STUFF), (count,), generator=draws)
    second = (first + torch.randint(1, len(STUFF), (count,), generator=draws)) % len(STUFF)
    across = _waves(count, draws, 2 * CANVAS, 2 * CANVAS) > 0
    which = torch.where(across, first[:, None, None], second[:, None, None])  # [N, 64, 64]
    stripes, one, other = (_waves(count, draws, 5, 10).sign() for _ in range(3))
    level = 0.35 + 0.2 * torch.rand(2, count, 1, 1, generator=draws)
    strength = 0.08 + 0.1 * torch.rand(count, 1, 1, generator=draws)
    textures = torch.stack([torch.zeros_like(stripes), stripes, one * other])  # [3, N, 64, 64]
    texture = textures.gather(0, which[None])[0]
    image = torch.where(across, level[0], level[1]) + strength * texture
    return image[:, None], which.to(torch.uint8)


def _waves(count: int, draws: torch.Generator, shortest: float, longest: float) -> Tensor:
    """Plane waves `[N, 64, 64]` of any direction, of lengths between the two, in pixels."""
    angle, length, phase = torch.rand(3, count, 1, 1, generator=draws)
    angle, length = 2 * math.pi * angle, shortest + (longest - shortest) * length
    at = torch.arange(CANVAS) - (CANVAS - 1) / 2
    along = at[None, :] * angle.cos() + at[:, None] * angle.sin()  # [N, 64, 64]
    return (2 * math.pi * (along / length + 0.5 * phase - 0.25)).sin()
