"""attach() and wrap() in random small models: an error of ours, or the loss of two streams as by hand.

By hand a stock copy runs twice, with and without torch's own encoder at the places, and the plain criterion
is averaged over the two. Cases that no rule of MAY_REFUSE names have to work, and without a warning of ours.
A case that fails is printed so that check(Case(...)) runs it again.
"""

import copy
import math
import os
import re
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor, nn

from attach_cases import KINDS, MAY_REFUSE, Case, Step, cases
from attach_scripts import (
    F64,
    FEATURES,
    C,
    Model,
    attach,
    judge,
    make_criterion,
    make_targets,
    nothing,
    unpack,
)

EXAMPLES = 300  # of each kind of criterion
TALLY: Counter[tuple[str, str, str]] = Counter()  # (kind, reason, what came of a step)


class Attached:
    """The model with its attachment, as a script uses it."""

    def __init__(self, case: Case, model: Model) -> None:
        self.case, self.model, self.returned = case, model, []
        self.attachment = attach(model, case)
        self.criterion = self.attachment.wrap(make_criterion(case))

    def forward(self, x: Tensor) -> Any:
        self.returned.append(self.model(x))
        return self.returned[-1]

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        return judge(self.criterion, outputs, targets, self.case)

    def evaluate(self, x: Tensor, targets: Any, *, in_a_copy: bool = False) -> list[Tensor]:
        model = copy.deepcopy(self.model).eval() if in_a_copy else self.model.eval()
        with torch.no_grad():
            outputs = model(x)
            loss = self.loss(outputs, targets)
        self.model.train()
        return [loss, *unpack(outputs, self.case.container, self.case.names).values()]


class ByHand:
    """A stock copy of the model, run twice, with torch's encoders at the places."""

    def __init__(self, case: Case, stock: Model, inserted: nn.ModuleList) -> None:
        self.case, self.stock, self.returned = case, stock, []
        self.encoders = nn.ModuleList(nn.TransformerEncoderLayer(C, 2, C, 0.0, **F64) for _ in inserted)
        self.encoders.load_state_dict(
            {name.replace(".encoder.", "."): value for name, value in inserted.state_dict().items()}
        )
        self.criterion = make_criterion(case)

    def insert(self, path: str, tokens: Tensor) -> Tensor:
        if path not in self.case.paths:
            return tokens
        encoder = self.encoders[0 if self.case.shared else self.case.paths.index(path)]
        if self.case.before or self.case.layout == "NC":
            return encoder(tokens.unsqueeze(1)).squeeze(1)
        if self.case.layout == "NLC":
            return encoder(tokens)
        if self.case.layout == "LNC":
            return encoder(tokens.transpose(0, 1)).transpose(0, 1)
        return encoder(tokens.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(tokens.shape)

    def forward(self, x: Tensor) -> Any:
        self.returned.append((self.stock.run(x, nothing), self.stock.run(x, self.insert)))
        return self.returned[-1]

    def loss(self, streams: Any, targets: Any) -> Tensor:
        return sum(judge(self.criterion, outputs, targets, self.case) for outputs in streams) / 2

    def evaluate(self, x: Tensor, targets: Any, *, in_a_copy: bool = False) -> list[Tensor]:
        with torch.no_grad():
            outputs = self.stock.run(x, nothing)
            loss = judge(self.criterion, outputs, targets, self.case)
        return [loss, *unpack(outputs, self.case.container, self.case.names).values()]


def train(side: Any, step: Step, batches: list[tuple[Tensor, Any]]) -> tuple[Tensor, list[Tensor]]:
    """The loss of a step, and what evaluations in it gave."""
    (x, y), (_, mixed), (other_x, other_y) = batches
    seen = side.evaluate(other_x, other_y) if step.action == "evaluation before" else []
    outputs = side.forward(x)
    if step.action == "a second loss":
        return 0.7 * side.loss(outputs, y) + 0.3 * side.loss(outputs, mixed), seen
    if step.action == "R-Drop":
        again = side.forward(x)
        return side.loss(outputs, y) + side.loss(again, y), seen
    if step.action == "another batch":
        others = side.forward(other_x)
        return side.loss(others, other_y) + side.loss(outputs, y), seen
    if step.action == "a lost batch":
        side.forward(other_x)
    if step.action in ("evaluation inside", "a copy"):
        seen = side.evaluate(other_x, other_y, in_a_copy=step.action == "a copy")
    return side.loss(outputs, y), seen


def assert_near(actual: Tensor | None, expected: Tensor | None, what: str) -> None:
    """Within 1e-6 of the largest value; no gradient is one of zeros."""
    if expected is None:
        expected = torch.zeros(()) if actual is None else torch.zeros_like(actual)
    actual = torch.zeros_like(expected) if actual is None else actual
    assert actual.shape == expected.shape, f"{what}: {[*actual.shape]}, by hand {[*expected.shape]}"
    difference, largest = (actual - expected).abs().max().item(), expected.abs().max().item()
    assert difference <= 1e-6 * largest + 1e-12, f"{what}: off by {difference}, where by hand {largest}"


def assert_rows(case: Case, outputs: Any, streams: Any) -> None:
    """Of what the model returned: the originals alone, or both streams with the originals first."""
    parts, original, related = (unpack(each, case.container, case.names) for each in (outputs, *streams))
    for name, rows in parts.items():
        one = case.originals or (name in case.unreached and len(rows) == len(original[name]))
        assert_near(rows, original[name] if one else torch.cat([original[name], related[name]]), name)


def assert_gradients(attached: Attached, by_hand: ByHand) -> None:
    """Of the inserted modules and of the model; then all of them take the same small step."""
    inserted = attached.attachment.inserted.state_dict(keep_vars=True)
    pairs = {
        name: (inserted[name.replace(".", ".encoder.", 1)], parameter)
        for name, parameter in by_hand.encoders.named_parameters()
    }
    pairs |= {name: (attached.model.get_parameter(name), p) for name, p in by_hand.stock.named_parameters()}
    for name, (ours, theirs) in pairs.items():
        assert_near(ours.grad, theirs.grad, f"gradient of {name}")
    with torch.no_grad():
        for ours, theirs in pairs.values():
            if theirs.grad is not None:
                theirs -= 0.05 * theirs.grad
                ours.copy_(theirs)
            ours.grad = theirs.grad = None


def assert_may_refuse(error: Exception, what: str, reasons: list[str]) -> None:
    ours = isinstance(error, (ValueError, TypeError, RuntimeError)) and re.match(r"\w+: expected", str(error))
    assert ours, f"{what}: not an error of ours: {type(error).__name__}: {error}"
    assert reasons, f"{what}: has to work, got {error!r}"


def check(case: Case, tally: Callable[[str, list[str]], Any] = lambda outcome, reasons: None) -> None:
    """Every step of the case: refused where that is allowed, or all as by hand."""
    torch.manual_seed(case.seed)
    model = Model(case).double()
    stock = copy.deepcopy(model)
    reasons = [name for name, rule in MAY_REFUSE.items() if any(rule(case, step) for step in case.steps)]
    try:
        attached = Attached(case, model)
    except Exception as error:
        assert_may_refuse(error, "attach", reasons)
        return tally("refused", reasons)
    by_hand, refused = ByHand(case, stock, attached.attachment.inserted), False
    for step in case.steps:
        reasons = [name for name, rule in MAY_REFUSE.items() if rule(case, step)]
        reasons += ["a refused step before"] * refused
        try:
            compare(case, step, attached, by_hand, quiet=not reasons)
            tally("compared", reasons)
        except AssertionError:
            raise
        except Exception as error:
            assert_may_refuse(error, step.action, reasons)
            tally("refused", reasons)
            refused = True
            model.train()
            for module in (model, stock, by_hand.encoders):
                module.zero_grad()
    return None


def compare(case: Case, step: Step, attached: Attached, by_hand: ByHand, *, quiet: bool) -> None:
    """One step on both sides."""
    batches = [
        (torch.randn(samples, math.prod(case.size), FEATURES, **F64), make_targets(case, samples))
        for samples in (step.samples, step.samples, step.others)
    ]
    for side in (by_hand, attached):
        side.returned.clear()
    expected, expected_seen = train(by_hand, step, copy.deepcopy(batches))
    expected.backward()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loss, seen = train(attached, step, batches)
        loss.backward()
    for outputs, streams in zip(attached.returned, by_hand.returned, strict=True):
        assert_rows(case, outputs, streams)
    for one, other in zip(seen, expected_seen, strict=True):
        assert_near(one, other, "evaluation")
    assert_near(loss, expected, "loss")
    assert_gradients(attached, by_hand)
    said = [str(each.message) for each in caught if "batchformer" in str(each.message)]
    if step.samples == 1:
        said = [each for each in said if "no samples are related" not in each]  # which is true
    quiet = quiet and step.action != "a lost batch"
    assert not (quiet and said), f"{step.action}: has to work without a warning, got {said}"


@pytest.fixture(scope="module", autouse=True)
def _table():
    """pytest -s with ATTACH_TABLE=1: training steps that were compared and refused, by kind and reason."""
    yield
    if os.environ.get("ATTACH_TABLE") != "1":
        return
    counted = "".join(f"{kind:>18}" for kind in KINDS)
    sys.stdout.write(f"\n{'compared + refused':50}{counted}\n")
    for reason in ("has to work", *MAY_REFUSE, "a refused step before"):
        numbers = [f"{TALLY[kind, reason, 'compared']} + {TALLY[kind, reason, 'refused']}" for kind in KINDS]
        sys.stdout.write(f"{reason:50}{''.join(f'{number:>18}' for number in numbers)}\n")


@pytest.mark.parametrize("kind", KINDS)
def test_random_models_are_trained_as_by_hand_or_refused(kind, one_thread):
    compared: Counter[bool] = Counter()

    def tally(outcome: str, reasons: list[str]) -> None:
        compared[not reasons] += outcome == "compared"
        TALLY.update((kind, reason, outcome) for reason in reasons or ["has to work"])

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        report_multiple_bugs=False,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(case=cases(kind))
    def trained_as_by_hand_or_refused(case):
        check(case, tally)

    trained_as_by_hand_or_refused()
    assert compared[True] >= EXAMPLES // 3, "the comparison has to be reached"
