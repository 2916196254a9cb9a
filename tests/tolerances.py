"""How near two results have to be; the only place that says so."""

from collections.abc import Mapping

import torch
from torch import Tensor

RELATIVE = {torch.float64: 1e-10, torch.float32: 1e-5}
HALF = (torch.bfloat16, torch.float16)
HALF_FACTOR = 2.0


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
