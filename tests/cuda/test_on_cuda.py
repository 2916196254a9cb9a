"""Whether the kernels serve is asked once for a kind of call; a fault is one warning, all is on a list."""

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor, FakeTensorMode

import batchformer as bf
from batchformer._extension import core
from batchformer.ops import autocast, on_cuda
from batchformer.ops.on_cuda import MOST_SAMPLES, Signature

NOT_VERIFIED = "the kernels of norm have not been verified on sm_90 with NVRTC 13.0"
F, B, H = torch.float32, torch.bfloat16, torch.float16


class PlayedCore:
    """Answers as the core does on a machine with a GPU, and remembers what it was asked."""

    def __init__(self) -> None:
        self.answer: tuple[str, bool] | None = None
        self.switch = "auto"
        self.asked: list[tuple[Signature, bool]] = []

    def cuda_switch(self) -> str:
        return self.switch

    def cuda_reason(self, kind: Signature, may_try: bool) -> tuple[str, bool] | None:
        self.asked.append((kind, may_try))
        return self.answer


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> PlayedCore:
    played = PlayedCore()
    monkeypatch.setattr(on_cuda, "core", played)
    monkeypatch.setattr(on_cuda, "_is_there", lambda: True)
    monkeypatch.setattr(on_cuda, "_served", set())
    monkeypatch.setattr(on_cuda, "_warned", False)
    return played


def layer(dtype: torch.dtype = F, width: int = 24, **options: Any) -> bf.TransformerEncoderLayer:
    return bf.TransformerEncoderLayer(16, 4, width, dtype=dtype, **options)


@pytest.fixture
def matmul_precision() -> Iterator[None]:
    before = torch.backends.cuda.matmul.fp32_precision
    yield
    torch.backends.cuda.matmul.fp32_precision = before


@pytest.mark.parametrize(("precision", "allowed"), [("ieee", False), ("tf32", True), ("none", False)])
def test_tf32_is_what_torch_says_for_products_on_cuda(
    matmul_precision: None, precision: str, allowed: bool
) -> None:
    torch.backends.cuda.matmul.fp32_precision = precision
    with FakeTensorMode():
        on_cuda_device, on_cpu = torch.empty(1, device="cuda"), torch.empty(1)
    assert on_cuda.allows_tf32(on_cuda_device) is allowed
    assert on_cuda.allows_tf32(on_cpu) is False


def reason(module: bf.TransformerEncoderLayer, x: Tensor) -> str | None:
    config = module._config()
    return on_cuda.reason(
        x,
        module._parameters_of_op(),
        nhead=config.nhead,
        activation=config.activation,
        norm_first=config.norm_first,
        batch_first=config.batch_first,
    )


def test_a_kind_of_call_is_its_dtypes_widths_and_options(played):
    assert reason(layer(), torch.randn(5, 3, 16)) is None
    assert reason(layer(B, activation="gelu", norm_first=True), torch.randn(5, 3, 16, dtype=B)) is None
    assert played.asked == [
        (Signature(0, "float32", "float32", "float32", 16, 4, 24, False, False), True),
        (Signature(0, "bfloat16", "bfloat16", "bfloat16", 16, 4, 24, True, True), True),
    ]


def test_what_is_served_is_asked_for_once_and_what_is_not_each_time(played):
    module = layer()
    played.answer = NOT_VERIFIED, False
    assert [reason(module, torch.randn(n, 3, 16)) for n in (5, 6)] == [NOT_VERIFIED] * 2
    assert len(played.asked) == 2
    played.answer = None
    assert [reason(module, torch.randn(n, 3, 16)) for n in (5, 6, 7)] == [None] * 3
    assert len(played.asked) == 3
    reason(layer(width=32), torch.randn(5, 3, 16))
    assert len(played.asked) == 4


def test_a_dtype_of_no_kernel_is_declined_unasked(played):
    assert reason(layer(), torch.randn(5, 3, 16).to(torch.float8_e4m3fn)) == "float8_e4m3fn has no kernels"
    assert played.asked == []


@pytest.fixture
def autocast_on_cuda() -> Iterator[None]:
    """As inside torch.autocast("cuda"), which is off where there is no GPU."""
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", True)
    yield
    torch.set_autocast_enabled("cuda", before[0])
    torch.set_autocast_dtype("cuda", before[1])


class HandedError(Exception):
    """Carries the dtypes that came to the core."""


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("of_autocast", [B, H], ids=str)
@pytest.mark.parametrize("of_layer", [F, B], ids=str)
@pytest.mark.parametrize("of_x", [F, B, torch.float64], ids=str)
def test_under_autocast_a_kind_has_the_dtypes_that_the_op_hands_to_the_core(
    played, autocast_on_cuda, of_x, of_layer, of_autocast, norm_first, monkeypatch
):
    torch.set_autocast_dtype("cuda", of_autocast)
    module, x = layer(of_layer, norm_first=norm_first), torch.randn(5, 3, 16, dtype=of_x)
    if of_x == torch.float64:  # which autocast leaves alone
        module.double()
    reason(module, x)
    [(kind, _)] = played.asked

    def hand(x: Tensor, parameters: Any, *_: Any) -> None:
        raise HandedError(x.dtype, parameters[0].dtype, parameters[8].dtype)

    monkeypatch.setattr(core, "encoder_layer_forward", hand)
    op = autocast._kernel("cuda", torch._C.DispatchKey.AutocastCUDA)
    with torch.no_grad(), pytest.raises(HandedError) as handed:
        op(x, *module._parameters_of_op(), None, None, torch.tensor(1), *module._config(), [False] * 14)
    assert [kind.x, kind.linears, kind.norms] == [
        str(each).removeprefix("torch.") for each in handed.value.args
    ]


def test_a_fault_is_one_warning_and_what_was_never_promised_is_none(played):
    played.answer = NOT_VERIFIED, False
    x = torch.randn(5, 3, 16)
    assert reason(layer(), x) == NOT_VERIFIED
    played.answer = "the kernels' result differs from libtorch's by 1.0e0, more than 2e-3", True
    with pytest.warns(RuntimeWarning, match="do not run here, .* differs from libtorch's by 1.0e0.*--check"):
        assert reason(layer(), x) == played.answer[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert reason(layer(width=32), x) == played.answer[0]


def test_the_switch_to_kernels_asks_nothing_as_the_core_will_say(played):
    played.switch, played.answer = "kernels", (NOT_VERIFIED, False)
    assert reason(layer(), torch.randn(5, 3, 16)) is None
    assert played.asked == []


@pytest.mark.parametrize("batch_first", [False, True])
def test_among_many_samples_torchs_attention_is_the_faster_one(played, batch_first):
    def among(samples: int) -> str | None:
        shape = (2, samples, 16) if batch_first else (samples, 2, 16)
        return reason(layer(batch_first=batch_first), torch.empty(shape))

    assert among(MOST_SAMPLES) is None
    sentence = f"torch's attention is the faster one among {MOST_SAMPLES + 1} samples"
    assert among(MOST_SAMPLES + 1) == sentence
    played.switch = "kernels"
    assert among(MOST_SAMPLES + 1) is None


def test_heads_too_wide_for_flash_attention_run_the_kernels_among_many_samples(played):
    wide = bf.TransformerEncoderLayer(264, 1, 8, dtype=B)
    assert reason(wide, torch.empty(MOST_SAMPLES + 1, 1, 264, dtype=B)) is None


def test_in_a_compiled_graph_the_answer_is_a_constant(played):
    module, x = layer(), torch.randn(5, 3, 16)

    def sign(x: Tensor) -> Tensor:
        return x if reason(module, x) is None else -x

    for answer, expected in ((None, x), ((NOT_VERIFIED, False), -x)):
        torch._dynamo.reset()
        played.answer = answer
        compiled = torch.compile(sign, fullgraph=True, backend="eager")
        assert torch.equal(compiled(x), expected)
        asked = len(played.asked)
        assert torch.equal(compiled(x), expected)
        assert len(played.asked) == asked, "the graph asks again"
    assert on_cuda._served == set(), "a graph that is traced writes what is outside of it"


def test_a_compiled_graph_stays_as_other_kinds_come(played):
    module, x = layer(), torch.randn(5, 3, 16)
    graphs = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(
        lambda x: x if reason(module, x) is None else -x, fullgraph=True, backend=backend
    )
    for width in (24, 32, 40):
        compiled(x)
        reason(layer(width=width), x)
    compiled(x)
    assert len(graphs) == 1
    assert len(on_cuda._served) == 3


def test_a_kind_that_comes_first_where_ops_are_traced_is_not_tried(played):
    played.answer = "no such call has run yet outside of what traces this one", False
    mode, module = FakeTensorMode(), layer(dropout=0.0)

    def on_cuda_in_name(tensor: Tensor) -> FakeTensor:
        return FakeTensor(mode, tensor.detach().to("meta"), torch.device("cuda:0"))

    for each in module.modules():
        for name, parameter in each.named_parameters(recurse=False):
            setattr(each, name, nn.Parameter(on_cuda_in_name(parameter)))
    x = on_cuda_in_name(torch.empty(5, 3, 16))
    with mode, torch.no_grad():  # autograd asks the driver for a stream
        assert module.declined(x) == played.answer[0]
        played.answer = None
        assert module.declined(x) is None
        y = module(x)
    assert [may_try for _, may_try in played.asked] == [False, False]
    assert y.device.type == "cuda"
    assert y.shape == x.shape


def test_the_list_of_what_was_declined_has_the_kinds_and_the_reasons(monkeypatch):
    kind = (1, "float32", "bfloat16", "float32", 512, 4, 256, True, True)
    served = (0, "float32", "float32", "float32", 16, 4, 16, False, False)
    decisions = [(kind, NOT_VERIFIED), (served, None), ((*served[:-1], True), "no")]
    monkeypatch.setattr(core, "cuda_decisions", lambda: decisions)
    assert bf.ops.declined() == [
        "cuda:0 float32 C=16 H=4 F=16 relu pre-norm: no",
        f"cuda:1 float32/bfloat16 C=512 H=4 F=256 gelu pre-norm: {NOT_VERIFIED}",
    ]


def test_without_a_device_nothing_is_asked_and_nobody_is_warned(played, monkeypatch):
    monkeypatch.setattr(on_cuda, "_is_there", lambda: False)
    played.answer = "libcuda.so.1: no such file", True
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert reason(layer(), torch.randn(5, 3, 16)) == "this torch sees no CUDA device"
    assert played.asked == []


@pytest.mark.parametrize(
    ("shape", "dtype", "served"),
    [((65, 3, 16), B, False), ((64, 3, 16), B, True), ((65, 1, 16), B, True), ((65, 3, 16), F, True)],
)
def test_odd_heads_among_many_samples_keep_no_scores_of_all_positions(played, shape, dtype, served):
    found = reason(layer(dtype), torch.randn(shape, dtype=dtype))  # heads of 4 channels
    assert (found is None) is served
    if not served:
        assert "no multiple of 16 bytes" in found


def test_two_half_precisions_in_one_call_are_declined():
    kind = Signature(0, "bfloat16", "float16", "float32", 32, 4, 32, False, True)
    assert core.cuda_reason(kind, True) == ("x and the weights are of two half precisions", False)
