"""The norm with bias, dropout and residual sum, forward and backward, against float64, under the checker."""

import math
from typing import Any, NamedTuple

import harness
import plans_norm as plans
import pytest
import torch
from harness import Rows, build, dropout_arguments, f32, home, i32, multiplier, u32
from plans_norm import Plan, Types
from torch import Tensor

SEED, SITE, EPS = -1234567891011, 4, 1e-5
# A value rounded once; float32 is the result of some.
NEAR = {torch.bfloat16: 0.51 * 2**-7, torch.float16: 0.51 * 2**-10, torch.float32: 1e-6}
SUMS_NEAR = 2e-6

bf16, f16, f32_ = torch.bfloat16, torch.float16, torch.float32
BF16, F16, FLOAT = (Types(each, each, each, each) for each in (bf16, f16, f32_))
MIXED = Types(bf16, bf16, f32_, bf16)  # half precision with the norms in float32
AUTOCAST = Types(f32_, bf16, f32_, bf16)
AUTOCAST_STREAM = Types(f32_, f16, f32_, f32_)  # the gradient comes from the end of the layer


class Case(NamedTuple):
    types: Types
    samples: int
    positions: int
    channels: int
    by_position: bool = False
    p: float = 0.25
    has_branch: bool = True
    has_norm: bool = True
    affine: bool = True  # bias of the branch, shift of the norm
    skip: bool = False

    @property
    def rows(self) -> int:
        return self.samples * self.positions

    @property
    def shape(self) -> Rows:
        return Rows(self.rows, self.channels, self.positions, self.samples, self.by_position)


CASES = [
    Case(BF16, 3, 5, 40),
    Case(BF16, 4, 15, 256, by_position=True, p=0.5, skip=True),
    Case(BF16, 1, 1, 8, p=0.0),
    Case(BF16, 7, 3, 200, p=1.0, affine=False),
    Case(BF16, 2, 9, 512, by_position=True, skip=True),
    Case(BF16, 3, 2, 264),
    Case(BF16, 2, 2, 2048, by_position=True),
    Case(BF16, 1, 3, 8192, skip=True),
    Case(F16, 5, 4, 192, by_position=True, skip=True),
    Case(F16, 2, 13, 256),
    Case(FLOAT, 3, 6, 24, by_position=True),
    Case(FLOAT, 2, 7, 256, p=0.5, skip=True),
    Case(FLOAT, 17, 1, 4, affine=False),
    Case(FLOAT, 2, 5, 300, by_position=True, skip=True),
    Case(FLOAT, 1, 2, 4096),
    Case(MIXED, 6, 3, 96, by_position=True),
    Case(MIXED, 4, 4, 256, skip=True),
    Case(AUTOCAST, 3, 5, 64, by_position=True, skip=True),
    Case(AUTOCAST, 2, 4, 384),
    Case(AUTOCAST_STREAM, 5, 3, 128, by_position=True),
    Case(BF16, 3, 7, 128, has_norm=False, skip=True),
    Case(BF16, 2, 5, 512, by_position=True, has_norm=False, p=0.0),
    Case(FLOAT, 4, 3, 128, has_norm=False, affine=False),
    Case(BF16, 5, 2, 256, by_position=True, has_branch=False, skip=True),
    Case(FLOAT, 2, 3, 260, has_branch=False),
]


def name_of(case: Case) -> str:
    return "-".join((*(plans.ELEMENTS[each] for each in case.types), *map(str, case[1:])))


cases = pytest.mark.parametrize("case", CASES, ids=name_of)


def launch(plan: Plan, mode: str, arguments: list[Any], outputs: list[Tensor | None], seed: int = 0) -> None:
    kernels = build(plan.source, plan.defines, mode)
    written = [each for each in outputs if each is not None]
    kernels.launch(plan.kernel, plan.grid, plan.block, plan.shared, arguments, written, seed)


def unwritten(*shape: int, dtype: torch.dtype, mode: str, wanted: bool = True) -> Tensor | None:
    return torch.full(shape, math.nan, dtype=dtype, device=home(mode)) if wanted else None


def mask_of(case: Case, p: float | None = None) -> Tensor:
    """Multipliers [M, C] in float64, in the order of the rows."""
    shape = (case.samples, case.positions, case.channels)
    mask = multiplier(SEED, SITE, case.p if p is None else p, shape)
    return (mask.transpose(0, 1) if case.by_position else mask).reshape(case.rows, case.channels)


def dropping(case: Case, mode: str) -> list[Any]:
    """seed, site, threshold, scale; the seed is null where nothing is dropped."""
    seed = torch.tensor(SEED, device=home(mode)) if case.p else None
    return [seed, u32(SITE), *dropout_arguments(case.p if case.has_branch else 0.0)]


class Inputs(NamedTuple):
    x: Tensor
    branch: Tensor | None
    bias: Tensor | None
    weight: Tensor | None
    shift: Tensor | None


def inputs(case: Case, mode: str) -> Inputs:
    def drawn(there: bool, dtype: torch.dtype, *shape: int) -> Tensor | None:
        return torch.randn(*shape).to(home(mode), dtype) if there else None

    types, size = case.types, (case.rows, case.channels)
    return Inputs(
        3 + torch.randn(size).to(home(mode), types.stream),
        drawn(case.has_branch, types.branch, *size),
        drawn(case.has_branch and case.affine, types.branch, case.channels),
        drawn(case.has_norm, types.param, case.channels),
        drawn(case.has_norm and case.affine, types.param, case.channels),
    )


def forward(case: Case, mode: str, given: Inputs, seed: int = 0) -> dict[str, Tensor]:
    """What there is of residual, y, y_narrow, mean and rstd."""
    rows, channels, types = case.rows, case.channels, case.types
    flags = {"has_branch": case.has_branch, "has_norm": case.has_norm}
    plan = plans.norm_forward(rows, channels, types, **flags)
    narrow = case.has_norm and types.branch != types.stream
    made = {
        "residual": unwritten(rows, channels, dtype=types.stream, mode=mode, wanted=case.has_branch),
        "y": unwritten(rows, channels, dtype=types.stream, mode=mode, wanted=case.has_norm),
        "y_narrow": unwritten(rows, channels, dtype=types.branch, mode=mode, wanted=narrow),
        "mean": unwritten(rows, dtype=f32_, mode=mode, wanted=case.has_norm),
        "rstd": unwritten(rows, dtype=f32_, mode=mode, wanted=case.has_norm),
    }
    arguments = [*given, *dropping(case, mode), f32(EPS), case.shape, *made.values()]
    launch(plan, mode, arguments, list(made.values()), seed)
    return {name: tensor.cpu() for name, tensor in made.items() if tensor is not None}


def relative_error(actual: Tensor, exact: Tensor) -> float:
    largest = exact.abs().max().item() or 1.0
    return (actual.double().cpu() - exact).abs().max().item() / largest


def assert_near(name: str, actual: Tensor, exact: Tensor, bound: float | None = None) -> None:
    error = relative_error(actual, exact)
    assert error <= (bound or NEAR[actual.dtype]), f"{name}: {error}"


def double(tensor: Tensor | None) -> Tensor | float:
    return 0.0 if tensor is None else tensor.double().cpu()


@cases
def test_the_forward_is_that_of_float64(case, mode):
    given = inputs(case, mode)
    made = forward(case, mode, given)
    kept = double(given.x)
    if case.has_branch:
        exact = kept + mask_of(case) * (double(given.branch) + double(given.bias))
        assert_near("residual", made["residual"], exact)
        kept = made["residual"].double()
    if not case.has_norm:
        return
    mean = kept.mean(1)
    centred = kept - mean[:, None]
    rstd = (centred.square().mean(1) + EPS).rsqrt()
    exact = centred * rstd[:, None] * double(given.weight) + double(given.shift)
    assert_near("mean", made["mean"], mean)
    assert_near("rstd", made["rstd"], rstd)
    assert_near("y", made["y"], exact)
    if "y_narrow" in made:
        assert_near("y_narrow", made["y_narrow"], exact)


@pytest.mark.parametrize("by_position", [False, True])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_the_forward_drops_what_the_definition_says(p, by_position, mode):
    case = Case(FLOAT, 3, 5, 128, by_position, p, has_norm=False)
    ones = torch.ones(case.rows, case.channels, device=home(mode))
    made = forward(case, mode, Inputs(torch.zeros_like(ones), ones, None, None, None))
    assert torch.equal(made["residual"], mask_of(case).float())


def test_a_row_of_one_value_has_no_variance(mode):
    case = Case(FLOAT, 2, 2, 24, has_branch=False, affine=False)
    given = inputs(case, mode)._replace(x=torch.full((4, 24), 1e4, device=home(mode)))
    made = forward(case, mode, given)
    assert torch.equal(made["mean"], torch.full((4,), 1e4))
    assert torch.allclose(made["rstd"], torch.full((4,), EPS**-0.5))
    assert not made["y"].any()


class Partials(NamedTuple):
    """The matrix that all producers of a call share: other columns before and behind those of one."""

    matrix: Tensor
    stride: int
    at: list[int]  # of bias, weight and shift

    def sums(self, channels: int) -> list[Tensor]:
        return [self.matrix.double().cpu()[:, at : at + channels].sum(0) for at in self.at]


def partials_for(case: Case, mode: str, blocks: int) -> Partials:
    stride = 3 * case.channels + 12
    there = [case.has_branch, case.has_norm, case.has_norm]
    at = [5 + i * case.channels if there[i] else -1 for i in range(3)]
    return Partials(unwritten(blocks, stride, dtype=f32_, mode=mode), stride, at)


def backward_inputs(case: Case, mode: str) -> dict[str, Tensor | None]:
    size, types = (case.rows, case.channels), case.types
    given = inputs(case, mode)
    kept = given.x if case.has_norm else None
    mean, rstd = None, None
    if case.has_norm:
        exact = given.x.double()
        mean = exact.mean(1).float()
        rstd = (exact.var(1, correction=0) + EPS).rsqrt().float()
    return {
        "grad_y": torch.randn(size).to(home(mode), types.grad),
        "skip": torch.randn(size).to(home(mode), types.stream) if case.skip else None,
        "residual": kept,
        "mean": mean,
        "rstd": rstd,
        "weight": given.weight,
        "shift": given.shift,
    }


def backward(
    case: Case, mode: str, given: dict[str, Tensor | None], partials: Partials, seed: int = 0
) -> dict[str, Tensor]:
    rows, channels, types = case.rows, case.channels, case.types
    flags = {"has_branch": case.has_branch, "has_norm": case.has_norm}
    plan = plans.norm_backward(rows, channels, types, partials.matrix.shape[0], **flags)
    both = case.has_norm or case.skip
    made = {
        "grad_residual": unwritten(rows, channels, dtype=types.stream, mode=mode, wanted=both),
        "grad_branch": unwritten(rows, channels, dtype=types.branch, mode=mode, wanted=case.has_branch),
        "normed": unwritten(
            rows, channels, dtype=types.branch, mode=mode, wanted=case.has_norm and case.skip
        ),
    }
    arguments = [*given.values(), *dropping(case, mode), case.shape, *made.values()]
    arguments += [partials.matrix, i32(partials.stride), *map(i32, partials.at)]
    launch(plan, mode, arguments, [*made.values(), partials.matrix], seed)
    return {name: tensor.cpu() for name, tensor in made.items() if tensor is not None}


@cases
@pytest.mark.parametrize("blocks", [1, 3])
def test_the_backward_is_that_of_float64(case, blocks, mode):
    given, partials = backward_inputs(case, mode), partials_for(case, mode, blocks)
    made = backward(case, mode, given, partials)
    grad_y = double(given["grad_y"])
    grad, of_weight = grad_y, 0.0
    if case.has_norm:
        mean, rstd = (given[name].double().cpu()[:, None] for name in ("mean", "rstd"))
        hat = (double(given["residual"]) - mean) * rstd
        g = grad_y * double(given["weight"])
        grad = rstd * (g - g.mean(1, keepdim=True) - hat * (g * hat).mean(1, keepdim=True))
        of_weight = (grad_y * hat).sum(0)
        if "normed" in made:
            normed = hat * double(given["weight"]) + double(given["shift"])
            assert_near("normed", made["normed"], normed)
    grad = grad + double(given["skip"])
    if "grad_residual" in made:
        assert_near("grad_residual", made["grad_residual"], grad)
    sums = partials.sums(case.channels)
    if case.has_branch:
        mask = mask_of(case)
        assert_near("grad_branch", made["grad_branch"], grad * mask)
        assert torch.equal(made["grad_branch"] == 0, (mask == 0) | (grad == 0))
        assert_near("bias", sums[0], (grad * mask).sum(0), SUMS_NEAR)
    if case.has_norm:
        assert_near("weight", sums[1], of_weight, SUMS_NEAR)
        assert_near("shift", sums[2], grad_y.sum(0), SUMS_NEAR)


@cases
def test_sums_that_nobody_needs_are_not_left(case, mode):
    given, partials = backward_inputs(case, mode), partials_for(case, mode, 2)
    for name, tensor in backward(case, mode, given, partials._replace(at=[-1, -1, -1])).items():
        assert tensor.isfinite().all(), name
    assert partials.matrix.isnan().all()


@pytest.mark.parametrize("case", [CASES[1], CASES[4], CASES[11]], ids=name_of)
def test_the_order_of_the_threads_changes_nothing(case):
    if missing := harness.emulator_missing():
        pytest.skip(missing)
    given, results = inputs(case, "check"), []
    back = backward_inputs(case, "check")
    for seed in (0, 11, 12):
        partials = partials_for(case, "check", 3)
        made = {**forward(case, "check", given, seed), **backward(case, "check", back, partials, seed)}
        results.append([*made.values(), partials.matrix.nan_to_num()])
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


def test_a_gradient_without_a_norm_or_another_use_is_only_dropped(mode):
    case = Case(BF16, 2, 3, 64, True, 0.5, has_norm=False)
    given, partials = backward_inputs(case, mode), partials_for(case, mode, 2)
    made = backward(case, mode, given, partials)
    assert set(made) == {"grad_branch"}
    assert torch.equal(made["grad_branch"], (double(given["grad_y"]) * mask_of(case)).to(bf16))


def test_plans_spread_few_rows_and_bound_the_sums_of_many():
    assert plans.row_blocks(1) == 1
    assert plans.row_blocks(256) == 64
    assert plans.row_blocks(1024) == 132
    assert plans.row_blocks(1700) == 213
    assert plans.row_blocks(10**6) == 264
    for dtype in plans.ELEMENTS:
        for channels in range(16 // dtype.itemsize, 4 * 8192 // dtype.itemsize, 16 // dtype.itemsize):
            chunks, warps = plans.cut(channels, dtype)
            held = chunks * warps * 32 * 16 // dtype.itemsize
            assert held >= channels
            assert warps == 1 or held / 2 < channels or chunks > 1
