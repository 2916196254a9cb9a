"""Draws docs/glyphs.png, letters and instances of them: `python -m examples.glyphs.sheet`."""

import argparse
import io
import sys
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from examples.glyphs.alphabet import CYRILLIC, FACES, GREEK, LATIN
from examples.glyphs.instances import instances
from examples.glyphs.rendering import glyphs

PATH = Path(__file__).parents[2] / "docs" / "glyphs.png"
IN_A_ROW = 32
GREYS = 24
SHOWN = "agéşñöwβθωжщЯ"  # letters of each kind, in every face


def sheet() -> Figure:
    """Letters in all faces, next to them an instance of each; below, every letter in one face."""
    drawings = glyphs(SHOWN)  # [letters, 16, 48, 48]
    varied = instances(drawings.flatten(0, 1), torch.Generator().manual_seed(0))
    varied = varied.view(len(SHOWN), len(FACES), 24, 24)
    every = glyphs(tuple(letter.text for letter in LATIN) + tuple(GREEK + CYRILLIC))[:, 0]
    figure = Figure(figsize=(5.6, 4.5), layout="constrained")
    grid = figure.add_gridspec(2, 2, height_ratios=[39, 24])
    _draw(figure.add_subplot(grid[0, 0]), 1 - drawings, "drawn: a letter a row,\n16 faces of four families")
    _draw(figure.add_subplot(grid[0, 1]), 1 - varied, "varied: turned, sheared,\nthinner, noisy, 24 x 24")
    missing = -len(every) % IN_A_ROW
    every = torch.cat([every, torch.zeros(missing, *every.shape[1:])]).unflatten(0, (-1, IN_A_ROW))
    title = f"all {len(LATIN)} Latin, {len(GREEK)} Greek and {len(CYRILLIC)} Cyrillic letters, in one face"
    _draw(figure.add_subplot(grid[1, :]), 1 - every, title)
    return figure


def _draw(axes: Axes, images: Tensor, title: str) -> None:
    """Images `[rows, columns, H, W]`, 0 black and 1 white, side by side."""
    joined = images.permute(0, 2, 1, 3).flatten(2).flatten(0, 1)
    axes.imshow(joined, cmap="gray", vmin=0, vmax=1, interpolation="antialiased")
    axes.set_title(title, fontsize=10)
    axes.set_axis_off()


def main(arguments: list[str] | None = None) -> int:
    """Exit status, 0."""
    parser = argparse.ArgumentParser(prog="python -m examples.glyphs.sheet", description="Draws the letters.")
    parser.add_argument("--out", type=Path, default=PATH, help="(default: docs/glyphs.png)")
    out = parser.parse_args(arguments).out
    drawn = io.BytesIO()
    sheet().savefig(drawn, dpi=171, facecolor="white")
    Image.open(drawn).convert("L").quantize(GREYS).save(
        out, format="PNG", optimize=True
    )  # a third of the bytes
    return 0


if __name__ == "__main__":
    sys.exit(main())
