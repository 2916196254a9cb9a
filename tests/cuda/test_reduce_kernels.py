"""The sums over rows of matrices, in two steps, against float64, under the checker."""

import ctypes
import math

import harness
import plans_norm as plans
import pytest
import torch
from harness import build, home, i32
from torch import Tensor

bf16, f16, f32 = torch.bfloat16, torch.float16, torch.float32
NEAR = {bf16: 0.51 * 2**-7, f16: 0.51 * 2**-10, f32: 1e-6}


class Ends(ctypes.Structure):
    _fields_ = [("at", ctypes.c_int * 8)]


def assert_near(actual: Tensor, exact: Tensor) -> None:
    largest = exact.abs().max().item() or 1.0
    assert (actual.double().cpu() - exact).abs().max().item() / largest <= NEAR[actual.dtype]


def column_partials(matrix: Tensor, partials: Tensor, at: int, mode: str, seed: int = 0) -> None:
    plan = plans.column_partials(*matrix.shape, matrix.dtype, f32, partials.shape[0])
    given = [matrix, *map(i32, matrix.shape), partials, i32(partials.shape[1]), i32(at)]
    build(plan.source, plan.defines, mode).launch(
        plan.kernel, plan.grid, plan.block, plan.shared, given, [partials], seed
    )


@pytest.mark.parametrize("dtype", plans.ELEMENTS)
@pytest.mark.parametrize(
    ("rows", "columns", "blocks"),
    [(1, 8, 1), (5, 40, 2), (33, 256, 3), (200, 8, 2), (7, 264, 5), (64, 1000, 4), (3, 24, 3)],
)
def test_partial_sums_add_up_to_those_of_the_columns(rows, columns, blocks, dtype, mode):
    matrix = torch.randn(rows, columns).to(home(mode), dtype)
    partials = torch.full((blocks, columns + 9), math.nan, device=home(mode))
    column_partials(matrix, partials, 5, mode)
    assert_near(partials[:, 5 : 5 + columns].sum(0), matrix.double().cpu().sum(0))
    assert partials[:, :5].isnan().all()
    assert partials[:, 5 + columns :].isnan().all()


def column_sums(
    partials: Tensor, widths: list[int], first: torch.dtype, second: torch.dtype, mode: str, seed: int = 0
) -> list[Tensor]:
    plan = plans.column_sums(*partials.shape, first, second)
    kinds = [first] * 4 + [second] * 4
    sums = [
        torch.full((width,), math.nan, dtype=kind, device=home(mode))
        for width, kind in zip(widths, kinds, strict=True)
    ]
    ends = Ends((ctypes.c_int * 8)(*torch.tensor(widths).cumsum(0).tolist()))
    outputs = [each if each.numel() else None for each in sums]
    given = [partials, i32(partials.shape[0]), ends, *outputs]
    written = [each for each in outputs if each is not None]
    build(plan.source, plan.defines, mode).launch(
        plan.kernel, plan.grid, plan.block, plan.shared, given, written, seed
    )
    return sums


@pytest.mark.parametrize(("first", "second"), [(bf16, bf16), (bf16, f32), (f16, f32), (f32, f32)])
@pytest.mark.parametrize(
    ("parts", "widths"),
    [
        (1, [1, 0, 0, 0, 0, 0, 0, 0]),
        (3, [24, 8, 16, 8, 8, 8, 8, 8]),
        (17, [0, 0, 0, 0, 5, 7, 0, 1]),
        (40, [30, 0, 33, 0, 0, 0, 2, 64]),
        (264, [12, 4, 4, 4, 4, 4, 4, 4]),
        (2, [300, 100, 400, 100, 0, 100, 100, 100]),
    ],
)
def test_the_sums_of_all_parts_go_each_to_its_vector(parts, widths, first, second, mode):
    partials = torch.randn(parts, sum(widths), device=home(mode))
    sums = column_sums(partials, widths, first, second, mode)
    for made, exact in zip(sums, partials.double().cpu().sum(0).split(widths), strict=True):
        if made.numel():
            assert_near(made, exact)


def test_the_order_of_the_threads_changes_nothing():
    if missing := harness.emulator_missing():
        pytest.skip(missing)
    matrix, results = torch.randn(61, 136).to(bf16), []
    for seed in (0, 11, 12):
        partials = torch.full((3, 136), math.nan)
        column_partials(matrix, partials, 0, "check", seed)
        results.append(column_sums(partials, [100, 0, 0, 0, 0, 36, 0, 0], f32, f32, "check", seed))
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))
