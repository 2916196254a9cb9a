"""The whole path of CUDA on tensors of the CPU, its kernels run by the checker, beside libtorch."""

import copy
from collections.abc import Iterator
from typing import Any, NamedTuple

import harness
import pytest
import torch
from torch import Tensor, nn

from batchformer import BatchFormerV2, ops
from batchformer._extension import core
from batchformer.modules.encoder_layer import TransformerEncoderLayer
from batchformer.ops import op

pytestmark = pytest.mark.skipif(
    harness.emulator_missing() is not None, reason=harness.emulator_missing() or ""
)


def launch(
    source: str,
    kernel: str,
    defines: list[tuple[str, str]],
    grid: list[int],
    block: int,
    shared: int,
    arguments: list[Any],
) -> None:
    """A launch of the core's, by the checker."""
    given = [
        harness.Memory(each[1], each[2], each[0] != "out", each[0] != "in") if type(each) is tuple else each
        for each in arguments
    ]
    harness.build(source, dict(defines), "check").launch(kernel, grid, block, shared, given)


@pytest.fixture
def emulated() -> Iterator[None]:
    """Tensors of the CPU take the path of CUDA."""
    core.emulate_cuda(launch)
    yield
    core.emulate_cuda(None)


class Case(NamedTuple):
    """A call: sizes, dtypes of x, linears and norms, and what else decides."""

    samples: int
    positions: int
    channels: int
    heads: int
    dtypes: tuple[torch.dtype, torch.dtype, torch.dtype]
    feedforward: int = 0
    batch_first: bool = False
    norm_first: bool = False
    activation: str = "relu"
    bias: bool = True
    keys: int = 0
    counted: int = 0
    dropout: float = 0.4


F, B, H = torch.float32, torch.bfloat16, torch.float16
CASES = {
    "plain": Case(3, 5, 32, 4, (F, F, F)),
    "positions first": Case(3, 5, 32, 4, (F, F, F), batch_first=True),
    "pre-norm, gelu": Case(4, 3, 32, 2, (F, F, F), 48, norm_first=True, activation="gelu"),
    "gelu": Case(5, 3, 32, 2, (F, F, F), 64, activation="gelu", batch_first=True),
    "without biases": Case(2, 7, 32, 2, (F, F, F), bias=False),
    "two tiles of samples": Case(33, 2, 32, 2, (F, F, F)),
    "one sample": Case(1, 4, 32, 4, (F, F, F)),
    "one position": Case(7, 1, 32, 4, (F, F, F)),
    "many samples": Case(70, 1, 32, 2, (F, F, F)),
    "many samples at positions": Case(66, 2, 32, 2, (F, F, F), batch_first=True),
    "wide heads": Case(5, 1, 544, 2, (F, F, F), 32),
    "wide heads at positions": Case(3, 2, 544, 2, (F, F, F), 32),
    "keys of others": Case(3, 4, 32, 2, (F, F, F), keys=6, counted=5),
    "keys of others, positions first": Case(3, 4, 32, 2, (F, F, F), keys=6, counted=6, batch_first=True),
    "keys of others, wide heads": Case(3, 2, 544, 2, (F, F, F), 32, keys=6, counted=5),
    "bfloat16": Case(5, 3, 64, 4, (B, B, B)),
    "bfloat16 with norms in float32": Case(5, 3, 64, 4, (B, B, F), norm_first=True),
    "autocast": Case(5, 3, 64, 4, (F, B, F)),
    "autocast, pre-norm, gelu": Case(5, 3, 64, 4, (F, H, F), norm_first=True, activation="gelu"),
    "autocast, many samples": Case(70, 1, 64, 4, (F, H, F)),
    "float16": Case(4, 3, 64, 4, (H, H, H), activation="gelu"),
    "no dropout": Case(4, 3, 32, 4, (F, F, F), dropout=0.0),
    "everything dropped": Case(4, 3, 32, 4, (F, F, F), dropout=1.0),
}
BOUNDS = {F: 2e-5, B: 3e-2, H: 4e-3}
TF32_BOUND = 2e-3


def tensors(case: Case) -> tuple[Tensor, ops.Parameters, Tensor | None]:
    """x, parameters, and keys and values, with gradients."""
    generator = torch.Generator().manual_seed(7)

    def leaf(*shape: int, dtype: torch.dtype, scale: float = 1.0, shift: float = 0.0) -> Tensor:
        values = torch.randn(*shape, generator=generator) * scale + shift
        return values.to(dtype).requires_grad_()

    x_dtype, linears, norms = case.dtypes
    c, f = case.channels, case.feedforward or case.channels

    def weight(out: int, into: int) -> Tensor:
        return leaf(out, into, dtype=linears, scale=into**-0.5)

    def bias(width: int, dtype: torch.dtype = linears) -> Tensor | None:
        return leaf(width, dtype=dtype, scale=0.3) if case.bias else None

    def norm() -> Tensor:
        return leaf(c, dtype=norms, scale=0.2, shift=1.0)

    width = c if case.keys else 3 * c
    parameters = ops.Parameters(
        weight(width, c),
        bias(width),
        weight(c, c),
        bias(c),
        weight(f, c),
        bias(f),
        weight(c, f),
        bias(c),
        norm(),
        bias(c, norms),
        norm(),
        bias(c, norms),
    )
    first, second = case.samples, case.positions
    keys = (case.keys, case.positions, 2 * c)
    if case.batch_first:
        first, second = second, first
        keys = (case.positions, case.keys, 2 * c)
    keys_values = leaf(*keys, dtype=linears) if case.keys else None
    return leaf(first, second, c, dtype=x_dtype), parameters, keys_values


def outcome(case: Case, needed: list[int] | None = None, uncounted: float | None = None) -> dict[str, Tensor]:
    """The output of a training step and the gradients: all, or those of the inputs of these numbers.

    `uncounted` is put into the keys that do not count.
    """
    x, parameters, keys_values = tensors(case)
    if uncounted is not None:
        keys_values.data[case.counted :] = uncounted
    inputs = {"x": x, **parameters._asdict(), "keys_values": keys_values}
    for number, tensor in enumerate(inputs.values()):
        if tensor is not None and needed is not None and number not in needed:
            tensor.requires_grad_(False)
    config = ops.Config(
        case.heads, (case.dropout,) * 4, case.activation, case.norm_first, case.batch_first, (1e-5, 1e-4)
    )
    key_count = torch.tensor(case.counted) if case.keys else None
    torch.manual_seed(11)
    y = ops.encoder_layer(x, parameters, config, keys_values=keys_values, key_count=key_count)
    assert y.is_contiguous()
    assert y.dtype == x.dtype
    if y.requires_grad:
        y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(5)).to(y.dtype))
    grads = {name: tensor.grad for name, tensor in inputs.items() if tensor is not None}
    return {"y": y.detach()} | {name: grad for name, grad in grads.items() if grad is not None}


def by_libtorch(case: Case, needed: list[int] | None = None) -> dict[str, Tensor]:
    """The same, op by op."""
    core.aten_alone(True)
    try:
        return outcome(case, needed)
    finally:
        core.aten_alone(False)


def assert_alike(ours: dict[str, Tensor], expected: dict[str, Tensor], bound: float) -> None:
    """Relative in the 2-norm, tensor by tensor."""
    assert ours.keys() == expected.keys()
    for name, tensor in expected.items():
        assert ours[name].shape == tensor.shape, name
        assert ours[name].dtype == tensor.dtype, name
        error = (ours[name].double() - tensor.double()).norm() / tensor.double().norm().clamp_min(1e-30)
        assert error <= bound, f"{name}: {error:.1e}"


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_training_step_is_that_of_libtorch_with_the_same_masks(emulated: None, case: Case) -> None:
    before = ops.path_counts()
    ours = outcome(case)
    after = ops.path_counts()
    assert after["cuda"] == before["cuda"] + 2
    assert (after["cpu"], after["aten"]) == (before["cpu"], before["aten"])
    assert_alike(ours, by_libtorch(case), BOUNDS[case.dtypes[1]])


@pytest.mark.parametrize("name", ["plain", "many samples", "keys of others"])
def test_attention_is_in_tf32_where_torch_allows_it(
    emulated: None, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    expected = outcome(CASES[name])
    monkeypatch.setattr(op, "allows_tf32", lambda x: True)
    ours = outcome(CASES[name])
    assert_alike(ours, expected, TF32_BOUND)
    with pytest.raises(AssertionError, match="e-0"):
        assert_alike(ours, expected, 1e-5)


def test_half_precision_does_not_depend_on_tf32(emulated: None, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = outcome(CASES["autocast"])
    monkeypatch.setattr(op, "allows_tf32", lambda x: True)
    for name, ours in outcome(CASES["autocast"]).items():
        assert torch.equal(ours, expected[name])


@pytest.mark.parametrize("name", ["keys of others", "keys of others, wide heads"])
def test_keys_that_do_not_count_may_hold_anything(emulated: None, name: str) -> None:
    case = CASES[name]
    finite, not_finite = (outcome(case, uncounted=each) for each in (1.0, float("nan")))
    assert finite.keys() == not_finite.keys()
    assert [each for each in finite if not torch.equal(finite[each], not_finite[each])] == []
    assert not not_finite["keys_values"][case.counted :].any()


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("needed", [[], [0], [1], [2], [3], [4], [5], [6], [7], [8], [9], [10], [12], [0, 6]])
def test_a_backward_gives_what_is_needed_and_no_more(
    emulated: None, needed: list[int], norm_first: bool
) -> None:
    case = Case(3, 2, 32, 2, (F, F, F), norm_first=norm_first, activation="gelu")
    ours = outcome(case, needed)
    assert len(ours) == 1 + len(needed)
    assert_alike(ours, by_libtorch(case, needed), BOUNDS[F])


def test_what_is_kept_is_six_times_the_input_with_positions_and_seven_without(emulated: None) -> None:
    for case, times in ((Case(4, 8, 64, 2, (B, B, B)), 6), (Case(8, 1, 64, 2, (B, B, B)), 7)):
        x, parameters, _ = tensors(case)
        config = ops.Config(case.heads, (0.5,) * 4, "relu", False, False, (1e-5, 1e-5))
        y = ops.encoder_layer(x, parameters, config)
        own = {x.data_ptr(), *(each.data_ptr() for each in parameters if each is not None)}
        kept = [each for each in y.grad_fn.saved_tensors if each is not None]
        large = [each for each in kept if each.data_ptr() not in own and each.numel() >= x.numel()]
        assert sum(each.numel() for each in large) == times * x.numel()


def test_parameters_in_a_flat_buffer_and_turned_inputs_are_read_rightly(emulated: None) -> None:
    case = CASES["plain"]
    x, parameters, _ = tensors(case)
    flat = torch.zeros(1 + sum(each.numel() for each in parameters if each is not None))
    at, pieces = 1, []
    for each in parameters:
        piece = flat[at : at + each.numel()].view(each.shape).copy_(each.detach())
        at += each.numel()
        pieces.append(piece.requires_grad_())
    config = ops.Config(case.heads, (0.3,) * 4, "relu", False, False, (1e-5, 1e-5))
    results = []
    for given, source in ((parameters, x), (ops.Parameters(*pieces), x.detach().mT.contiguous().mT)):
        torch.manual_seed(2)
        y = ops.encoder_layer(source, given, config)
        y.backward(torch.ones_like(y))
        results.append([y.detach(), *(each.grad for each in given if each is not None)])
    for ours, expected in zip(*results, strict=True):
        assert torch.equal(ours, expected)


def layer(**options: Any) -> TransformerEncoderLayer:
    torch.manual_seed(0)
    return TransformerEncoderLayer(32, 4, 32, 0.5, **options)


def step(module: nn.Module, x: Tensor) -> list[Tensor]:
    torch.manual_seed(1)
    module.zero_grad()
    x = x.detach().requires_grad_()
    y = module(x)
    y.square().sum().backward()
    return [y.detach(), x.grad, *(each.grad.clone() for each in module.parameters())]


@pytest.mark.parametrize("backend", ["aot_eager"])
def test_a_compiled_layer_is_one_graph_and_runs_the_kernels(emulated: None, backend: str) -> None:
    module, x = layer(), torch.randn(4, 3, 32)
    expected = step(module, x)
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend=backend)
    before = ops.path_counts()["cuda"]
    for ours, each in zip(step(compiled, x), expected, strict=True):
        torch.testing.assert_close(ours, each)
    assert ops.path_counts()["cuda"] == before + 2


def test_an_exported_layer_runs_the_kernels(emulated: None) -> None:
    module, x = layer().eval(), torch.randn(4, 3, 32)
    program = torch.export.export(module, (x,))
    before = ops.path_counts()["cuda"]
    torch.testing.assert_close(program.module()(x), module(x))
    assert ops.path_counts()["cuda"] == before + 2


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_a_checkpointed_layer_draws_the_same_masks(emulated: None, use_reentrant: bool) -> None:
    module, x = layer(), torch.randn(4, 3, 32)
    expected = step(module, x)

    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, x: Tensor) -> Tensor:
            return torch.utils.checkpoint.checkpoint(self.inner, x, use_reentrant=use_reentrant)

    for ours, each in zip(step(Checkpointed(), x), expected, strict=True):
        assert torch.equal(ours, each)


def test_a_recomputing_layer_and_a_copy_give_the_same(emulated: None) -> None:
    module, x = layer(), torch.randn(4, 3, 32)
    expected = step(module, x)
    recomputing = layer(recompute=True)
    for other in (recomputing, copy.deepcopy(module)):
        for ours, each in zip(step(other, x), expected, strict=True):
            assert torch.equal(ours, each)


def test_the_module_of_a_detector_runs_the_kernels(emulated: None) -> None:
    module = BatchFormerV2(32, nhead=4, two_stream=False).train()
    before = ops.path_counts()["cuda"]
    module(torch.randn(4, 6, 32)).sum().backward()
    assert ops.path_counts()["cuda"] == before + 2


def test_float64_goes_op_by_op(emulated: None) -> None:
    before = ops.path_counts()
    outcome(Case(3, 2, 32, 4, (torch.float64,) * 3))
    after = ops.path_counts()
    assert after["aten"] == before["aten"] + 2
    assert after["cuda"] == before["cuda"]


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("norm_first", [False, True])
def test_a_backward_within_autocast_has_the_dtypes_of_its_forward(
    emulated: None, norm_first: bool, recompute: bool
) -> None:
    module, x = layer(norm_first=norm_first, recompute=recompute), torch.randn(4, 3, 32)
    expected = step(module, x)
    module.zero_grad()
    torch.manual_seed(1)
    x = x.requires_grad_()
    y = module(x)
    with torch.autocast("cpu", torch.bfloat16):
        y.square().sum().backward()
    for ours, each in zip([y, x.grad, *(each.grad for each in module.parameters())], expected, strict=True):
        torch.testing.assert_close(ours, each, rtol=1e-5, atol=1e-5)


def test_an_output_may_be_changed_in_place(emulated: None) -> None:
    module, x = layer(), torch.randn(4, 3, 32)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            y = module(x)
        y += 1
        assert not y._is_view()


def test_one_output_has_two_backwards(emulated: None) -> None:
    module, x = layer(activation="gelu"), torch.randn(4, 3, 32, requires_grad=True)
    y = module(x)
    grads = [torch.autograd.grad(y.sum(), (x, *module.parameters()), retain_graph=True) for _ in range(2)]
    assert all(torch.equal(*pair) for pair in zip(*grads, strict=True))
