"""What a call does not want is a null pointer, and what lies beside a kernel's sums stays what it was."""

import plans_norm
import pytest
import test_activation_kernels as activation
import test_norm_kernels as norm
import torch
from harness import build, f32, home, i32

CASES = [
    norm.Case(norm.BF16, 3, 4, 40, True, 0.5),
    norm.Case(norm.AUTOCAST, 3, 2, 264, False, 0.5),
    norm.Case(norm.FLOAT, 2, 3, 24, affine=False),
]


@pytest.mark.parametrize("case", CASES, ids=norm.name_of)
def test_the_norm_writes_what_is_asked_for(case, mode):
    given = norm.inputs(case, mode)
    whole = norm.forward(case, mode, given)
    plan = plans_norm.norm_forward(case.rows, case.channels, case.types)
    kernels = build(plan.source, plan.defines, mode)
    for missing in whole:
        made = {
            name: torch.full_like(tensor, torch.nan, device=home(mode)) if name != missing else None
            for name, tensor in whole.items()
        }
        named = [made.get(name) for name in ("residual", "y", "y_narrow", "mean", "rstd")]
        arguments = [*given, *norm.dropping(case, mode), f32(norm.EPS), case.shape, *named]
        written = [each for each in named if each is not None]
        kernels.launch(plan.kernel, plan.grid, plan.block, plan.shared, arguments, written)
        for name, tensor in made.items():
            assert tensor is None or torch.equal(tensor.cpu(), whole[name]), (name, missing)


@pytest.mark.parametrize("case", CASES, ids=norm.name_of)
def test_the_backward_of_the_norm_writes_what_is_asked_for(case, mode):
    given, partials = norm.backward_inputs(case, mode), norm.partials_for(case, mode, 2)
    whole = norm.backward(case, mode, given, partials)
    plan = plans_norm.norm_backward(case.rows, case.channels, case.types, 2)
    alone = torch.full_like(whole["grad_branch"], torch.nan, device=home(mode))
    sums = torch.full_like(partials.matrix, torch.nan)
    arguments = [*given.values(), *norm.dropping(case, mode), case.shape, None, alone, None]
    arguments += [sums, i32(partials.stride), *map(i32, partials.at)]
    build(plan.source, plan.defines, mode).launch(
        plan.kernel, plan.grid, plan.block, plan.shared, arguments, [alone, sums]
    )
    assert torch.equal(alone.cpu(), whole["grad_branch"])
    assert torch.equal(sums.nan_to_num(), partials.matrix.nan_to_num())


@pytest.mark.parametrize("columns", [40, 264])
def test_sums_of_an_activation_leave_their_neighbours_alone(columns, mode):
    case = activation.Case(torch.bfloat16, False, 3, 5, columns)
    grad = activation.drawn(case, mode)
    made = activation.backward(case, mode, grad, activation.forward(case, mode, grad))
    columns = torch.arange(made.partials.shape[1])
    theirs = (columns < made.at) | (columns >= made.at + case.columns)
    assert torch.equal(made.partials.isnan().cpu(), theirs.expand(made.partials.shape))


def test_sums_of_a_norm_leave_their_neighbours_alone(mode):
    case = CASES[0]
    partials = norm.partials_for(case, mode, 2)
    norm.backward(case, mode, norm.backward_inputs(case, mode), partials)
    columns = torch.arange(partials.stride)
    theirs = (columns < partials.at[0]) | (columns >= partials.at[2] + case.channels)
    assert torch.equal(partials.matrix.isnan().cpu(), theirs.expand(partials.matrix.shape))
