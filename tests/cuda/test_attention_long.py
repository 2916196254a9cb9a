"""Attention of many queries and keys in CUDA, against a few lines of float64 PyTorch."""

import math

import pytest
import torch
from harness import Heads, build, dropout_arguments, f32, home, i32, multiplier
from plans_long import Device, Plan, backward, forward
from torch import Tensor

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
SEED = -123456789
SPOILED = math.nan  # what memory holds that a kernel has yet to write, and keys that do not count
# Largest difference as a share of the largest value. Half precision rounds weights and results; tensor cores
# cut off what does not fit a float32 sum.
BOUND = {F32: 5e-6, F16: 2e-3, BF16: 1.5e-2}
# Few SMs get large blocks, many get small ones, whatever the sizes of a test are.
FEW, MANY, NARROW = Device(sms=1), Device(sms=132), Device(shared=99 * 1024, sms=1)

# dtype, N, K (0: the samples' own), counted, L, H, D, position after position, p, device
SHAPES = [
    (BF16, 70, 0, 70, 2, 2, 32, False, 0.5, FEW),
    (BF16, 100, 0, 100, 1, 1, 32, True, 0.0, FEW),
    (BF16, 2, 16, 11, 7, 2, 32, True, 0.5, FEW),
    (BF16, 72, 200, 133, 1, 2, 48, True, 0.5, MANY),
    (BF16, 130, 0, 130, 1, 1, 64, True, 0.1, FEW),
    (BF16, 65, 0, 65, 1, 2, 128, True, 0.5, MANY),
    (BF16, 33, 37, 37, 1, 1, 256, False, 0.5, FEW),
    (F16, 150, 0, 150, 1, 1, 128, False, 0.25, MANY),
    (F16, 70, 0, 70, 1, 2, 24, False, 0.3, FEW),
    (F16, 66, 90, 70, 2, 1, 24, True, 0.9, FEW),
    (F16, 5, 90, 71, 3, 1, 16, True, 0.0, FEW),
    (F16, 40, 40, 40, 1, 1, 176, True, 0.25, NARROW),
    (F32, 67, 0, 67, 2, 1, 16, True, 0.5, FEW),
    (F32, 80, 0, 80, 1, 2, 16, False, 0.0, FEW),
    (F32, 20, 70, 65, 1, 2, 20, False, 0.1, MANY),
    (F32, 66, 0, 66, 1, 1, 128, False, 0.3, FEW),
    (F32, 34, 34, 34, 1, 1, 256, True, 0.3, FEW),
]


class Call:
    """One call of the kernels: its tensors, its launches, and what is right."""

    def __init__(
        self, dtype, samples, keys, counted, positions, heads, width, by_position, p, device, tf32=False
    ):
        torch.manual_seed(samples * 1000 + width)
        own, keys, channels = not keys, keys or samples, heads * width
        self.sizes = (samples, keys, positions, heads, width)
        self.heads = Heads(samples, keys, counted, positions, heads, by_position)
        self.dtype, self.p, self.by_position, self.counted = dtype, p, by_position, counted
        self.own, self.tf32, self.device = own, tf32, device
        tokens = [samples * positions, keys * positions]
        if own:
            self.inputs = [torch.randn(tokens[0], 3 * channels)]
        else:
            self.inputs = [torch.randn(tokens[0], channels), torch.randn(tokens[1], 2 * channels)]
        self.inputs = [each.to(dtype) for each in self.inputs]
        self.grad = torch.randn(tokens[0], channels).to(dtype)
        if counted < keys:
            of_keys(self, self.inputs[-1])[..., counted:, :] = SPOILED

    def plans(self) -> list[Plan]:
        how = (self.heads, self.sizes[-1], self.dtype, self.tf32, self.device)
        plans = [forward(*how), backward("BY_QUERY", *how), backward("BY_KEY", *how)]
        assert None not in plans
        return [plan for plan in plans if plan]

    def run(self, mode, order=0):
        """attended, lse [L, N, H], and the gradients of the inputs; then delta and share [L, N, H]."""
        samples, _, positions, heads, width = self.sizes
        at = home(mode)
        grad, *inputs = (each.to(at) for each in (self.grad, *self.inputs))
        seed = torch.tensor(SEED, device=at) if self.p else None
        attended, *grads = (torch.full_like(each, SPOILED) for each in (grad, *inputs))
        lse, delta, share = torch.full((3, positions, samples, heads), SPOILED, device=at)
        parts, grad_parts = (
            [part for each in of for part in each.split(heads * width, 1)] for of in (inputs, grads)
        )
        query, key, value = parts
        grad_query, grad_key, grad_value = grad_parts
        strides = [i32(query.stride(0)), i32(key.stride(0))]
        how = [self.heads, f32(width**-0.5), seed, *dropout_arguments(self.p)]
        given = [query, strides[0], key, value, strides[1]]
        calls = [
            ([*given, *how, attended, lse], [attended, lse]),
            (
                [*given, lse, attended, grad, *how, grad_query, strides[0], delta, share],
                [grad_query, delta, share],
            ),
            (
                [*given, lse, delta, share, grad, *how, grad_key, grad_value, strides[1]],
                [grad_key, grad_value],
            ),
        ]
        for plan, (arguments, outputs) in zip(self.plans(), calls, strict=True):
            kernels = build(plan.source, plan.defines, mode)
            kernels.launch(plan.kernel, plan.grid, plan.block, plan.shared, arguments, outputs, seed=order)
        return [each.cpu() for each in (attended, lse, *grads, delta, share)]

    def mask(self) -> Tensor:
        samples, keys, positions, heads, _ = self.sizes
        return multiplier(SEED, 1, self.p, (positions, heads, samples, keys))

    def expected(self):
        """As `run`, but for delta and share: Vaswani et al. (2017), eq. 1, in float64."""
        inputs = [each.double().nan_to_num().requires_grad_() for each in self.inputs]
        query = split(self, inputs[0], self.sizes[0])[0]
        key, value = of_keys(self, inputs[-1])[..., : self.counted, :]
        scores = query @ key.transpose(-1, -2) / math.sqrt(self.sizes[-1])  # [L, H, N, counted]
        attended = (torch.softmax(scores, -1) * self.mask()[..., : self.counted]) @ value
        grads = torch.autograd.grad(attended, inputs, split(self, self.grad.double(), self.sizes[0])[0])
        rows = attended.permute(0, 2, 1, 3) if self.by_position else attended.permute(2, 0, 1, 3)
        lse = scores.logsumexp(-1).transpose(1, 2)
        return [each.detach() for each in (rows.reshape(self.grad.shape), lse, *grads)]


def split(call: Call, rows: Tensor, count: int) -> Tensor:
    """[count L, parts C] to [parts, L, H, count, D], a view."""
    _, _, positions, heads, width = call.sizes
    parted = rows.view(*((positions, count) if call.by_position else (count, positions)), -1, heads, width)
    return parted.permute(2, 0, 3, 1, 4) if call.by_position else parted.permute(2, 1, 3, 0, 4)


def of_keys(call: Call, rows: Tensor) -> Tensor:
    """Keys and values [2, L, H, K, D], a view."""
    return split(call, rows, call.sizes[1])[-2:]


def off(actual: Tensor, expected: Tensor) -> float:
    """Largest difference, as a share of the largest value."""
    return ((actual.double() - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("shape", SHAPES)
def test_attended_and_gradients_are_those_of_the_formula(mode, shape):
    call = Call(*shape)
    attended, lse, *grads, _, share = call.run(mode, order=len(str(shape)))
    right_attended, right_lse, *right_grads = call.expected()
    assert off(attended, right_attended) <= BOUND[call.dtype]
    assert off(lse, right_lse) <= 1e-6
    assert off(share, torch.ones(1)) <= 1e-5
    for grad, right in zip(grads, right_grads, strict=True):
        for part, right_part in zip(
            grad.split(call.grad.shape[1], 1), right.split(call.grad.shape[1], 1), strict=True
        ):
            assert off(part, right_part) <= BOUND[call.dtype]


def test_keys_that_do_not_count_get_no_gradient(mode):
    call = Call(BF16, 33, 100, 70, 2, 1, 32, False, 0.5, FEW)
    grad = of_keys(call, call.run(mode)[3])
    assert torch.equal(grad[..., 70:, :], torch.zeros_like(grad[..., 70:, :]))
    assert grad[..., :70, :].count_nonzero(-1).bool().all()


@pytest.mark.parametrize("device", [FEW, MANY])
@pytest.mark.parametrize(("keys", "p"), [(68, 0.5), (67, 0.5), (66, 0.1), (64, 0.9), (65, 1.0)])
def test_a_weight_stays_where_the_mask_says_so_and_nowhere_else(mode, keys, p, device):
    """Equal scores and unit vectors for values, queries' gradients and keys show each kernel's mask."""
    call = Call(F32, 65, keys, keys, 2, 1, 80, True, p, device)
    query, (key, value) = split(call, call.inputs[0], 65)[0], of_keys(call, call.inputs[1])
    grad = split(call, call.grad, 65)[0]
    mask = call.mask() != 0

    query.zero_()
    value.copy_(torch.eye(keys, 80).expand_as(value))
    grad.copy_(torch.eye(65, 80).expand_as(grad))
    attended, _, _, grad_keys, *_ = call.run(mode)
    assert torch.equal(split(call, attended, 65)[0][..., :keys] != 0, mask)
    grad_value = of_keys(call, grad_keys)[1][..., :65]  # [L, H, K, N]
    assert torch.equal(grad_value.transpose(-1, -2) != 0, mask)

    # All weights' gradients are 1 before the mask, delta what is kept of them: a dropped key has -delta.
    key.copy_(torch.eye(keys, 80).expand_as(key))
    value.copy_(torch.eye(1, 80).expand_as(value))
    grad.copy_(value[..., :1, :].expand_as(grad))
    grad_query = split(call, call.run(mode)[2], 65)[0][..., :keys]
    kept = mask.double().mean(-1, keepdim=True)
    expected = (mask.double() - kept) / (1 - min(p, 0.9999)) / keys / math.sqrt(80)
    assert (grad_query - (expected if p < 1 else 0)).abs().max() <= 1e-3 / keys


def test_everything_is_dropped_to_zeros(mode):
    attended, _, *grads, _, _ = Call(BF16, 70, 0, 70, 1, 1, 32, True, 1.0, FEW).run(mode)
    for each in (attended, *grads):
        assert torch.equal(each, torch.zeros_like(each))


def test_one_product_of_tf32_does_where_torch_allows_it(mode):
    call = Call(F32, 70, 0, 70, 1, 1, 16, True, 0.1, FEW, tf32=True)
    for actual, expected in zip(call.run(mode)[:3], call.expected(), strict=True):
        assert off(actual, expected) < 2e-3
    assert off(call.run(mode)[0], call.expected()[0]) > BOUND[F32]


@pytest.mark.parametrize("device", [FEW, MANY])
def test_scores_of_a_hundred_thousand_cost_no_more_than_their_own_rounding(mode, device):
    """Scores of one size that differ by a few units, which float32 rounds to 1/128: as torch's own does."""
    call = Call(F32, 66, 0, 66, 1, 1, 80, True, 0.0, device)
    for part in split(call, call.inputs[0], 66)[:2]:
        part[..., 0] = (1e5 * math.sqrt(80)) ** 0.5
    attended, _, grad, _, share = call.run(mode)
    right_attended, _, right_grad = call.expected()
    qkv = call.inputs[0].clone().requires_grad_()
    query, key, value = split(call, qkv, 66)
    of_torch = torch.softmax(query @ key.transpose(-1, -2) / math.sqrt(80), -1) @ value
    (grad_of_torch,) = torch.autograd.grad(of_torch, qkv, split(call, call.grad, 66)[0])
    assert off(share, torch.ones(1)) > 1e-4  # what the kept lse alone would have left in every gradient
    factor = 2 if mode == "check" else 8  # a tensor core cuts off where others round
    assert off(attended, right_attended) <= factor * off(of_torch.detach().view_as(attended), right_attended)
    assert off(grad, right_grad) <= factor * off(grad_of_torch, right_grad)
    sums = split(call, grad, 66)[0][..., 0]  # all keys have the same value here: the sum of a row of grad_S
    assert sums.abs().max() <= 1e-5 * call.inputs[0].abs().max()


@pytest.mark.parametrize("what", [math.nan, math.inf])
@pytest.mark.parametrize(("part", "device"), [(0, MANY), (1, FEW), (2, MANY)])
def test_what_is_no_number_stays_at_its_position_and_head(mode, what, part, device):
    call = Call(BF16, 66, 0, 66, 2, 2, 32, False, 0.5, device)
    clean = call.run(mode)
    split(call, call.inputs[0], 66)[part, 1, 0, 65, 3] = what
    spoiled = call.run(mode)
    for number in (0, 2):
        before, after = (split(call, of[number], 66) for of in (clean, spoiled))
        assert torch.equal(before[:, 0], after[:, 0])
        assert torch.equal(before[:, 1, 1], after[:, 1, 1])
    attended = split(call, spoiled[0], 66)[0, 1, 0]  # [N, D]
    if part == 0:  # one query
        assert attended[65].isnan().all()
        assert not attended[:65].isnan().any()
    else:  # a key or a value of all queries
        assert not attended.isfinite().all()


@pytest.mark.parametrize("device", [FEW, MANY])
def test_the_order_of_the_threads_and_of_the_axes_changes_nothing(device):
    sizes = (BF16, 70, 0, 70, 2, 2, 32)
    call, other = Call(*sizes, False, 0.5, device), Call(*sizes, True, 0.5, device)
    for to, of in ((other.inputs[0], call.inputs[0]), (other.grad, call.grad)):
        split(other, to, 70).copy_(split(call, of, 70))
    results = call.run("check")
    for order in (1, 2):
        assert all(map(torch.equal, results, call.run("check", order)))
    for number, each in enumerate(other.run("check")):
        if number in (0, 2):
            assert torch.equal(split(other, each, 70), split(call, results[number], 70))
        else:
            assert torch.equal(each, results[number])


@pytest.mark.parametrize("dtype", [BF16, F32])
@pytest.mark.parametrize("limit", [99, 163, 227])
def test_plans_fit_a_device_and_leave_blocks_for_most_sms(dtype, limit):
    device = Device(shared=limit * 1024, sms=132)
    for width in (16, 48, 64, 128, 240, 256):
        for samples in (65, 96, 256, 1024, 4096):
            heads = Heads(samples, samples, samples, 1, 4, 1)
            for plan in (
                forward(heads, width, dtype, device=device),
                backward("BY_QUERY", heads, width, dtype, device=device),
                backward("BY_KEY", heads, width, dtype, device=device),
            ):
                if plan is None:
                    assert dtype == F32
                    assert width >= {99: 240, 163: 256}[limit]
                    continue
                assert plan.shared <= device.shared
                assert plan.block <= 256
                if samples >= 1024:
                    assert plan.grid[0] >= 128
