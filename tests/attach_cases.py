"""Random cases for tests of attach(): a small model, places in it, targets, a criterion, training steps.

What is ordinary in all is drawn for every case, and up to two things that are not.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

KINDS = ("cross entropy", "gather", "several outputs", "per sample", "float")
PLAINLY = ("cross entropy", "float")  # torch's criteria, called with one output at a time

BLOCKS = {
    "NLC": ("linear", "attention", "tuple"),
    "LNC": ("linear", "attention", "tuple"),
    "NCHW": ("convolution", "convolutions"),
    "NC": ("linear", "tuple"),
}
LABELS = {
    "cross entropy": ("indices", "soft", "mask"),
    "gather": ("indices", "soft", "mask"),
    "several outputs": ("indices", "soft"),
    "per sample": ("indices", "list of dicts", "tuple of dicts", "list of tensors", "list of ints"),
    "float": ("floats", "column of floats"),
}
ODD_LABELS = {
    "gather": ("row",),
    "several outputs": ("row",),
    "per sample": ("tuple of tensors", "tuple of ints", "tuple of scalars"),
}
ACTIONS = ("plain", "plain", "a second loss", "R-Drop", "another batch", "a lost batch", "evaluation before")
ODDITIES = (
    "auxiliary",
    "unplaced",
    "repeated",
    "labels",
    "dataclass",
    "stacked",
    "scaled",
    "beside",
    "others",
    "evaluation inside",
    "a copy",
)
OF_FUNCTIONS = ("labels", "dataclass", "beside")


@dataclasses.dataclass(frozen=True)
class Step:
    """A training step, and how many samples it has; `others` are of a batch in between."""

    action: str
    samples: int
    others: int


@dataclasses.dataclass(frozen=True)
class Case:
    """A model, places in it, outputs, targets, a criterion and training steps."""

    kind: str
    before: bool
    layout: str  # of what the blocks give
    block: str
    order: tuple[int, ...]  # of the blocks in one forward
    branches: int
    summed: bool  # the branches, before the heads
    heads: int
    head_twice: bool
    auxiliary: bool
    placed: tuple[int, ...]  # heads or blocks
    placed_branches: int
    shared: bool
    originals: bool  # what the model returns
    container: str
    scaled: bool  # the outputs, before they go to the criterion
    dense: bool
    classes: int
    size: tuple[int, ...]
    labels: str
    around: str  # the targets
    beside: tuple[str, ...]
    call: str
    weighted: bool
    steps: tuple[Step, ...]
    seed: int

    @property
    def names(self) -> list[str]:
        """Of the outputs."""
        heads = [f"out{number}" for number in range(self.heads)]
        return heads + ["again"] * self.head_twice + ["aux"] * self.auxiliary

    @property
    def labelled(self) -> list[str]:
        """The names of the targets: one for each output, or one for all."""
        return [f"y_{name}" for name in self.names] if self.kind == "several outputs" else ["y"]

    @property
    def unreached(self) -> list[str]:
        """The outputs that no insertion reaches: they have the rows of the batch."""
        if self.before:
            heads = {f"out{number}" for number in self.placed}
        else:
            missed = self.placed_branches < self.branches
            heads = {f"out{n}" for n in range(self.heads) if not (missed and n % self.branches)}
        if "out0" in heads:
            heads.add("again")
        return [name for name in self.names if name not in heads]

    @property
    def paths(self) -> list[str]:
        """Of the places."""
        if self.before:
            return [f"heads.{number}" for number in self.placed]
        return [f"branches.{branch}.{n}" for branch in range(self.placed_branches) for n in self.placed]


MAY_REFUSE: dict[str, Callable[[Case, Step], bool]] = {
    "an output that no insertion reaches": lambda case, step: bool(case.unreached),
    "a place that runs twice": lambda case, step: (
        case.head_twice and 0 in case.placed
        if case.before
        else any(case.order.count(number) > 1 for number in case.placed)
    ),
    "labels [1, N]": lambda case, step: case.labels == "row",
    "a tuple with one entry a sample": lambda case, step: (
        case.labels in ("tuple of tensors", "tuple of scalars", "tuple of ints")
    ),
    "a list of as many tensors as samples": lambda case, step: (  # of 1 to 3 rows each
        case.labels == "list of tensors" and min(step.samples, step.others) <= 3
    ),
    "a dataclass of targets": lambda case, step: case.around == "dataclass",
    "a dataclass of split outputs": lambda case, step: case.originals and case.container == "dataclass",
    "split outputs with the batch on axis 1": lambda case, step: (
        case.originals and case.container == "stacked"
    ),
    "split outputs that were changed": lambda case, step: case.originals and case.scaled,
    "a vector, list, set or device beside the targets": lambda case, step: bool(
        set(case.beside) & {"weight", "counts", "empty", "seen", "device"}
    ),
    "a tuple of dicts inside of something": lambda case, step: (
        case.labels == "tuple of dicts" and case.around not in ("bare", "keywords")
    ),
    "a tuple of as many tensors as samples": lambda case, step: (
        case.around == "tuple"
        and {"weight", "scale"}.issuperset(case.beside)
        and len(case.labelled) + len(case.beside) in (step.samples, step.others)
    ),
    "another number of samples in between": lambda case, step: (
        step.action in ("another batch", "a lost batch") and step.others != step.samples
    ),
    "an evaluation between forward and loss": lambda case, step: step.action == "evaluation inside",
    "a copy in evaluation": lambda case, step: step.action == "a copy",
}


@st.composite
def cases(draw: st.DrawFn, kind: str) -> Case:
    def one(*options: Any) -> Any:
        return draw(st.sampled_from(options))

    def some(options: Any, least: int, most: int) -> tuple[Any, ...]:
        return tuple(draw(st.lists(st.sampled_from(options), min_size=least, max_size=most, unique=True)))

    count = one(0, 1, 1, 2)
    odd = some([name for name in ODDITIES if kind not in PLAINLY or name not in OF_FUNCTIONS], count, count)
    labels = one(*(ODD_LABELS.get(kind, LABELS[kind]) if "labels" in odd else LABELS[kind]))
    dense = labels == "mask"
    before = not dense and one(True, False)
    layout = one("NLC", "LNC", "NCHW", *(() if dense else ("NC",)))
    size = one((1, 1), (2, 2), (2, 1), (1, 3)) if layout == "NCHW" else (one(1, 2, 3, 4),)
    heads = one(*((2, 3) if kind == "several outputs" or "unplaced" in odd else (1, 1, 2, 3)))
    branches = one(1, 1, 2)
    summed = branches == 2 and (heads == 1 or one(True, False))
    order = one((0,), (0, 1), (0, 1, 2), (0, 1, 0))
    once = [number for number in range(max(order) + 1) if order.count(number) == 1]
    if before:
        placed = (one(*range(heads)),) if "unplaced" in odd else tuple(range(heads))
    else:
        placed = tuple(sorted(some((0, *once) if "repeated" in odd else once, 1, 3)))
    around = one("tuple", "dict", "keywords", *(() if kind == "several outputs" else ("bare", "bare")))
    if "dataclass" in odd:
        around = "dataclass"
    if kind in PLAINLY:
        around = "bare"
    beside = some(("number", "mode", "nothing", "scale"), 0, 2)
    if "beside" in odd:
        beside += some(("weight", "counts", "seen", "empty", "device"), 1, 2)
    classes, call = (
        one(2, 3, 4),
        one(*(f"{a} {b}" for a in ("module", "function") for b in ("positions", "keywords"))),
    )
    actions = (*ACTIONS, *[action for action in ("evaluation inside", "a copy") if action in odd] * 3)
    steps = []
    for _ in range(one(1, 2, 3)):
        samples, others = (one(1, 2, 3, 5, classes, size[0], size[-1]) for _ in range(2))
        steps.append(Step(one(*actions), samples, others if "others" in odd else samples))
    case = Case(
        kind=kind,
        before=before,
        layout=layout,
        block=one(*BLOCKS[layout]),
        order=order,
        branches=branches,
        summed=summed,
        heads=heads,
        head_twice="repeated" in odd and before,
        auxiliary="auxiliary" in odd,
        placed=placed,
        placed_branches=1 if "unplaced" in odd and not summed else branches,
        shared=one(True, False),
        originals=one(False, True),
        container="tuple",
        scaled="scaled" in odd,
        dense=dense,
        classes=classes,
        size=size,
        labels=labels,
        around=around,
        beside=() if around == "bare" else beside,
        call=call,
        weighted=call.startswith("function") and kind == "cross entropy" and one(True, False),
        steps=tuple(steps),
        seed=draw(st.integers(0, 99)),
    )
    containers = ["tuple", "dict", "list", "nested", "namedtuple", "dataclass"]
    containers = ["bare"] * 5 + containers if len(case.names) == 1 else containers
    containers = ["stacked"] if "stacked" in odd and not case.unreached else containers
    return dataclasses.replace(case, container=one(*containers))
