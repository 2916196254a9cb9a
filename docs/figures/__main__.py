"""Draws them all into docs, or into another folder: `python -m docs.figures [FOLDER]`."""

import sys
from pathlib import Path

from docs.figures import memory, method, speed, speed_on_cuda, way_of_a_call
from docs.figures.sheet import DOCS, save

FIGURES = {
    "method": method.draw,
    "way-of-a-call": way_of_a_call.draw,
    "speed": speed.draw,
    "speed-cuda": speed_on_cuda.draw,
    "memory": memory.draw,
}


def main(arguments: list[str]) -> None:
    """Write a PNG for each."""
    folder = Path(arguments[0]) if arguments else DOCS
    for name, draw in FIGURES.items():
        save(folder / f"{name}.png", *draw())


if __name__ == "__main__":
    main(sys.argv[1:])
