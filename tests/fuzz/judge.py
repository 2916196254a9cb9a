"""What is wrong with a call that ran, by its output and gradients beside those of torch's layer.

Float32 may err three times as much as torch's layer does in float32, half precision twice as much, or a few
units in the last place of the largest value. Torch's error in the one call may be small by luck, so a call
beyond it is judged again by torch's largest error over variations, in which every tensor is scaled by a
factor near 1: what is constant or zero stays so. Where a norm's row is nearly constant, torch's errors lie
orders of magnitude apart, and it takes hundreds to know the largest. In float64 the bound is a share of the
largest value of all, or what torch's own result moves by when its input moves by rounding.

Where a hidden unit is within rounding of the ReLU's 0, the output alone is judged: gradients may jump.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import tolerances
from fuzz.call import Call
from fuzz.theirs import Results, Theirs, errors, gather

VARIATIONS = 1000


@dataclass(frozen=True)
class Wrong:
    """A tensor of the call: "y", "x" (its gradient) or a parameter's name (its gradient); and why."""

    tensor: str
    sentence: str
    bound: float | None = None
    """Of the largest difference from float64; None if it is not there, not finite, or of another kind."""


def judge(call: Call, names: dict[str, Any]) -> Wrong | None:
    """The first thing that is wrong with the call whose lines have left `names`."""
    torch.set_num_threads(1)
    actual = gather(names["y"], names["x"], names["encoder"])
    theirs = Theirs(call, names)
    own, exact = theirs.own(), theirs.exact()
    # Between two layers, a gradient beyond the largest number of half precision is infinite.
    dtype = getattr(torch, call.dtype)
    overflown = dtype in tolerances.HALF and any(
        truth is not None and _largest(truth) > torch.finfo(dtype).max / call.backwards
        for truth in exact.values()
    )
    for name in exact:
        sentence = _another_kind(actual[name], own[name]) or (
            "" if overflown else _not_finite(actual[name], own[name], exact[name])
        )
        if sentence:
            return Wrong(name, f"{_title(name)}: {sentence}")
    if call.one_key and not call.special:
        for name, gradient in actual.items():
            if (
                "in_proj" in name
                and gradient is not None
                and _of_q_and_k(own[name]) == 0 != _of_q_and_k(gradient)
            ):
                sentence = f"of q and k: {_of_q_and_k(gradient):.3g}, has to be 0, as there is one key"
                return Wrong(name, f"{_title(name)} {sentence}")
    return _too_far(call, theirs, actual, own, exact)


def _too_far(call: Call, theirs: Theirs, actual: Results, own: Results, exact: Results) -> Wrong | None:
    found, allowed = errors(actual, exact), errors(own, exact)
    bounds = _bounds(call, allowed, exact, theirs.grad_y)
    far = [name for name in found if not found[name] <= bounds[name]]
    if not far:
        return None
    if call.dtype != "float64" and theirs.nearest_kink() < tolerances.KINK:
        far = [name for name in far if name == "y"]
    for errors_next_to_it in theirs.errors(VARIATIONS if far else 0):
        allowed = {name: max(allowed[name], errors_next_to_it[name]) for name in allowed}
        bounds = _bounds(call, allowed, exact, theirs.grad_y)
        if all(found[name] <= bounds[name] for name in far):
            break
    largest = max(_largest(truth) for truth in exact.values() if truth is not None)
    for name in far:
        if not own[name].isfinite().all():  # no measure is left but the plain one
            bounds[name] = max(bounds[name], tolerances.RELATIVE[torch.float32] * largest)
        if not found[name] <= bounds[name]:
            sentence = f"off by {found[name]:.3g}, may be by {bounds[name]:.3g}"
            return Wrong(name, f"{_title(name)}: {sentence}", bounds[name])
    return None


def _bounds(call: Call, theirs: dict[str, float], exact: Results, grad_y: Tensor) -> dict[str, float]:
    """How far each tensor may be off where torch's layer is off by `theirs`.

    The gradient of a bias is a sum over tokens; where they cancel, it is off by their rounding errors.
    """
    dtype = getattr(torch, call.dtype)
    finfo = torch.finfo(dtype)
    largest = {name: _largest(truth) for name, truth in exact.items() if truth is not None}
    factor = tolerances.FUZZ_FACTOR[dtype]
    if call.dtype == "float64":
        floor = dict.fromkeys(largest, tolerances.RELATIVE[torch.float64] * max(largest.values()))
    else:
        terms = {name: _largest(grad_y) if name.endswith("bias") else 0.0 for name in largest}
        floor = {
            name: tolerances.FUZZ_UNITS * finfo.eps * max(value, terms[name])
            for name, value in largest.items()
        }
    # Float64 itself has its GELU 0 where that is 1e-16 of what else there is.
    least = max(torch.finfo(torch.float64).eps * max(largest.values(), default=0.0), finfo.smallest_normal)
    return {name: max(factor * theirs[name], floor[name], least) for name in largest}


def _another_kind(actual: Tensor | None, own: Tensor | None) -> str:
    if (actual is None) != (own is None):
        return "expected no gradient, got one" if own is None else "expected a gradient, got none"
    if actual is None or own is None:
        return ""
    if (actual.shape, actual.dtype) != (own.shape, own.dtype):
        return f"expected {list(own.shape)} {own.dtype}, got {list(actual.shape)} {actual.dtype}"
    return ""


def _not_finite(actual: Tensor | None, own: Tensor | None, exact: Tensor | None) -> str:
    """Finite where torch is finite and right; not finite somewhere if torch's and the exact result are not.

    Where a square overflows, torch gives NaN or, by the order of its sums, a finite number that is far off;
    where rounding to half precision makes a row constant, some elements are near by chance.
    """
    if actual is None or own is None or exact is None:
        return ""
    right = (own.double() - exact).abs() <= tolerances.NOT_EVEN_NEAR * _largest(exact)
    if own.dtype in tolerances.HALF and not right.all():
        right = torch.zeros_like(right)
    if bool((right & own.isfinite() & ~actual.isfinite()).any()):
        return "not finite where torch's is"
    if not own.isfinite().all() and not exact.isfinite().all() and actual.isfinite().all():
        return "finite, and torch's is not"
    return ""


def _of_q_and_k(gradient: Tensor | None) -> float:
    return _largest(gradient[: len(gradient) // 3 * 2]) if gradient is not None else 0.0


def _largest(tensor: Tensor) -> float:
    return tensor.double().abs().nan_to_num(0.0, 0.0, 0.0).max().item() if tensor.numel() else 0.0


def _title(name: str) -> str:
    return "y" if name == "y" else f"gradient of {name}"
