"""Letters drawn by Pillow: every letter in every face, once for the process."""

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib import get_data_path
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from examples.glyphs.alphabet import FACES

SIZE = 48  # height and width of a drawing, in pixels
EM = 36  # pixels
BASELINE = 0.72 * SIZE  # the same for all letters, so that no diacritic moves its letter
SUPERSAMPLING = 2


@functools.cache
def glyphs(letters: Sequence[str]) -> Tensor:
    """Drawings `[K, 16, 48, 48]` of K letters in all faces, 0 the paper and 1 the ink; kept in memory.

    Args:
        letters: a string or a tuple of strings of one letter each.
    """
    drawn = [[_draw(font, letter) for font in _fonts()] for letter in letters]
    return torch.from_numpy(np.array(drawn))


@functools.cache
def _fonts() -> tuple[ImageFont.FreeTypeFont, ...]:
    folder = Path(get_data_path()) / "fonts" / "ttf"
    return tuple(ImageFont.truetype(folder / f"{face}.ttf", EM * SUPERSAMPLING) for face in FACES)


def _draw(font: ImageFont.FreeTypeFont, letter: str) -> np.ndarray:
    large = Image.new("L", (SIZE * SUPERSAMPLING, SIZE * SUPERSAMPLING), 0)
    place = (SIZE / 2 * SUPERSAMPLING, BASELINE * SUPERSAMPLING)
    ImageDraw.Draw(large).text(place, letter, fill=255, font=font, anchor="ms")
    return np.asarray(large.resize((SIZE, SIZE), Image.Resampling.BOX), dtype=np.float32) / 255
