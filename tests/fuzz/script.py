"""The script that is printed for a failing call: the lines that ran, and the comparison that failed."""

from fuzz.call import Call
from fuzz.judge import Wrong


def reproduction(call: Call, wrong: Wrong) -> str:
    """Python that ends with an AssertionError where the call is wrong."""
    exact = wrong.bound is not None
    double = ".double()" if exact else ""
    plain_call = "r = plain(exact, z)"
    plain = (
        f"with {call.mode}: {plain_call}"
        if call.mode and not (exact and "autocast" in call.mode)
        else plain_call
    )
    backward = f"if r.requires_grad: r.backward(grad_y{double}.to(r.dtype), retain_graph=True)"
    actual, expected = _tensor(wrong.tensor, "y", "x", "encoder"), _tensor(wrong.tensor, "r", "z", "exact")
    steps = [plain, *[backward] * call.backwards]
    if exact:
        steps = [
            "from torch.nn.attention import SDPBackend, sdpa_kernel",
            "with sdpa_kernel(SDPBackend.MATH):",
            *(f"    {step}" for step in steps),
        ]
    return call.text + "\n".join(
        (
            "# torch's layer" + (" in float64" if exact else ""),
            f"exact, z = copy.deepcopy(theirs){double}, x.detach(){double}.clone()",
            "z.requires_grad_(x.requires_grad)",
            *steps,
            f"actual, expected = {actual}, {expected}",
            *_check(wrong),
            "",
        )
    )


def _tensor(name: str, y: str, x: str, module: str) -> str:
    return {"y": y, "x": f"{x}.grad"}.get(name, f'{module}.get_parameter("{name}").grad')


def _check(wrong: Wrong) -> list[str]:
    if wrong.bound is not None:
        return [
            "error = (actual - expected).abs().nan_to_num(0, 0, 0).max()",
            f"assert error <= {wrong.bound!r}, error",
        ]
    if "of q and k" in wrong.sentence:
        return ["assert not actual[: len(actual) // 3 * 2].any(), actual"]
    return [
        "assert (actual is None) == (expected is None), (actual, expected)",
        "if actual is not None:",
        "    assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)",
        "    assert torch.equal(actual.isfinite(), expected.isfinite()), (actual, expected)",
    ]
