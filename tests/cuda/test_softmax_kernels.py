"""Softmax and dropout of scores in memory, in CUDA, against float64 PyTorch."""

import math

import pytest
import torch
from harness import Heads, build, dropout_arguments, f32, home, i32, multiplier
from plans_long import softmax
from torch import Tensor

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
SEED, SCALE = -5, 0.3
SPOILED = math.nan  # what memory holds that a kernel has yet to write, and scores of keys that do not count
BOUND = {F32: 5e-7, F16: 1e-3, BF16: 8e-3}

# dtype, dtype of the scores, N, K, counted, L, H, p, first query, queries, over the scores
SHAPES = [
    (BF16, BF16, 3, 64, 64, 1, 2, 0.0, 0, 3, False),
    (BF16, BF16, 3, 64, 37, 2, 1, 0.5, 0, 3, False),
    (BF16, F32, 5, 200, 200, 1, 1, 0.3, 0, 5, False),
    (BF16, BF16, 4, 600, 513, 1, 1, 0.3, 0, 4, True),
    (BF16, BF16, 2, 1032, 1032, 1, 1, 0.1, 1, 1, True),
    (BF16, F32, 1, 4096, 4096, 1, 1, 0.3, 0, 1, False),
    (BF16, BF16, 1, 4100, 4001, 1, 1, 0.3, 0, 1, True),
    (F16, F16, 5, 67, 67, 1, 2, 0.5, 0, 5, False),
    (F16, F16, 9, 24, 24, 2, 2, 0.25, 3, 4, True),
    (F16, F32, 2, 130, 100, 2, 1, 0.9, 0, 2, False),
    (F16, F16, 1, 5000, 5000, 1, 1, 0.0, 0, 1, False),
    (F32, F32, 5, 66, 66, 1, 2, 0.25, 0, 5, False),
    (F32, F32, 9, 130, 130, 2, 2, 0.1, 3, 4, True),
    (F32, F32, 2, 1028, 1000, 1, 1, 0.3, 0, 2, True),
    (F32, F32, 1, 4096, 4096, 1, 1, 0.3, 0, 1, True),
    (F32, F32, 1, 4104, 4104, 1, 1, 0.5, 0, 1, False),
    (F32, F32, 1, 1, 1, 3, 1, 0.5, 0, 1, False),
]


class Call:
    def __init__(
        self, dtype, score, samples, keys, counted, positions, heads, p, first, queries, over, size=4.0
    ):
        torch.manual_seed(keys)
        self.heads = Heads(samples, keys, counted, positions, heads, 1)
        self.dtype, self.p, self.counted, self.over = dtype, p, counted, over
        self.score, self.first, self.queries = score, first, queries
        shape = (positions * heads, queries, keys)
        self.scores, self.grad = (torch.randn(shape).mul(by).to(score) for by in (size, 1.0))
        self.scores[..., counted:] = self.grad[..., counted:] = SPOILED
        self.lse_shape = (positions, samples, heads)

    def run(self, mode, order=0):
        """The weights, lse [L, N, H], the weights made again, and the gradient of the scores."""
        at = home(mode)
        seed = torch.tensor(SEED, device=at) if self.p else None
        how = [self.heads, i32(self.first), i32(self.queries), f32(SCALE), seed, *dropout_arguments(self.p)]
        lse = torch.full(self.lse_shape, SPOILED, device=at)

        def memory(like: Tensor) -> Tensor:
            return like.view_as(like) if self.over else torch.full_like(like, SPOILED, dtype=self.dtype)

        scores = self.scores.to(at, copy=True)
        weights = memory(scores)
        outputs = [weights, lse]
        self.launch("softmax_forward", mode, [scores, *how, weights, lse], outputs, order)
        scores, grad = self.scores.to(at, copy=True), self.grad.to(at, copy=True)
        again, grad_scores = memory(scores), memory(grad)
        outputs = [again, grad_scores]
        self.launch("softmax_backward", mode, [scores, grad, *how, again, grad_scores], outputs, order)
        return [each.cpu() for each in (weights, lse, again, grad_scores)]

    def launch(self, kernel, mode, arguments, outputs, order):
        plan = softmax(kernel, self.heads, self.queries, self.dtype, self.score)
        build(plan.source, plan.defines, mode).launch(
            plan.kernel,
            plan.grid,
            plan.block,
            plan.shared,
            arguments,
            () if self.over else outputs,
            seed=order,
            updates=outputs if self.over else (),
        )

    def mask(self) -> Tensor:
        samples, keys, positions, heads = (
            getattr(self.heads, name) for name in ("samples", "keys", "positions", "heads")
        )
        mask = multiplier(SEED, 1, self.p, (positions * heads, samples, keys))
        mask[..., self.counted :] = 0
        return mask[:, self.first : self.first + self.queries]

    def expected(self):
        """As `run`, in float64; lse as [L H, queries]."""
        scores = self.scores[..., : self.counted].double().requires_grad_()
        weights = torch.softmax(scores * SCALE, -1) * self.mask()[..., : self.counted]
        (grad,) = torch.autograd.grad(weights, scores, self.grad[..., : self.counted].double())
        rest = (0, self.heads.keys - self.counted)
        weights, grad = (torch.nn.functional.pad(each, rest) for each in (weights, grad))
        return weights.detach(), (scores * SCALE).logsumexp(-1).detach(), grad

    def of_queries(self, lse: Tensor) -> Tensor:
        return lse[:, self.first : self.first + self.queries].transpose(1, 2).flatten(0, 1)


def near(actual: Tensor, expected: Tensor, bound: float) -> bool:
    return bool((actual.double() - expected).abs().max() <= bound * expected.abs().max())


@pytest.mark.parametrize("shape", SHAPES)
def test_weights_and_gradients_are_those_of_the_formula(mode, shape):
    call = Call(*shape)
    weights, lse, again, grad = call.run(mode, order=len(str(shape)))
    right_weights, right_lse, right_grad = call.expected()
    assert near(weights, right_weights, BOUND[call.dtype])
    assert near(grad, right_grad, BOUND[call.dtype])
    assert near(call.of_queries(lse), right_lse, 1e-6)
    assert torch.equal(weights, again)
    assert torch.equal(weights != 0, (right_weights != 0) & (weights != 0))
    untouched = torch.cat([lse[:, : call.first], lse[:, call.first + call.queries :]], 1)
    assert untouched.isnan().all()


@pytest.mark.parametrize("keys", [64, 66, 67])
@pytest.mark.parametrize("p", [0.1, 0.5, 1.0])
def test_a_weight_stays_where_the_mask_says_so_and_nowhere_else(mode, keys, p):
    call = Call(F32, F32, 9, keys, keys - 3, 2, 2, p, 2, 5, False, size=0.0)
    weights, _, again, _ = call.run(mode)
    assert torch.equal(weights != 0, call.mask() != 0)
    assert torch.equal(weights, again)


@pytest.mark.parametrize("keys", [96, 4104])
def test_rows_of_scores_of_a_hundred_thousand_sum_to_one(mode, keys):
    call = Call(F32, F32, 2, keys, keys, 1, 1, 0.0, 0, 2, False)
    call.scores += 1e5 / SCALE
    weights, _, _, grad = call.run(mode)
    right_weights, _, right_grad = call.expected()
    assert near(weights.sum(-1), torch.ones(1, 2).double(), 1e-6)
    assert near(weights, right_weights, 1e-5)
    assert near(grad, right_grad, 1e-5)
    assert grad.sum(-1).abs().max() <= 1e-6


@pytest.mark.parametrize("what", [math.nan, math.inf])
@pytest.mark.parametrize("keys", [70, 1040])
def test_what_is_no_number_stays_in_its_row(mode, what, keys):
    call = Call(BF16, BF16, 6, keys, keys, 1, 1, 0.0, 0, 6, False)
    clean = call.run(mode)
    call.scores[0, 2, keys - 1] = what
    spoiled = call.run(mode)
    others = [0, 1, 3, 4, 5]
    for number in (0, 3):
        assert spoiled[number][0, 2].isnan().all()
        assert torch.equal(spoiled[number][0, others], clean[number][0, others])


@pytest.mark.parametrize("keys", [64, 700])
def test_the_order_of_the_threads_changes_nothing(keys):
    call = Call(BF16, BF16, 6, keys, keys, 1, 2, 0.5, 0, 6, False)
    results = call.run("check")
    for order in (1, 2):
        for one, other in zip(results, call.run("check", order), strict=True):
            assert torch.equal(one, other)


def test_a_row_of_up_to_4096_keys_is_read_once():
    for dtype in (BF16, F32):
        for keys in (16, 256, 1024, 4096):
            heads = Heads(keys, keys, keys, 1, 4, 1)
            assert softmax("softmax_forward", heads, keys, dtype).defines["CHUNKS"] > 0
    assert softmax("softmax_forward", Heads(1, 4104, 4104, 1, 4, 1), 1, F32).defines["CHUNKS"] == 0
