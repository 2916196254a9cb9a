"""Calls past the dispatcher: whoever has to see the op still sees it."""

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import batchformer as bf
from batchformer.ops.direct import nobody_watches

LAYER = bf.TransformerEncoderLayer(16, 4, 16, 0.5)
FORWARD, BACKWARD = "batchformer.encoder_layer.default", "batchformer.encoder_layer_backward.default"


def step() -> None:
    LAYER(torch.randn(5, 3, 16, requires_grad=True)).sum().backward()


def test_a_plain_call_goes_past_the_dispatcher_and_is_the_same(monkeypatch):
    x = torch.randn(5, 3, 16)
    assert nobody_watches((x, *LAYER._parameters_of_op()))
    results = []
    for direct in (True, False):
        if not direct:
            monkeypatch.setattr(bf.ops.op, "nobody_watches", lambda _: False)
        torch.manual_seed(3)
        leaf = x.clone().requires_grad_()
        y = LAYER(leaf)
        results.append([y.detach(), *torch.autograd.grad(y.square().sum(), (leaf, *LAYER.parameters()))])
    assert all(map(torch.equal, *results))


def test_a_dispatch_mode_sees_forward_and_backward():
    seen = []

    class Note(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    with Note():
        step()
    assert {FORWARD, BACKWARD} <= set(seen)


def test_a_function_mode_sees_the_op():
    seen = []

    class Note(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    with Note():
        bf.ops.encoder_layer(torch.randn(5, 3, 16), LAYER._parameters_of_op(), LAYER._config())
    assert FORWARD in seen


def test_the_profiler_sees_forward_and_backward_with_shapes():
    with torch.profiler.profile(record_shapes=True, acc_events=True) as profile:
        step()
    shapes = {event.key: event.input_shapes for event in profile.key_averages(group_by_input_shape=True)}
    assert shapes["batchformer::encoder_layer"][0] == [5, 3, 16]
    assert shapes["batchformer::encoder_layer_backward"][:2] == [[5, 3, 16]] * 2


def test_autocast_narrows_the_linears():
    seen = []

    class Note(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.extend(each.dtype for each in args[1:3] if str(func) == FORWARD)
            return func(*args, **(kwargs or {}))

    with torch.autocast("cpu", torch.bfloat16):
        assert not nobody_watches((torch.randn(5, 3, 16),))
        with Note():
            LAYER(torch.randn(5, 3, 16))
    assert seen == [torch.bfloat16] * 2


def test_a_compiler_sees_the_op():
    graphs = []

    def note(graph, _):
        graphs.append(graph)
        return graph.forward

    torch.compile(LAYER, fullgraph=True, backend=note)(torch.randn(5, 3, 16))
    assert FORWARD in [str(node.target) for node in graphs[0].graph.nodes]


def test_fake_tensors_stay_fake():
    mode = FakeTensorMode()
    with mode:
        layer = bf.TransformerEncoderLayer(16, 4, 16)
        y = layer(torch.randn(5, 3, 16))
    assert y.fake_mode is mode


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_a_trace_holds_the_op():
    layer = bf.TransformerEncoderLayer(16, 4, 16, 0.0).eval()
    traced = torch.jit.trace(layer, torch.randn(5, 3, 16), check_trace=False)
    assert "batchformer::encoder_layer" in str(traced.inlined_graph)


def test_inference_mode_gives_inference_tensors():
    with torch.inference_mode():
        assert LAYER(torch.randn(5, 3, 16)).is_inference()


def test_an_import_in_inference_mode_leaves_the_way_past_the_dispatcher():
    code = """
import torch
with torch.inference_mode():
    import batchformer
    inference = torch.randn(3)
from batchformer.ops.direct import nobody_watches
print(nobody_watches([torch.randn(3)]), nobody_watches([inference]))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["True", "False"]


def test_a_subclass_of_a_tensor_is_not_plain():
    class Named(torch.Tensor):
        pass

    parameters = LAYER._parameters_of_op()
    assert not nobody_watches((torch.randn(5, 3, 16).as_subclass(Named), *parameters))
    frozen = parameters._replace(norm1_bias=nn.Buffer(torch.zeros(16)))
    assert nobody_watches((torch.randn(5, 3, 16), *frozen)) == (type(frozen.norm1_bias) is torch.Tensor)


def test_a_transform_of_torch_func_is_seen():
    x = torch.randn(2, 5, 3, 16)
    parameters, config = LAYER._parameters_of_op(), LAYER._config()._replace(dropout=(0.0,) * 4)
    mapped = torch.vmap(lambda x: bf.ops.encoder_layer(x, parameters, config))(x)
    single = [bf.ops.encoder_layer(each, parameters, config) for each in x]
    torch.testing.assert_close(mapped, torch.stack(single))


def test_a_second_derivative_is_refused_past_the_dispatcher_too():
    x = torch.randn(5, 3, 16, requires_grad=True)
    (grad,) = torch.autograd.grad(LAYER(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivative is not supported"):
        grad.sum().backward()


@pytest.mark.parametrize("view", ["negative", "meta", "sparse", "inference"])
def test_a_tensor_that_is_not_numbers_in_memory_is_not_plain(view):
    with torch.inference_mode(view == "inference"):
        x = {
            "negative": lambda: torch._neg_view(torch.randn(5, 3, 16)),
            "meta": lambda: torch.randn(5, 3, 16, device="meta"),
            "sparse": lambda: torch.randn(5, 3, 16).to_sparse(),
            "inference": lambda: torch.randn(5, 3, 16),
        }[view]()
    assert not nobody_watches((x, *LAYER._parameters_of_op()))


def test_a_negative_view_is_read_with_its_sign():
    layer = bf.TransformerEncoderLayer(16, 4, 16, 0.0)
    x = torch.randn(5, 3, 16)
    assert torch.equal(layer(torch._neg_view(x)), layer(-x))


@pytest.mark.parametrize("hooked", [True, False])
def test_what_hooks_gave_back_goes_by_the_dispatcher(hooked, monkeypatch):
    calls = []
    forward, backward = bf.ops.op._OPS
    monkeypatch.setattr(bf.ops.op, "_OPS", (forward, lambda *each: calls.append(each) or backward(*each)))
    x = torch.randn(5, 3, 16, requires_grad=True)
    if hooked:
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t):
            y = LAYER(x)
    else:
        y = LAYER(x)
    y.sum().backward()
    assert len(calls) == hooked
