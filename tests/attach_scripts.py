"""Training scripts for random cases: the model, the line that attaches, the targets, the loss as written."""

import dataclasses
import inspect
from collections import namedtuple
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import batchformer as bf
from attach_cases import PLAINLY, Case

F64 = {"dtype": torch.float64}
C, FEATURES = 8, 3

# Outputs and targets are named parts, packed as scripts pack them.


@cache
def record(names: tuple[str, ...]) -> type:
    return dataclasses.make_dataclass("Record", names)


@cache
def row(names: tuple[str, ...]) -> type:
    return namedtuple("Row", names)


def pack(parts: dict[str, Any], container: str) -> Any:
    values, names = [*parts.values()], [*parts]
    packed = {
        "bare": lambda: values[0],
        "tuple": lambda: tuple(values),
        "list": lambda: values,
        "dict": lambda: parts,
        "dataclass": lambda: record(tuple(names))(*values),
        "namedtuple": lambda: row(tuple(names))(*values),
        "nested": lambda: {"main": values[0], "others": [{"logits": value} for value in values[1:]]},
        "stacked": lambda: torch.stack(values),
    }
    return packed[container]()


def unpack(packed: Any, container: str, names: list[str]) -> dict[str, Any]:
    if container == "dict":
        return packed
    if container == "dataclass":
        return vars(packed)
    if container == "bare":
        packed = [packed]
    if container == "nested":
        packed = [packed["main"], *(each["logits"] for each in packed["others"])]
    assert len(packed) == len(names), f"{len(packed)} parts in a {container}, expected {names}"
    return dict(zip(names, packed, strict=True))


# The model


class Returning(nn.Module):
    """A block that returns its tokens and something else."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(C, C)

    def forward(self, tokens):
        return self.linear(tokens).relu(), "state"


def block(case: Case) -> nn.Module:
    if case.block == "attention":
        return nn.TransformerEncoderLayer(C, 2, C, 0.0, batch_first=case.layout == "NLC")
    if case.block == "convolution":
        return nn.Conv2d(C, C, 3, padding=1)
    if case.block == "convolutions":
        return nn.Sequential(nn.Conv2d(C, C, 3, padding=1), nn.Tanh())
    return Returning() if case.block == "tuple" else nn.Sequential(nn.Linear(C, C), nn.Tanh())


def nothing(path: str, tokens: Tensor) -> Tensor:
    return tokens


class Model(nn.Module):
    """A stem, branches of blocks, pooling, heads; `insert` is for by hand: what to do at which path."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case
        width = 1 if case.kind == "float" else case.classes
        self.stem = nn.Linear(FEATURES, C)
        self.branches = nn.ModuleList(
            nn.ModuleList(block(case) for _ in range(max(case.order) + 1)) for _ in range(case.branches)
        )
        self.aux = nn.Linear(C, width) if case.auxiliary else None
        self.heads = nn.ModuleList(nn.Linear(C, width) for _ in range(case.heads))

    def forward(self, x):
        return self.run(x, nothing)

    def run(self, x: Tensor, insert: Callable[[str, Tensor], Tensor]) -> Any:
        case, stem = self.case, to_layout(self.stem(x), self.case)
        ends = []
        for branch, blocks in enumerate(self.branches):
            tokens = stem
            for number in case.order:
                tokens = blocks[number](tokens)
                tokens = tokens[0] if case.block == "tuple" else tokens
                tokens = insert(f"branches.{branch}.{number}", tokens)
            ends.append(tokens)
        if case.summed:
            ends = [sum(ends)]
        features = [from_layout(tokens, case) for tokens in ends]
        parts = {}
        for number, head in enumerate(self.heads):
            parts[f"out{number}"] = self.shape(
                head(insert(f"heads.{number}", features[number % len(features)]))
            )
        if case.head_twice:
            parts["again"] = self.shape(self.heads[0](insert("heads.0", features[0].sin())))
        if self.aux is not None:
            parts["aux"] = self.shape(self.aux(from_layout(stem, case)))
        return pack(parts, case.container)

    def shape(self, scores: Tensor) -> Tensor:
        if self.case.dense:
            return scores.transpose(1, 2).unflatten(2, self.case.size)  # [N, K, ...]
        return scores.squeeze(1) if self.case.labels == "floats" else scores


def to_layout(tokens: Tensor, case: Case) -> Tensor:
    if case.layout == "NC":
        return tokens.mean(1)
    if case.layout == "NCHW":
        return tokens.transpose(1, 2).unflatten(2, case.size)
    return tokens if case.layout == "NLC" else tokens.transpose(0, 1)


def from_layout(tokens: Tensor, case: Case) -> Tensor:
    """What the heads take: [N, L, C] or [N, C]."""
    if case.layout == "NC":
        return tokens
    if case.layout == "NCHW":
        tokens = tokens.flatten(2).transpose(1, 2)
    if case.layout == "LNC":
        tokens = tokens.transpose(0, 1)
    return tokens if case.dense else tokens.mean(1)


def attach(model: Model, case: Case) -> Any:
    places = case.paths[0] if len(case.paths) == 1 else case.paths
    where = {"before": places} if case.before else {"after": places}
    if not case.before and case.block not in ("attention", "convolution"):  # which tell theirs
        where["layout"] = case.layout
    if case.originals:
        new = "outputs" in inspect.signature(bf.attach).parameters
        where |= {"outputs": "originals"} if new else {"rejoin": True}
    return bf.attach(model, **where, shared=case.shared, nhead=2, dropout=0.0)


# Targets and criteria


def core(case: Case, samples: int) -> Any:
    if case.labels == "soft":
        return torch.rand(samples, case.classes, **F64).softmax(1)
    if case.labels in ("floats", "column of floats"):
        return torch.rand((samples,) if case.labels == "floats" else (samples, 1), **F64)
    shapes = {"indices": (samples,), "row": (1, samples), "mask": (samples, *case.size)}
    if case.labels in shapes:
        return torch.randint(case.classes, shapes[case.labels])
    kind, _, of = case.labels.partition(" of ")
    each = {
        "dicts": lambda: {"label": torch.randint(case.classes, ()), "name": "a"},
        "tensors": lambda: torch.randint(case.classes, (int(torch.randint(1, 4, ())),)),
        "scalars": lambda: torch.randint(case.classes, ()),
        "ints": lambda: int(torch.randint(case.classes, ())),
    }[of]
    return {"list": list, "tuple": tuple}[kind](each() for _ in range(samples))


BESIDE = {
    "number": lambda case: 0.7,
    "mode": lambda case: "half",
    "nothing": lambda case: None,
    "scale": lambda case: torch.tensor(0.3, **F64),
    "weight": lambda case: torch.arange(1.0, case.classes + 1, **F64),
    "counts": lambda case: list(range(1, case.classes + 1)),
    "empty": lambda case: [],
    "seen": lambda case: set(range(case.classes)),
    "device": lambda case: torch.device("cpu"),
}


def factor(parts: dict[str, Any]) -> Any:
    """What is beside the targets, so used that it shows when it was changed."""
    assert parts.get("nothing") is None
    assert parts.get("empty", []) == []
    assert parts.get("device", torch.device("cpu")) == torch.device("cpu")
    result = parts.get("number", 1.0) * {"half": 0.5, "whole": 1.0}[parts.get("mode", "whole")]
    for name in ("scale", "weight"):
        result = result * parts[name].sum() if name in parts else result
    return result * sum(parts.get("counts", [1])) * len(parts.get("seen", {1}))


def make_targets(case: Case, samples: int) -> Any:
    parts = {name: core(case, samples) for name in case.labelled}
    parts |= {name: BESIDE[name](case) for name in case.beside}
    return parts if case.around == "keywords" else pack(parts, case.around)


def nll(scores: Tensor, y: Tensor) -> Tensor:
    """Takes rows by the targets, so that fewer targets than rows raise no error."""
    logs = F.log_softmax(scores, 1)
    if y.is_floating_point():
        return -(logs * y).sum(1).mean()
    return -logs.gather(1, y.unsqueeze(1)).mean()


def of_sample(scores: Tensor, target: Any) -> Tensor:
    label = target["label"] if isinstance(target, dict) else target
    return -F.log_softmax(scores, 0)[torch.as_tensor(label).view(-1)].mean()


def function_of(case: Case) -> Callable[..., Tensor]:
    """A criterion over all outputs and targets, with means over the rows."""

    def criterion(outputs: Any, targets: Any = None, **keywords: Any) -> Tensor:
        scores = unpack(outputs, case.container, case.names)
        if case.around == "keywords":
            parts = keywords
        else:
            parts = unpack(targets, case.around, [*case.labelled, *case.beside])
        total = torch.zeros((), **F64)
        for number, (name, rows) in enumerate(scores.items()):
            y = parts[f"y_{name}" if case.kind == "several outputs" else "y"]
            if case.kind == "per sample":
                loss = torch.stack([of_sample(one, t) for one, t in zip(rows, y)]).mean()  # noqa: B905
            else:
                loss = nll(rows, y.view(-1) if case.labels == "row" else y)
            total = total + loss / (1 + number)
        return total * factor(parts)

    return criterion


PLAIN: dict[str, Callable[[], Callable[..., Tensor]]] = {
    "cross entropy module": nn.CrossEntropyLoss,
    "cross entropy function": lambda: F.cross_entropy,
    "float module": nn.BCEWithLogitsLoss,
    "float function": lambda: F.mse_loss,
}


def make_criterion(case: Case) -> Callable[..., Tensor]:
    return PLAIN[f"{case.kind} {case.call.split()[0]}"]() if case.kind in PLAINLY else function_of(case)


def judge(criterion: Callable[..., Tensor], outputs: Any, targets: Any, case: Case) -> Tensor:
    """The loss as a script writes it."""
    if case.scaled:
        scores = unpack(outputs, case.container, case.names)
        outputs = pack({name: rows / 2 for name, rows in scores.items()}, case.container)
    if case.kind not in PLAINLY:
        return criterion(outputs, **targets) if case.around == "keywords" else criterion(outputs, targets)
    total = torch.zeros((), **F64)
    weight = [torch.arange(1.0, case.classes + 1, **F64)] if case.weighted else []
    for number, scores in enumerate(unpack(outputs, case.container, case.names).values()):
        if case.call.endswith("keywords"):
            loss = criterion(input=scores, target=targets, **({"weight": weight[0]} if weight else {}))
        else:
            loss = criterion(scores, targets, *weight)
        total = total + loss / (1 + number)
    return total
