"""way-of-a-call.png: the map of the code, from the modules down to the kernels."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from docs.figures.sheet import BLUE, GREY, LETTERS, ORANGE, Point, arrow, box, drawing, write

WHOLE, MAIN, BESIDE = 54.8, 36, 15.6  # widths
LEFT, RIGHT = 0.6, 39.8
HIGH, GAP = 6.6, 3.2
SMALL = {"fontsize": LETTERS - 0.5}


def draw() -> tuple[Figure, None]:
    """The figure; there are no numbers in it."""
    layer = HIGH + 1.8 + GAP
    binding = layer + HIGH + GAP
    ops = binding + HIGH + GAP + 1.6  # between them Python ends and Rust begins, which two words say
    modules = ops + HIGH + GAP
    figure, axes = drawing(modules + HIGH + 0.6)
    about = "nn.Module: parameters, training\nor evaluation, the batch axis"
    folder(axes, (LEFT, modules), (MAIN, HIGH), "python/batchformer/modules", about, BLUE)
    about = "the op: schema, fake kernels,\nautograd, autocast"
    folder(axes, (LEFT, ops), (MAIN, HIGH), "python/batchformer/ops", about, BLUE)
    about = "the binding: converts arguments\nand results, releases the GIL"
    folder(axes, (LEFT, binding), (MAIN, HIGH), "src/py", about, ORANGE)
    about = "checks the input once, chooses the path"
    folder(axes, (LEFT, layer), (WHOLE, HIGH), "src/layer", about, ORANGE)
    paths = {
        "src/cpu": "fused kernels,\nfloat32, float64",
        "src/cuda": "CUDA kernels,\nby NVRTC",
        "src/aten": "any device, any\ndtype, by libtorch",
    }
    for number, (name, about) in enumerate(paths.items()):
        left = LEFT + number * (WHOLE + 1.6) / 3
        folder(axes, (left, 0.6), ((WHOLE - 3.2) / 3, HIGH + 1.2), name, about, ORANGE)
        both_ways(axes, left + (WHOLE - 3.2) / 6, layer)
    for bottom, gap in ((modules, GAP), (ops, GAP + 1.6), (binding, GAP)):
        both_ways(axes, LEFT + MAIN / 2, bottom, gap)
    middle = modules - GAP / 2
    write(axes, (LEFT + MAIN / 2 - 2, middle), "data", ha="right", color=GREY, **SMALL)
    write(axes, (LEFT + MAIN / 2 + 2, middle), "results, errors", ha="left", color=GREY, **SMALL)

    about = "attach() puts\nthem into a model"
    folder(axes, (RIGHT, modules), (BESIDE, HIGH), "swap_in", about, BLUE)
    arrow(axes, (RIGHT - 0.3, modules + 4.6), (LEFT + MAIN + 0.3, modules + 4.6), GREY)
    box(axes, (RIGHT, ops), (BESIDE, HIGH), "torch's layer, for\nwhat is declined", GREY, **SMALL)
    arrow(axes, (LEFT + MAIN + 0.2, modules + 1), (RIGHT + 1.6, ops + HIGH + 0.3), GREY)
    about = "sizes, options,\nwhat is saved"
    folder(axes, (RIGHT, binding), (BESIDE, HIGH), "src/call", about, ORANGE)
    border = ops - (GAP + 1.6) / 2
    axes.plot([RIGHT, RIGHT + BESIDE], [border, border], color=GREY, linewidth=1, linestyle=(0, (4, 3)))
    write(axes, (RIGHT, border + 1.2), "Python", ha="left", color=BLUE, **SMALL)
    write(axes, (RIGHT, border - 1.2), "Rust", ha="left", color=ORANGE, **SMALL)
    return figure, None


def folder(axes: Axes, corner: Point, size: Point, name: str, about: str, colour: str) -> None:
    """A folder and what it does."""
    box(axes, corner, size, "", colour)
    middle, top = corner[0] + size[0] / 2, corner[1] + size[1]
    write(axes, (middle, top - 1.5), name, family="monospace", fontweight="bold", fontsize=LETTERS - 0.5)
    write(axes, (middle, corner[1] + (size[1] - 1.9) / 2), about, **SMALL)


def both_ways(axes: Axes, x: float, bottom: float, gap: float = GAP) -> None:
    """Data goes down, results and errors come back up."""
    arrow(axes, (x - 1.2, bottom - 0.3), (x - 1.2, bottom - gap + 0.3))
    arrow(axes, (x + 1.2, bottom - gap + 0.3), (x + 1.2, bottom - 0.3))
