"""What the op does not cover runs torch's own implementation, with its result, and can be asked for."""

import re
import subprocess
import sys
import types

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn.modules import module as torch_module
from torch.nn.utils.prune import l1_unstructured
from torch.overrides import TorchFunctionMode
from torch.testing._internal.two_tensor import TwoTensor

import batchformer as bf
from batchformer.modules import _declined
from reference import layers, results
from tolerances import HALF, assert_near


def causal(n: int) -> torch.Tensor:
    return nn.Transformer.generate_square_subsequent_mask(n)


CALLS = {
    "a mask": ({"src_mask": causal(7)}, "has a mask"),
    "a causal mask": ({"src_mask": causal(7), "is_causal": True}, "has a mask"),
    "a padding mask": ({"src_key_padding_mask": torch.tensor([[False] * 6 + [True]] * 5)}, "has a mask"),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_with_a_mask_runs_torchs_implementation(name):
    arguments, reason = CALLS[name]
    theirs, ours = layers(16, 4, 16, 0.0)
    x = torch.randn(7, 5, 16)
    assert reason in ours.declined(x, **arguments)
    before = bf.ops.path_counts()
    assert torch.equal(ours(x, **arguments), theirs(x, **arguments))
    assert bf.ops.path_counts() == before


def change_activation(layer):
    layer.activation = torch.nn.functional.silu


def change_gelu(layer):
    layer.activation = nn.GELU(approximate="tanh")


def change_linear(layer):
    layer.linear1 = nn.Sequential(layer.linear1, nn.Identity())


def add_hook(layer):
    layer.linear1.register_forward_hook(lambda *inputs: inputs[2] * 2)


def parametrize(layer):
    with torch.no_grad():
        nn.utils.parametrizations.weight_norm(layer.linear1)


def replace_forward(layer):
    layer.linear2.forward = lambda x, forward=layer.linear2.forward: 3 * forward(x)


def replace_forward_of_attention(layer):
    forward = layer.self_attn.forward
    layer.self_attn.forward = lambda *tensors, **options: (2 * forward(*tensors, **options)[0], None)


def replace_call_of_attention(layer):
    layer.self_attn._call_impl = lambda *tensors, **options: (2 * tensors[0], None)


def replace_forward_of_a_dropout(layer):
    layer.dropout.forward = lambda x: x + 1


def replace_forward_of_a_norm(layer):
    layer.norm1.forward = lambda x: x + 1


def replace_block(layer):
    layer._ff_block = types.MethodType(lambda self, x: 2 * self.linear1(x), layer)


def replace_attention_block(layer):
    layer._sa_block = lambda x, *_, **__: 2 * x


def replace_forward_of_the_activation(layer):
    layer.activation = nn.ReLU()
    layer.activation.forward = torch.tanh


def add_hook_to_the_activation(layer):
    layer.activation = nn.ReLU()
    layer.activation.register_forward_hook(lambda *inputs: inputs[2] * 2)


def prune(layer):
    l1_unstructured(layer.linear1, "weight", amount=0.5)


def spectral(layer):
    nn.utils.parametrizations.spectral_norm(layer.linear1)


def derive_linear(layer):
    layer.linear2.__class__ = type("Tripled", (nn.Linear,), {"forward": lambda self, x: 3 * x})


class Mixed(nn.Module):
    """Another attention, with as much of the interface of torch's as its layer asks for."""

    batch_first = False

    def forward(self, query, *_, **__):
        return query.flip(0), None


def replace_attention(layer):
    layer.self_attn = Mixed()


def take_experts(layer):
    layer._ff_block = lambda x: 2 * x
    del layer.linear1, layer.linear2, layer.dropout, layer.dropout2


def replace_a_norm_by_a_function(layer):
    del layer.norm1
    layer.norm1 = torch.tanh


CHANGES = {
    replace_attention: "is not the one that torch puts there",
    take_experts: "a block of the layer was replaced",
    replace_a_norm_by_a_function: "is not the one that torch puts there",
    replace_forward: "the forward of a module inside the layer was replaced",
    replace_forward_of_attention: "the forward of a module inside the layer was replaced",
    replace_call_of_attention: "the forward of a module inside the layer was replaced",
    replace_forward_of_a_dropout: "the forward of a module inside the layer was replaced",
    replace_forward_of_a_norm: "the forward of a module inside the layer was replaced",
    replace_forward_of_the_activation: "the forward of a module inside the layer was replaced",
    replace_block: "a block of the layer was replaced",
    replace_attention_block: "a block of the layer was replaced",
    add_hook_to_the_activation: "has a hook",
    prune: "has a hook",
    spectral: "is not the one that torch puts there",
    derive_linear: "is not the one that torch puts there",
    change_activation: "the activation",
    change_gelu: "the activation",
    change_linear: "is not the one that torch puts there",
    add_hook: "has a hook",
    parametrize: "is not the one that torch puts there",
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_layer_that_was_changed_inside_runs_torchs_implementation(change):
    theirs, ours = layers(16, 4, 16, 0.0)
    for layer in (theirs, ours):
        change(layer)
    ours.load_state_dict(theirs.state_dict())  # buffers drawn by the change
    x = torch.randn(7, 5, 16)
    assert CHANGES[change] in ours.declined(x)
    assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize(
    ("owner", "name"),
    _declined._CALLED,
    ids=[f"{owner.__name__}.{name}" for owner, name in _declined._CALLED],
)
def test_what_was_replaced_for_all_layers_is_called(owner, name, monkeypatch):
    layer = bf.TransformerEncoderLayer(16, 4, 16, 0.0, nn.ReLU())
    x = torch.randn(7, 5, 16)
    of_torch = getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *inputs, **options: of_torch(*inputs, **options))
    assert f"{owner.__name__}.{name} was replaced" == layer.declined(x)
    monkeypatch.undo()
    assert layer.declined(x) is None


REPLACED_BEFORE = """
import functools, sys, torch
from torch import nn
owners = {"F": nn.functional, "torch": torch, "Module": nn.Module, "Layer": nn.TransformerEncoderLayer}
_, owner, name, kind = sys.argv
of_torch = getattr(owners[owner], name)
wrapper = lambda *inputs, **options: of_torch(*inputs, **options)
setattr(owners[owner], name, wrapper if kind == "plain" else functools.wraps(of_torch)(wrapper))
import batchformer
print(batchformer.TransformerEncoderLayer(8, 2, 8).declined(torch.randn(3, 2, 8)))
"""


@pytest.mark.parametrize("wrapper", ["plain", "wraps"])
@pytest.mark.parametrize(
    ("owner", "name", "reason"),
    [
        ("F", "linear", "torch.nn.functional.linear was replaced"),
        ("F", "layer_norm", "torch.nn.functional.layer_norm was replaced"),
        ("F", "relu", "torch.nn.functional.relu was replaced"),
        ("F", "gelu", "torch.nn.functional.gelu was replaced"),
        ("torch", "relu", "torch.relu was replaced"),
        ("Module", "__call__", "Module.__call__ was replaced"),
        ("Layer", "_ff_block", "the class overrides a block of the layer"),
    ],
)
def test_what_was_replaced_before_the_import_is_called(owner, name, reason, wrapper):
    command = [sys.executable, "-c", REPLACED_BEFORE, owner, name, wrapper]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == reason


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_an_activation_put_into_torch_is_that_of_a_layer_made_behind_it(activation, monkeypatch):
    monkeypatch.setattr(nn.functional, activation, lambda x: nn.functional.leaky_relu(x, 0.2))
    theirs, ours = layers(16, 4, 16, 0.0, activation=activation)
    x = torch.randn(7, 5, 16)
    assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize("name", ["linear", "scaled_dot_product_attention", "layer_norm"])
def test_another_kernel_put_into_torch_is_used(name, monkeypatch):
    theirs, ours = layers(16, 4, 16, 0.0)
    x = torch.randn(7, 5, 16)
    of_torch = getattr(nn.functional, name)
    monkeypatch.setattr(nn.functional, name, lambda *inputs, **options: 2 * of_torch(*inputs, **options))
    assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize(
    "register",
    [
        torch_module.register_module_forward_hook,
        torch_module.register_module_forward_pre_hook,
        torch_module.register_module_full_backward_hook,
        torch_module.register_module_full_backward_pre_hook,
    ],
    ids=lambda register: register.__name__,
)
def test_a_hook_on_all_modules_sees_all_that_it_sees_in_torchs_layer(register):
    seen = []
    for layer in layers(16, 4, 16, 0.0):
        calls = []
        handle = register(lambda module, *_, calls=calls: calls.append(type(module).__name__))
        try:
            layer(torch.randn(7, 5, 16, requires_grad=True)).sum().backward()
        finally:
            handle.remove()
        seen.append(["a layer" if "EncoderLayer" in name else name for name in calls])
    assert seen[0] == seen[1]
    assert "Linear" in seen[0]


class Functions(TorchFunctionMode):
    """Which functions ran."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_function__(self, function, _types, inputs=(), options=None):
        self.names.append(getattr(function, "__name__", ""))
        return function(*inputs, **(options or {}))


def test_a_function_mode_sees_torchs_functions():
    theirs, ours = layers(16, 4, 16, 0.0)
    x = torch.randn(7, 5, 16)
    with Functions() as expected:
        y = theirs(x)
    with Functions() as actual:
        same = ours(x)
    assert torch.equal(same, y)
    assert actual.names[-20:] == expected.names[-20:]
    assert actual.names.count("linear") == 2  # the rest is inside multi_head_attention_forward
    with Functions():
        assert ours.declined(x) == "the torch function mode Functions is active"


def test_a_default_device_does_not_keep_the_layer_from_the_op():
    layer = bf.TransformerEncoderLayer(16, 4)
    with torch.device("cpu"):
        assert layer.declined(torch.randn(7, 5, 16)) is None


class Marked(torch.Tensor):
    """A subclass that functions keep."""


SUBCLASSES = {
    "with torch functions": lambda x: x.as_subclass(Marked),
    "a wrapper": lambda x: TwoTensor(x, 2 * x),
}


@pytest.mark.parametrize("kind", SUBCLASSES)
@pytest.mark.parametrize("place", ["src", "self_attn.in_proj_bias", "linear2.weight", "norm2.bias"])
def test_a_tensor_subclass_anywhere_gives_what_it_gives_in_torchs_layer(kind, place):
    x, wrap = torch.randn(7, 5, 16), SUBCLASSES[kind]
    outputs = []
    for layer in layers(16, 4, 16, 0.0):
        layer.requires_grad_(False)
        if place == "src":
            x = wrap(x) if type(x) is torch.Tensor else x
        else:
            path, _, name = place.rpartition(".")
            owner = layer.get_submodule(path)
            value = wrap(getattr(owner, name).detach())
            delattr(owner, name)
            setattr(owner, name, value)
        outputs.append(layer(x))
    theirs, ours = outputs
    assert type(ours) is type(theirs) is not torch.Tensor
    assert layer.declined(x) == f"src or a parameter is of the tensor subclass {type(theirs).__name__}"
    for part in ("a", "b") if isinstance(theirs, TwoTensor) else ("data",):
        assert torch.equal(getattr(ours, part), getattr(theirs, part))


def test_a_tangent_is_never_lost():
    theirs, ours = layers(16, 4, 16, 0.0)
    x = torch.randn(7, 5, 16)
    tangents = []
    for layer in (theirs.requires_grad_(False), ours.requires_grad_(False)):
        weights = dict(layer.named_parameters())
        with forward_ad.dual_level():
            weight = weights["linear1.weight"]
            weights["linear1.weight"] = forward_ad.make_dual(weight, torch.ones_like(weight))
            y = torch.func.functional_call(layer, weights, (x,))
            tangents.append(forward_ad.unpack_dual(y).tangent)
    assert torch.equal(*tangents)
    with forward_ad.dual_level():
        assert "has a tangent" in ours.declined(forward_ad.make_dual(x, x))
        assert ours.declined(x) is None


@pytest.mark.parametrize("grad", [True, False])
def test_the_ops_refuse_a_tangent(grad):
    layer = bf.TransformerEncoderLayer(16, 4, 16, 0.0).requires_grad_(grad)
    x = torch.randn(7, 5, 16)
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="forward-mode AD"):
        bf.ops.encoder_layer(forward_ad.make_dual(x, x), layer._parameters_of_op(), layer._config())
    y = layer(x.requires_grad_())
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="forward-mode AD"):
        y.backward(forward_ad.make_dual(torch.ones_like(y), torch.ones_like(y)))


LAYOUTS = {
    "layout torch.sparse_coo": torch.Tensor.to_sparse,
    "layout torch.sparse_csr": torch.Tensor.to_sparse_csr,
    "layout torch._mkldnn": torch.Tensor.to_mkldnn,
}
if hasattr(torch.Tensor, "rename"):  # torch has no names from 2.13 on
    LAYOUTS["names ('a', None, None)"] = lambda x: x.rename("a", None, None)


@pytest.mark.filterwarnings("ignore:Named tensors", "ignore:Sparse CSR")
@pytest.mark.parametrize("fact", LAYOUTS)
def test_what_torchs_layer_fails_on_is_refused_with_a_sentence(fact):
    for batch_first in (False, True):
        theirs, ours = layers(16, 4, 16, 0.0, batch_first=batch_first)
        x = LAYOUTS[fact](torch.randn(7, 5, 16))
        for training in (True, False):
            with torch.no_grad():
                with pytest.raises(RuntimeError):
                    theirs.train(training)(x)
                with pytest.raises(TypeError, match=rf"^src: expected a .*, got {re.escape(fact)}$"):
                    ours.train(training)(x)
    with pytest.raises(TypeError, match=rf"^x: expected a .*, got {re.escape(fact)}$"):
        bf.BatchFormerV2(16)(x)


def test_a_sparse_weight_runs_torchs_implementation():
    theirs, ours = layers(16, 4, 16, 0.0)
    for layer in (theirs, ours):
        layer.linear2.weight = nn.Parameter(layer.linear2.weight.detach().to_sparse())
    x = torch.randn(7, 5, 16)
    assert ours.declined(x) == "a parameter has the layout torch.sparse_coo"
    try:
        expected = theirs(x)
    except RuntimeError as error:  # torch 2.9 does not multiply by one
        with pytest.raises(RuntimeError, match=re.escape(str(error))):
            ours(x)
    else:
        assert torch.equal(ours(x), expected)


def test_parameters_swapped_for_a_call_are_the_ones_used():
    theirs, ours = layers(16, 4, 16, 0.0)
    x = torch.randn(7, 5, 16)
    swapped = {name: 2 * parameter.detach() for name, parameter in theirs.named_parameters()}
    calls = bf.ops.path_counts()["cpu"]
    actual = torch.func.functional_call(ours, swapped, (x,))
    assert bf.ops.path_counts()["cpu"] == calls + 1
    torch.testing.assert_close(actual, torch.func.functional_call(theirs, swapped, (x,)))


def test_a_class_that_overrides_a_block_gets_its_block():
    class Doubled(bf.TransformerEncoderLayer):
        def _ff_block(self, x):
            return 2 * super()._ff_block(x)

    layer = Doubled(16, 4, 16, 0.0)
    x = torch.randn(7, 5, 16)
    assert "overrides a block" in layer.declined(x)
    plain = bf.TransformerEncoderLayer(16, 4, 16, 0.0)
    plain.load_state_dict(layer.state_dict())
    assert not torch.allclose(layer(x), plain(x))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_nested_input_runs_torchs_implementation():
    options = {"batch_first": True}
    theirs, ours = (layer.eval() for layer in layers(16, 4, 16, 0.0, **options))
    nested = torch.nested.nested_tensor([torch.randn(3, 16), torch.randn(5, 16)])
    with torch.no_grad():
        assert ours.declined(nested) == "src is nested"
        for actual, expected in zip(ours(nested).unbind(), theirs(nested).unbind(), strict=True):
            assert torch.equal(actual, expected)


def test_a_device_that_the_op_does_not_know_runs_torchs_implementation(monkeypatch):
    theirs, ours = layers(16, 4, 16, 0.0)
    x = torch.randn(7, 5, 16)
    monkeypatch.setattr(_declined, "OP_DEVICES", ("cuda",))
    assert ours.declined(x) == "src is on cpu, which is none of cuda"
    assert torch.equal(ours(x), theirs(x))
    functions = [
        str(node.target) for node in torch.export.export(ours, (x,)).graph.nodes if node.op == "call_function"
    ]
    assert "aten.scaled_dot_product_attention.default" in functions
    assert not [name for name in functions if "batchformer" in name]


WIDE = {torch.bfloat16: (16, 256), torch.float16: (24, 512)}
"""In place of the processor's: C above 16 and fewer than C² / 256 samples, ..."""


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("batch_first", [False, True])
def test_where_torchs_layer_is_faster_in_half_precision_it_runs(dtype, batch_first, monkeypatch):
    monkeypatch.setattr(_declined, "TORCH_IS_FASTER", WIDE)
    theirs, ours = layers(64, 4, 16, 0.0, batch_first=batch_first, dtype=dtype)
    shape = (9, 3, 64) if batch_first else (3, 9, 64)
    x, grad_y = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    assert str(dtype) in ours.declined(x)
    actual, expected = results(ours, ours, x, grad_y), results(theirs, theirs, x, grad_y)
    assert all(torch.equal(actual[name], expected[name]) for name in expected)
    many = (3, 16, 64) if batch_first else (16, 3, 64)
    assert ours.declined(torch.randn(many).to(dtype)) is None
    _, narrow = layers(16, 4, 16, 0.0, batch_first=batch_first, dtype=dtype)
    assert narrow.declined(torch.randn(3, 2, 16).to(dtype)) is None


@pytest.mark.parametrize(
    ("dtype", "of_autocast"), [(torch.float16, torch.bfloat16), (torch.bfloat16, torch.float16)]
)
def test_autocast_in_the_other_half_precision_runs_torchs_layer(dtype, of_autocast):
    ours, torchs = bf.TransformerEncoderLayer(16, 4, 32, 0.0), nn.TransformerEncoderLayer(16, 4, 32, 0.0)
    torchs.load_state_dict(ours.state_dict())
    x = torch.randn(3, 2, 16).to(dtype)
    with torch.autocast("cpu", dtype=of_autocast):
        assert ours.declined(x) == f"src is {dtype}, and autocast computes in {of_autocast}"
        y, expected = ours(x), torchs(x)
    assert torch.equal(y, expected)
    assert y.dtype == expected.dtype


def test_autocast_decides_as_its_dtype_does(monkeypatch):
    monkeypatch.setattr(_declined, "TORCH_IS_FASTER", WIDE)
    _, ours = layers(64, 4, 16, 0.0)
    x = torch.randn(3, 5, 64)
    assert ours.declined(x) is None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert "bfloat16" in ours.declined(x)


def test_a_symbolic_number_of_samples_is_no_guard(monkeypatch):
    monkeypatch.setattr(_declined, "TORCH_IS_FASTER", WIDE)
    _, ours = layers(64, 4, 16, 0.0, dtype=torch.bfloat16)
    samples = torch.export.Dim("samples", min=2, max=4096)
    x = torch.randn(3, 5, 64).bfloat16()
    program = torch.export.export(ours.eval(), (x,), dynamic_shapes=({0: samples},))
    assert program.module()(torch.randn(50, 5, 64).bfloat16()).shape == (50, 5, 64)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_recompute_there_keeps_the_input_alone_and_draws_the_same_masks(compiled, monkeypatch):
    monkeypatch.setattr(_declined, "OP_DEVICES", ())
    theirs, ours = layers(16, 4, 64, 0.5)
    ours.recompute = True
    x, grad_y = torch.randn(7, 5, 16), torch.randn(7, 5, 16)
    call = torch.compile(ours, fullgraph=True, backend="aot_eager") if compiled else ours
    outcomes, kept = [], []

    def keep(tensor):
        kept[-1].add(tensor.shape[-1])
        return tensor

    for layer, module in ((theirs, theirs), (call, ours)):
        torch.manual_seed(3)
        kept.append(set())
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            outcomes.append(results(layer, module, x, grad_y))
    assert_near(outcomes[1], outcomes[0], torch.float32)
    if not compiled:  # the compiler keeps what it finds best
        assert 64 in kept[0]
        assert 64 not in kept[1]


@pytest.mark.parametrize("attend", ["batch", "alone"])
@pytest.mark.parametrize("layout", ["NLC", "LNC"])
def test_many_positions_go_to_torchs_attention_in_parts(attend, layout, monkeypatch):
    module = bf.BatchFormerV2(16, dropout=0.0, layout=layout, attend=attend, dtype=torch.float64)
    x = torch.randn(6, 5, 16, dtype=torch.float64)
    expected = module(x)
    sizes = []
    module.encoder.self_attn.register_forward_hook(lambda _, inputs, __: sizes.append(inputs[0].shape))
    monkeypatch.setattr(_declined, "MOST_POSITIONS", 4)
    module(x)
    assert len(sizes) == 1  # the CPU has no such bound
    monkeypatch.setattr(_declined, "OP_DEVICES", ())
    monkeypatch.setattr(_declined, "ANY_POSITIONS", ())
    sizes.clear()
    torch.testing.assert_close(module(x), expected)
    axis = 0 if layout == "LNC" else 1
    assert [shape[axis] for shape in sizes] == {
        ("batch", "NLC"): [4, 1],
        ("batch", "LNC"): [4, 2],
        ("alone", "NLC"): [4] * 7 + [2],
        ("alone", "LNC"): [4] * 7 + [2],
    }[attend, layout]


def test_an_empty_input_gives_what_torch_gives():
    theirs, ours = layers(16, 4, 16, 0.0)
    for shape in ((0, 3, 16), (3, 0, 16)):
        assert ours(torch.empty(shape)).shape == theirs(torch.empty(shape)).shape == shape
    assert ours.declined(torch.empty(0, 3, 16)) == "src is empty"


@pytest.mark.parametrize(
    "activation",
    [torch.relu, torch.nn.functional.relu, nn.ReLU(), "relu", torch.nn.functional.gelu, nn.GELU(), "gelu"],
    ids=["torch.relu", "F.relu", "ReLU()", "relu", "F.gelu", "GELU()", "gelu"],
)
def test_every_spelling_of_relu_and_gelu_runs_the_op(activation):
    theirs, ours = layers(16, 4, 16, 0.0, activation, dtype=torch.float64)
    x = torch.randn(7, 5, 16, dtype=torch.float64)
    assert ours.declined(x) is None
    torch.testing.assert_close(ours(x), theirs(x))


def test_a_hook_on_the_layer_itself_does_not_keep_it_from_the_op():
    layer = bf.TransformerEncoderLayer(16, 4)
    layer.register_forward_hook(lambda *_: None)
    assert layer.declined(torch.randn(7, 5, 16)) is None
