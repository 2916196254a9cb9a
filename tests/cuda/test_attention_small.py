"""Attention among few samples in CUDA, against a few lines of float64 PyTorch."""

import math

import pytest
import torch
from harness import Heads, build, dropout_arguments, f32, home, multiplier
from plans_small import Device, backward, forward
from torch import Tensor

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
SEED = -123456789
SPOILED = math.nan  # what memory holds that a kernel has yet to write
# Largest difference as a share of the largest value. Half precision rounds weights and results.
BOUND = {F32: 1e-6, F16: 2e-3, BF16: 1.5e-2}
TF32_BOUND = 2e-3

# dtype, N, L, H, D, position after position, p, units a block (0: the plan's)
SHAPES = [
    (F32, 3, 7, 2, 16, False, 0.5, 0),
    (BF16, 3, 7, 2, 16, True, 0.5, 4),
    (F16, 3, 7, 2, 16, False, 0.0, 2),
    (BF16, 1, 17, 2, 8, False, 0.25, 1),
    (BF16, 2, 19, 1, 64, False, 0.5, 4),
    (F32, 4, 9, 2, 24, True, 0.1, 4),
    (BF16, 4, 9, 2, 24, False, 0.1, 2),
    (F16, 5, 7, 2, 12, True, 0.3, 4),
    (F32, 5, 4, 2, 12, True, 0.3, 4),
    (F32, 7, 3, 1, 7, False, 0.5, 1),
    (BF16, 8, 5, 1, 32, True, 0.2, 2),
    (BF16, 16, 3, 2, 48, False, 0.1, 2),
    (F16, 16, 2, 1, 5, True, 0.1, 1),
    (F16, 17, 2, 1, 64, False, 0.3, 2),
    (F32, 20, 2, 1, 40, True, 0.3, 2),
    (BF16, 33, 1, 2, 48, False, 0.25, 1),
    (F32, 36, 1, 1, 16, True, 0.5, 1),
    (F32, 64, 1, 1, 32, True, 0.5, 1),
    (BF16, 64, 1, 2, 64, True, 0.5, 1),
    (F16, 50, 1, 1, 96, False, 0.1, 1),
    (BF16, 6, 3, 1, 256, False, 0.1, 1),
    (F32, 2, 9, 1, 130, False, 0.1, 1),
]


class Call:
    """One call of the kernels: its tensors, its launches, and what is right."""

    def __init__(self, dtype, samples, positions, heads, width, by_position, p, *, tf32=False, size=1.0):
        torch.manual_seed(samples * 1000 + width)
        tokens, channels = samples * positions, heads * width
        self.sizes = (samples, positions, heads, width)
        self.heads = Heads(samples, samples, samples, positions, heads, by_position)
        self.dtype, self.p, self.tf32, self.width, self.by_position = dtype, p, tf32, width, by_position
        self.qkv = (torch.randn(tokens, 3 * channels) * size).to(dtype)
        self.grad = torch.randn(tokens, channels).to(dtype)

    def plans(self, together=0):
        """Of forward and backward; with `together` units a block."""
        for plan in (forward, backward):
            at = plan(self.heads, self.width, self.dtype, self.tf32)
            assert at is not None
            if together:
                warps = at.block // 32
                units = warps // at.defines["R"]
                blocks = -(-at.grid[0] * units // together)
                shared = at.shared // units * together
                at = at._replace(grid=(blocks,), block=at.block // units * together, shared=shared)
            yield at

    def run(self, mode, together=0, order=0, again=True, qkv=None, grad=None):
        """attended, lse [L, N, H], grad_qkv and attended made again."""
        samples, positions, heads, _ = self.sizes
        qkv, grad = (self.qkv if qkv is None else qkv), (self.grad if grad is None else grad)
        qkv, grad, seed = (each.to(home(mode)) for each in (qkv, grad, torch.tensor(SEED)))
        attended, remade, grad_qkv = (torch.full_like(each, SPOILED) for each in (grad, grad, qkv))
        lse = torch.full((positions, samples, heads), SPOILED, device=home(mode))
        how = [self.heads, f32(self.width**-0.5), seed if self.p else None, *dropout_arguments(self.p)]
        calls = [
            ([qkv, *how, attended, lse], [attended, lse]),
            ([qkv, grad, *how, grad_qkv, remade if again else None], [grad_qkv, remade]),
        ]
        for plan, (arguments, outputs) in zip(self.plans(together), calls, strict=True):
            kernels = build(plan.source, plan.defines, mode)
            kernels.launch(plan.kernel, plan.grid, plan.block, plan.shared, arguments, outputs, seed=order)
        return tuple(each.cpu() for each in (attended, lse, grad_qkv, remade))

    def split(self, rows: Tensor) -> Tensor:
        """[M, parts C] to [parts, L, H, N, D]."""
        samples, positions, heads, width = self.sizes
        order = (positions, samples) if self.by_position else (samples, positions)
        parted = rows.view(*order, -1, heads, width)
        return parted.permute(2, 0, 3, 1, 4) if self.by_position else parted.permute(2, 1, 3, 0, 4)

    def expected(self):
        """The first three of `run`, from Vaswani et al. (2017), eq. 1, in float64."""
        samples, positions, heads, width = self.sizes
        mask = multiplier(SEED, 1, self.p, (positions, heads, samples, samples))
        qkv = self.qkv.double().requires_grad_()
        query, key, value = self.split(qkv)
        scores = query @ key.transpose(-1, -2) / math.sqrt(width)  # [L, H, N, N]
        attended = (torch.softmax(scores, -1) * mask) @ value
        (grad,) = torch.autograd.grad(attended, qkv, self.split(self.grad.double())[0])
        rows = attended.permute(0, 2, 1, 3) if self.by_position else attended.permute(2, 0, 1, 3)
        return rows.reshape(self.grad.shape).detach(), scores.logsumexp(-1).transpose(1, 2).detach(), grad


def off(actual: Tensor, expected: Tensor) -> float:
    """Largest difference, as a share of the largest value."""
    return ((actual.double() - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize(("shape", "together"), [(each[:-1], each[-1]) for each in SHAPES])
def test_attended_and_gradients_are_those_of_the_formula(mode, shape, together):
    call = Call(*shape)
    results = call.run(mode, together, order=3)
    attended, lse, grad = (off(*pair) for pair in zip(results[:3], call.expected(), strict=True))
    assert attended <= BOUND[call.dtype]
    assert grad <= BOUND[call.dtype]
    assert lse <= 1e-6
    assert torch.equal(results[3], results[0])


def test_one_product_of_tf32_does_where_torch_allows_it(mode):
    call = Call(F32, 6, 3, 1, 32, False, 0.1, tf32=True)
    results = call.run(mode)
    for actual, expected in zip(results[:3], call.expected(), strict=True):
        assert 1e-6 < off(actual, expected) < TF32_BOUND


@pytest.mark.parametrize(
    ("samples", "p"), [(3, 0.5), (4, 0.5), (4, 1.0), (6, 0.3), (16, 0.9), (18, 0.5), (20, 1.0)]
)
def test_a_weight_stays_where_the_mask_says_so_and_nowhere_else(mode, samples, p):
    """With equal scores and the unit vectors as values, what is attended is the mask itself."""
    width = 32
    call = Call(F32, samples, 5, 2, width, samples % 8 == 4, p)
    qkv = torch.zeros_like(call.qkv)
    value = call.split(qkv)[2]  # [L, H, N, D], a view
    value.copy_(torch.eye(samples, width).expand_as(value))
    attended = call.split(call.run(mode, qkv=qkv)[0])[0][..., :samples]
    mask = multiplier(SEED, 1, p, attended.shape)
    assert torch.equal(attended != 0, mask != 0)
    torch.testing.assert_close(attended.double(), mask / samples, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("dtype", "samples"), [(F32, 4), (F32, 24), (BF16, 4), (BF16, 24)])
def test_scores_of_a_hundred_thousand_leave_rows_that_sum_to_one(mode, dtype, samples):
    """The same value for all: attended is that value, and no gradient reaches queries and keys."""
    call = Call(dtype, samples, 5, 1, 16, False, 0.0, size=300.0)
    channels = call.grad.shape[1]
    call.qkv[:, 2 * channels :] = 1.0
    query, key, _ = call.split(call.qkv.double())
    assert (query @ key.transpose(-1, -2)).abs().max() / 4 > 1e5
    attended, _, grad, _ = call.run(mode)
    assert (attended == 1).all()
    of_queries_and_keys = grad[:, : 2 * channels]
    # grad_attended is 1 in size, and a row of grad_scores adds 300 times what is off
    assert of_queries_and_keys.abs().max() < {F32: 1e-3, BF16: 1e-3}[dtype]


@pytest.mark.parametrize("samples", [5, 20])
def test_scores_of_a_hundred_thousand_that_differ_by_little_are_told_apart(mode, samples):
    """Each score is a number of float32; a rounding of what 2 is raised to would be off by 4e-3."""
    call = Call(F32, samples, 3, 1, 16, False, 0.2)
    query, key, _ = call.split(call.qkv)
    query.fill_(128.0)
    key.fill_(200.0)
    key[..., 0] += torch.arange(samples) / 64  # scores of 102400 + sample / 2
    attended, lse, grad, _ = call.run(mode)
    expected = call.expected()
    assert off(attended, expected[0]) <= BOUND[F32]
    assert off(lse, expected[1]) <= 1e-6
    assert off(grad[:, 32:], expected[2][:, 32:]) <= BOUND[F32]


def assert_others_do_not_see(mode, what, part, dtype, p):
    """Spoils one number of a position: of queries, keys, values or (part 3) of the gradient."""
    call = Call(dtype, 3, 7, 1, 24, True, p)
    query = call.split(call.qkv)[0]
    query[..., 3] = -query[..., 3].abs()  # nobody attends to a key that is infinite there
    right = call.run(mode)
    qkv, grad = call.qkv.clone(), call.grad.clone()
    spoiled = call.split(qkv)[part] if part < 3 else call.split(grad)[0]
    spoiled[2, :, 1, 3] = what
    results = call.run(mode, qkv=qkv, grad=grad)
    others = torch.arange(7) != 2
    for actual, expected in zip(results, right, strict=True):
        assert torch.equal(actual.view(7, 3, -1)[others], expected.view(7, 3, -1)[others])
    assert not torch.cat((results[0], results[2]), 1).view(7, 3, -1)[2].isfinite().all()


@pytest.mark.parametrize("what", [math.inf, math.nan])
@pytest.mark.parametrize(("part", "dtype"), [(0, F32), (1, BF16), (2, F32), (3, F16)])
def test_what_is_no_number_stays_at_its_position(mode, what, part, dtype):
    """Positions share a tile, and zero times infinity is no number."""
    assert_others_do_not_see(mode, what, part, dtype, 0.2)


@pytest.mark.parametrize(("part", "dtype"), [(2, F16), (3, BF16)])
def test_what_is_no_number_stays_at_its_position_though_every_weight_is_dropped(mode, part, dtype):
    assert_others_do_not_see(mode, math.inf, part, dtype, 1.0)


def test_the_order_of_the_threads_and_of_the_axes_changes_nothing(mode):
    call = Call(BF16, 20, 3, 2, 32, False, 0.3)
    results = [call.run(mode, order=order) for order in (0, 5)]
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second)
    turned = Call(BF16, 20, 3, 2, 32, True, 0.3)
    turned.qkv, turned.grad = (
        each.view(20, 3, -1).transpose(0, 1).reshape(60, -1) for each in (call.qkv, call.grad)
    )
    attended, lse, grad, remade = turned.run(mode)
    back = [each.view(3, 20, -1).transpose(0, 1).reshape(60, -1) for each in (attended, grad, remade)]
    for first, second in zip([back[0], lse, back[1], back[2]], results[0], strict=True):
        assert torch.equal(first, second)


def test_attended_is_made_again_only_if_asked_for(mode):
    call = Call(F16, 2, 9, 1, 16, False, 0.1)
    without, asked = call.run(mode, again=False), call.run(mode)
    assert torch.equal(without[2], asked[2])
    assert without[3].isnan().all()


def test_a_plan_is_none_where_a_device_has_too_little_shared_memory():
    wide = Heads(64, 64, 64, 5, 4, 0)
    assert forward(wide, 256, F32) is not None
    assert backward(wide, 256, F32) is None
    assert backward(wide, 256, BF16) is not None
    assert backward(wide, 256, BF16, device=Device(shared=99 * 1024)) is None
    assert backward(Heads(65, 65, 65, 5, 4, 0), 32, BF16) is None
    assert forward(wide, 272, BF16) is None
