"""The activation with its dropout, forward and backward, against float64, under the checker."""

import math
from typing import NamedTuple

import harness
import plans_norm as plans
import pytest
import torch
from harness import Rows, build, dropout_arguments, home, i32, multiplier
from torch import Tensor

SEED, SITE = 987654321987, 2
NEAR = {torch.bfloat16: 0.51 * 2**-7, torch.float16: 0.52 * 2**-10, torch.float32: 5e-7}
SUMS_NEAR = {torch.bfloat16: 2e-5, torch.float16: 2e-5, torch.float32: 2e-6}

bf16, f16, f32 = torch.bfloat16, torch.float16, torch.float32


class Case(NamedTuple):
    dtype: torch.dtype
    gelu: bool
    samples: int
    positions: int
    columns: int
    by_position: bool = False
    p: float = 0.25

    @property
    def rows(self) -> int:
        return self.samples * self.positions

    @property
    def shape(self) -> Rows:
        return Rows(self.rows, self.columns, self.positions, self.samples, self.by_position)


SHAPES = [
    (1, 1, 8, False, 0.5),
    (3, 5, 40, True, 0.25),
    (2, 17, 256, False, 0.5),
    (19, 2, 264, True, 0.1),
    (4, 3, 520, True, 1.0),
    (2, 5, 128, False, 0.0),
]
CASES = [
    Case(dtype, gelu, *shape) for dtype in (bf16, f16, f32) for gelu in (False, True) for shape in SHAPES
]


def name_of(case: Case) -> str:
    return "-".join((plans.ELEMENTS[case.dtype], "gelu" if case.gelu else "relu", *map(str, case[2:])))


cases = pytest.mark.parametrize("case", CASES, ids=name_of)


def mask_of(case: Case) -> Tensor:
    """Multipliers [M, F] in float64, in the order of the rows."""
    mask = multiplier(SEED, SITE, case.p, (case.samples, case.positions, case.columns))
    return (mask.transpose(0, 1) if case.by_position else mask).reshape(case.rows, case.columns)


def seed_of(case: Case, mode: str) -> Tensor | None:
    return torch.tensor(SEED, device=home(mode)) if case.p else None


def drawn(case: Case, mode: str, spread: float = 1.0) -> Tensor:
    return (spread * torch.randn(case.rows, case.columns)).to(home(mode), case.dtype)


def forward(case: Case, mode: str, z: Tensor, in_place: bool = False, seed: int = 0) -> Tensor:
    plan = plans.activation_forward(case.rows, case.columns, case.dtype, case.gelu)
    activated = z.view_as(z) if in_place else torch.full_like(z, math.nan)
    given = [z, seed_of(case, mode), *dropout_arguments(case.p), case.shape, activated]
    written = {"updates" if in_place else "outputs": [activated]}
    build(plan.source, plan.defines, mode).launch(
        plan.kernel, plan.grid, plan.block, plan.shared, given, seed=seed, **written
    )
    return activated


def act(case: Case, z: Tensor) -> Tensor:
    return z * torch.special.erfc(-z / math.sqrt(2)) / 2 if case.gelu else z.relu()


def slope(case: Case, z: Tensor) -> Tensor:
    if not case.gelu:
        return (z > 0).double()
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    return torch.special.erfc(-z / math.sqrt(2)) / 2 + z * density


def assert_near(actual: Tensor, exact: Tensor, bound: float) -> None:
    largest = exact.abs().max().item() or 1.0
    error = (actual.double().cpu() - exact).abs().max().item() / largest
    assert error <= bound


@cases
def test_the_forward_is_that_of_float64(case, mode):
    z = drawn(case, mode, 2)
    exact = act(case, z.double().cpu()) * mask_of(case)
    activated = forward(case, mode, z)
    assert_near(activated, exact, NEAR[case.dtype])
    assert torch.equal(activated.cpu() == 0, exact.to(case.dtype) == 0)


@pytest.mark.parametrize("case", [case for case in CASES if not case.gelu], ids=name_of)
def test_relu_may_write_over_what_it_reads(case, mode):
    z = drawn(case, mode)
    elsewhere = forward(case, mode, z)
    assert torch.equal(forward(case, mode, z, in_place=True), elsewhere)


class Backward(NamedTuple):
    grad_z: Tensor
    activated: Tensor | None
    partials: Tensor
    at: int


def backward(
    case: Case,
    mode: str,
    grad: Tensor,
    kept: Tensor,
    blocks: int = 3,
    *,
    in_place: bool = False,
    bias: bool = True,
    seed: int = 0,
) -> Backward:
    plan = plans.activation_backward(case.rows, case.columns, case.dtype, case.gelu, blocks)
    grad_z = grad.view_as(grad) if in_place else torch.full_like(grad, math.nan)
    activated = torch.full_like(grad, math.nan) if case.gelu and bias else None
    stride, at = case.columns + 7, 3 if bias else -1
    partials = torch.full((blocks, stride), math.nan, device=home(mode))
    # ReLU's mask is in what it has kept.
    given = [grad, kept, seed_of(case, mode) if case.gelu else None, *dropout_arguments(case.p), case.shape]
    given += [grad_z, activated, partials, i32(stride), i32(at)]
    outputs = [each for each in (activated, partials) if each is not None]
    written = {"outputs": outputs, "updates": [grad_z]} if in_place else {"outputs": [*outputs, grad_z]}
    build(plan.source, plan.defines, mode).launch(
        plan.kernel, plan.grid, plan.block, plan.shared, given, seed=seed, **written
    )
    return Backward(grad_z, activated, partials, at)


@cases
@pytest.mark.parametrize("blocks", [1, 4])
def test_the_backward_is_that_of_float64(case, blocks, mode):
    z, grad = drawn(case, mode, 2), drawn(case, mode)
    activated, mask = forward(case, mode, z), mask_of(case)
    made = backward(case, mode, grad, z if case.gelu else activated, blocks)
    exact = grad.double().cpu() * mask * slope(case, z.double().cpu())
    assert_near(made.grad_z, exact, NEAR[case.dtype])
    assert torch.equal(made.grad_z.cpu() == 0, exact.to(case.dtype) == 0)
    sums = made.partials.double().cpu()[:, made.at : made.at + case.columns].sum(0)
    assert_near(sums, exact.sum(0), SUMS_NEAR[case.dtype])
    if case.gelu:
        assert torch.equal(made.activated, activated)


@cases
def test_the_gradient_may_lie_where_that_of_the_result_lay(case, mode):
    z, grad = drawn(case, mode), drawn(case, mode)
    kept = z if case.gelu else forward(case, mode, z)
    elsewhere = backward(case, mode, grad, kept)
    alone = backward(case, mode, grad, kept, in_place=True, bias=False)
    assert torch.equal(alone.grad_z, elsewhere.grad_z)
    assert alone.partials.isnan().all()


@pytest.mark.parametrize("dtype", plans.ELEMENTS)
def test_relu_takes_what_is_no_number_as_torch_does(dtype, mode):
    case = Case(dtype, False, 1, 1, 16, p=0.0)
    z = drawn(case, mode)
    z[0, :4] = torch.tensor([math.nan, math.inf, -math.inf, -0.0])
    grad = torch.ones_like(z)
    activated = forward(case, mode, z)
    assert torch.equal(activated.nan_to_num(7), torch.relu(z).nan_to_num(7))
    expected = torch.ops.aten.threshold_backward(grad, activated, 0)
    assert torch.equal(backward(case, mode, grad, activated).grad_z, expected)


@pytest.mark.parametrize("dtype", plans.ELEMENTS)
def test_gelu_is_right_over_its_whole_range(dtype, mode):
    # Each value by itself, in the far left tail, too, where torch's own is one minus one.
    case = Case(dtype, True, 1, 1, 8192, p=0.0)
    z = torch.linspace(-9 if dtype == f32 else -5, 9, 8192).to(home(mode), dtype)[None]
    ones, wide = torch.ones_like(z), z.double().cpu()
    made, activated = backward(case, mode, ones, z), forward(case, mode, z)
    assert torch.equal(made.activated, activated)
    exact = act(case, wide)
    # A device's powers and quotients are within 2 units in the last place.
    rounding = (exact.abs() * max(NEAR[dtype], 1.5e-6)).clamp(min=2**-25 if dtype == f16 else 0)
    assert ((activated.double().cpu() - exact).abs() <= rounding).all()
    assert_near(made.grad_z, slope(case, wide), NEAR[dtype])
    edges = z[:, :8].clone()
    edges[0, :3] = torch.tensor([math.inf, -300.0, math.nan])
    activated = forward(case._replace(columns=8), mode, edges)[0, :3]
    assert activated[0] == math.inf
    assert activated[1] == 0
    assert activated[2].isnan()


@pytest.mark.parametrize("gelu", [False, True])
def test_the_order_of_the_threads_changes_nothing(gelu):
    if missing := harness.emulator_missing():
        pytest.skip(missing)
    case, results = Case(bf16, gelu, 3, 11, 264, True, 0.5), []
    z, grad = drawn(case, "check"), drawn(case, "check")
    for seed in (0, 11, 12):
        activated = forward(case, "check", z, seed=seed)
        made = backward(case, "check", grad, z if gelu else activated, seed=seed)
        results.append([activated, made.grad_z, made.partials.nan_to_num()])
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))
