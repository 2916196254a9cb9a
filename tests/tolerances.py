"""How near two results have to be; the only place that says so."""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

RELATIVE = {torch.float64: 1e-10, torch.float32: 1e-5}
HALF = (torch.bfloat16, torch.float16)
HALF_FACTOR = 2.0
EXACT_FACTOR = 3.0
EXACT_EPS = 4 * torch.finfo(torch.float32).eps


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Largest difference, as a share of the largest expected value."""
    largest = expected.abs().max().item() if expected.numel() else 0.0
    difference = (actual.double() - expected.double()).abs().max().item() if expected.numel() else 0.0
    return difference / largest if largest else difference


def assert_near(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """Output and gradients, by name, within the bound of the dtype."""
    assert actual.keys() == expected.keys()
    errors = {name: relative_error(actual[name], expected[name]) for name in expected}
    too_far = {name: error for name, error in errors.items() if not error <= RELATIVE[dtype]}
    assert not too_far, f"above {RELATIVE[dtype]}: {too_far}"


def squared_errors(actual: Mapping[str, Tensor], exact: Mapping[str, Tensor]) -> dict[str, float]:
    """Sum of squared differences, by name."""
    return {name: torch.dist(actual[name].double(), exact[name]).item() ** 2 for name in exact}


def assert_no_worse_than_twice(ours: Mapping[str, float], theirs: Mapping[str, float]) -> None:
    """Our error at most twice torch's, by the norm over all draws; both are sums of squares, by name."""
    ratios = {name: (ours[name] / theirs[name]) ** 0.5 for name in theirs}
    too_far = {name: ratio for name, ratio in ratios.items() if not ratio <= HALF_FACTOR}
    assert not too_far, f"our error over torch's, above {HALF_FACTOR}: {too_far}"


# Of single random calls: the factor of torch's own error by which ours may be off from float64, ...
FUZZ_FACTOR = {
    torch.float64: 10.0,
    torch.float32: 3.0,
    torch.bfloat16: HALF_FACTOR,
    torch.float16: HALF_FACTOR,
}
# ... or by how many units in the last place of the tensor's largest value.
FUZZ_UNITS = 4
# A hidden unit nearer to the ReLU's 0, in roundings of torch's own, may fall on either side.
KINK = 8
# A share of the largest value by which nothing is off but what has overflown.
NOT_EVEN_NEAR = 0.1


def shares_of_bound(
    draws: Iterable[tuple[Mapping[str, Tensor], Mapping[str, Tensor], Mapping[str, Tensor]]],
) -> dict[str, float]:
    """Our float32 error, by name, over what is allowed: three of torch's, or 4 eps of the largest value.

    Of our results, torch's and the exact ones for some inputs of a kind; the largest error of each counts, as
    torch's may be small by chance in one. At most 1 is right; where torch's is not finite, anything is.
    """
    errors: dict[str, list[tuple[float, float]]] = {}
    for actual, theirs, exact in draws:
        for name, expected in exact.items():
            scale = expected.abs().max().item() or 1.0
            ours, torchs = ((each[name] - expected).abs().max().item() / scale for each in (actual, theirs))
            if math.isfinite(torchs):
                errors.setdefault(name, []).append((ours if math.isfinite(ours) else math.inf, torchs))
    largest = {name: tuple(map(max, zip(*pairs, strict=True))) for name, pairs in errors.items()}
    return {name: ours / max(EXACT_FACTOR * torchs, EXACT_EPS) for name, (ours, torchs) in largest.items()}
