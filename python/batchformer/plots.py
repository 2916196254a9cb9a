"""Pictures of relations: who attends to whom in a batch."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from batchformer.swap_in.relations import relations

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array: TypeAlias = NDArray[Any]

_NAMES = 24  # more names than this do not fit on an axis
_POINTS, _POINTS_A_LETTER = 210, 5  # widths of a panel and, about, of a letter of a name
_MOST_LINES = 30  # from this many on, lines between classes would hide what is between them
_LEAST_REACH = 0.01  # of the colour scale: a smaller distance from even attention is rounding


def plot_relations(
    heads: Any,
    labels: Any = None,
    *,
    class_names: Any = None,
    counts: Any = None,
    title: str | None = None,
    axes: Any = None,
) -> "Figure":
    """A matplotlib Figure with a panel for each head: how much the row's sample attends to the column's.

    Colours show attention times N: 1 is evenly spread. With labels the samples are sorted by class, lines
    separate the classes, and the title of a panel says how much of the attention is on the own class, the
    sample itself included. Nothing is shown, saved or kept by pyplot: ``figure.savefig("relations.png")``.

    Args:
        heads: the array `[heads, N, N]` that :func:`relations` gives, one matrix `[N, N]`, or a tuple with
            the arguments of :func:`relations`: (attachment, inputs) or (encoder, x).
        labels: the class of each sample, `[N]`: a tensor, an array or a list.
        class_names: the name of each class on the axes; a list, or a dict by label. If None, its label.
        counts: how many samples of each class the training set has, a tensor, list or dict: they stand
            after the names, and classes come from the most frequent to the rarest.
        title: of the figure; what even attention would give is added to it. If None, the number of samples.
        axes: a matplotlib Axes for each head, to draw into; the rest of their figure stays as it is. If None,
            a figure is made.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError: an attachment without its inputs.
        ValueError: a shape that does not fit, a class without name or count, or names without labels.

    Example:
        >>> figure = plot_relations((BatchFormer(64), torch.rand(32, 64)), torch.arange(32) % 4)
        >>> [panel.get_title()[:6] for panel in figure.axes[:4]]
        ['head 1', 'head 2', 'head 3', 'head 4']
    """
    try:
        from matplotlib.colors import TwoSlopeNorm
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError as error:
        raise ImportError(
            f"matplotlib: expected to be installed, as plot_relations() draws with it, got none ({error}): "
            f"pip install matplotlib"
        ) from error
    heads = _heads(heads)
    samples = heads.shape[-1]
    classes = None if labels is None else _Classes(_array(labels), samples, class_names, counts)
    if classes is None and (class_names is not None or counts is not None):
        raise ValueError("labels: expected the class of each sample with class_names or counts, got None")
    if classes is not None:
        heads = heads[:, classes.order][:, :, classes.order]
    panels = None if axes is None else _given(axes, len(heads))
    figure: Figure
    if panels is None:
        columns = _columns(len(heads))
        rows = math.ceil(len(heads) / columns)
        figure = Figure(figsize=(4 * columns + 0.6, 3.5 * rows + 0.6), layout="constrained")
        panels = _new_panels(figure, rows, columns, len(heads))
        _describe(figure, samples, columns, classes, title)
    else:
        figure = panels[0].figure.figure  # also if the panel is in a subfigure
    evenness = heads * samples  # [H, N, N], 1 where attention is spread evenly
    reach = max(float(np.quantile(abs(evenness - 1), 0.995)), _LEAST_REACH)
    norm = TwoSlopeNorm(1, max(0, 1 - reach), 1 + reach)
    for number, (panel, share) in enumerate(zip(panels, evenness, strict=True), start=1):
        picture = panel.imshow(share, norm=norm, cmap="PuOr_r", interpolation="antialiased")
        panel.set_title(f"head {number}", fontsize=10)
        if classes is not None:
            own = 100 * classes.on_own(share / samples)
            panel.set_title(f"head {number}: {own:.1f} % on the own class", fontsize=10)
            classes.draw(panel)
    bar = figure.colorbar(
        picture, ax=panels, label="attention (1: spread evenly)", extend="both" if reach < 1 else "max"
    )
    if reach >= 1:  # the colours below and above 1 then have two scales
        above = MaxNLocator(4).tick_values(1, 1 + reach)
        bar.set_ticks([0, 0.5, 1, *(tick for tick in above if 1 + 0.1 * reach < tick <= 1 + reach)])
    return figure


class _Classes:
    """Samples in the order of their classes, and where each of these begins."""

    def __init__(self, labels: Array, samples: int, names: Any, counts: Any) -> None:
        if labels.shape != (samples,):
            raise ValueError(f"labels: expected shape [{samples}], got {list(labels.shape)}")
        found, class_of = np.unique(labels, return_inverse=True)
        numbers = None
        if counts is not None:
            numbers = [int(_of_class("counts", counts, label)) for label in found.tolist()]
            by_count = np.argsort([-number for number in numbers], kind="stable")
            class_of = np.argsort(by_count)[class_of]  # 0 for the most frequent
            found, numbers = found[by_count], [numbers[rank] for rank in by_count]
        self.order = np.argsort(class_of, kind="stable")
        self.class_of = class_of[self.order]
        self.names = [
            str(label if names is None else _of_class("class_names", names, label))
            for label in found.tolist()
        ]
        if numbers is not None:
            self.names = [f"{name} ({number})" for name, number in zip(self.names, numbers, strict=True)]
        self.counted = numbers is not None
        self.edges = np.flatnonzero(np.diff(self.class_of)) + 1
        self.own = self.class_of[:, None] == self.class_of  # [N, N]

    def on_own(self, shares: Array) -> float:
        """The share of attention `[N, N]` that is on the own class, in the mean over the samples."""
        return float((shares * self.own).sum(1).mean())

    def draw(self, panel: "Axes") -> None:
        """Lines between the classes, unless they are too many, and as many names as fit."""
        for edge in self.edges if len(self.edges) < _MOST_LINES else ():
            panel.axhline(edge - 0.5, color="black", linewidth=0.4)
            panel.axvline(edge - 0.5, color="black", linewidth=0.4)
        samples = len(self.order)
        starts, ends = np.array([0, *self.edges]), np.array([*self.edges, samples])
        ticks: list[float] = []
        names = []
        for centre, name in zip((starts + ends - 1) / 2, self.names, strict=True):
            if not ticks or centre - ticks[-1] >= samples / _NAMES:
                ticks.append(float(centre))
                names.append(name)
        room = _POINTS * min(np.diff(ticks), default=samples) / samples
        fits = _POINTS_A_LETTER * (1 + max(map(len, names))) < room
        panel.set_xticks(ticks, names, rotation=0 if fits else 90)
        panel.set_yticks(ticks, names)
        panel.tick_params(length=0, labelsize=8)


def _heads(heads: Any) -> Array:
    """The matrices `[H, N, N]`.

    Raises:
        TypeError: an attachment without its inputs.
        ValueError: another shape.
    """
    if isinstance(heads, nn.Module):
        raise TypeError(
            "heads: expected the array that relations() gives, or a tuple of its arguments, got "
            f"{type(heads).__name__}; plot_relations((attachment, inputs))"
        )
    array = _array(relations(*heads) if isinstance(heads, tuple) else heads)
    array = array[None] if array.ndim == 2 else array
    if array.ndim != 3 or array.shape[1] != array.shape[2] or array.size == 0:
        raise ValueError(f"heads: expected shape [heads, N, N], got {list(array.shape)}")
    return array


def _array(values: Any) -> Array:
    return np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values)


def _of_class(argument: str, values: Any, label: Any) -> Any:
    """What `values` has for a class."""
    within = label in values if isinstance(values, Mapping) else 0 <= label < len(values)
    if not within:
        raise ValueError(f"{argument}: expected an entry for each class in labels, got none for {label!r}")
    return values[label]


def _given(axes: Any, heads: int) -> list[Any]:
    panels: list[Any] = [*np.ravel(axes)]
    if len(panels) != heads:
        raise ValueError(f"axes: expected {heads}, one for each head, got {len(panels)}")
    return panels


def _columns(heads: int) -> int:
    return 4 if heads > 4 and heads % 4 == 0 else math.ceil(math.sqrt(heads))


def _new_panels(figure: "Figure", rows: int, columns: int, heads: int) -> list[Any]:
    grid: Any = np.ravel(figure.subplots(rows, columns, sharex=True, sharey=True))
    for surplus in grid[heads:]:
        surplus.remove()
    for panel in grid[:heads]:
        panel.spines[["top", "right"]].set_visible(False)
    for panel in grid[max(0, heads - columns) : heads]:
        panel.tick_params(labelbottom=True)  # no panel is below
    return [*grid[:heads]]


def _describe(
    figure: "Figure", samples: int, columns: int, classes: _Classes | None, title: str | None
) -> None:
    title = f"Relations of {samples} samples" if title is None else title
    if classes is not None:
        join = ";\n" if columns == 1 else "; "
        title += f"{join}spread evenly: {100 * classes.own.mean():.1f} % on the own class"
    figure.suptitle(title, fontsize=11)
    of = "" if classes is None else ": its class"
    counts = " (training samples of the class)" if classes is not None and classes.counted else ""
    figure.supxlabel(f"attended sample{of}{counts}", fontsize=10)
    figure.supylabel(f"attending sample{of}", fontsize=10)
