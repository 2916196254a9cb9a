"""The ops as torch sees them: opcheck, torch.compile, torch.export, batched gradients, counters."""

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.export import Dim
from torch.library import opcheck
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

import batchformer as bf
from reference import ALL, layers
from tolerances import assert_near


def arguments(
    device: str,
    *,
    contiguous: bool = True,
    grad: bool = True,
    needed: bool = True,
    hidden: int = 12,
    **options,
):
    layer = bf.TransformerEncoderLayer(8, 2, hidden, 0.3, device=device, **options)
    layer.requires_grad_(grad)
    x = torch.randn(5, 3, 8, device=device, dtype=options.get("dtype"))
    if not contiguous:
        x = x.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    seed = torch.tensor(42, device=device)
    parameters = layer._parameters_of_op()
    needs = [needed and tensor is not None for tensor in (x, *parameters, None)]
    return x.requires_grad_(grad), *parameters, None, None, seed, *layer._config(), needs


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # torch 2.14's own, of its copies
@pytest.mark.parametrize("norm_first", [False, True], ids=["post_norm", "pre_norm"])
@pytest.mark.parametrize("batch_first", [False, True], ids=["seq_first", "batch_first"])
@pytest.mark.parametrize(
    "options",
    [{}, {"bias": False, "activation": "gelu"}, {"contiguous": False}, {"grad": False, "needed": False}],
    ids=["default", "no bias, gelu", "strided", "inference"],
)
def test_opcheck_passes_on_the_forward(norm_first, batch_first, options, device):
    opcheck(
        torch.ops.batchformer.encoder_layer.default,
        arguments(device, norm_first=norm_first, batch_first=batch_first, **options),
    )


@pytest.mark.parametrize("norm_first", [False, True], ids=["post_norm", "pre_norm"])
@pytest.mark.parametrize("contiguous", [True, False], ids=["contiguous", "strided"])
def test_opcheck_passes_on_the_backward(norm_first, contiguous, device):
    x, *rest = arguments(device, norm_first=norm_first, contiguous=contiguous, grad=False)
    _, saved = torch.ops.batchformer.encoder_layer(x, *rest)
    grad_y = torch.randn_like(x)
    opcheck(torch.ops.batchformer.encoder_layer_backward.default, (grad_y, x, *rest[:-1], saved, rest[-1]))


def saved_by_fakes_and_by(*call) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """What the forward leaves for fake tensors like these, and for these."""
    mode = FakeTensorMode()
    fake_call = tree_map_only(torch.Tensor, mode.from_tensor, call)
    with mode:
        _, fakes = torch.ops.batchformer.encoder_layer(*fake_call)
    _, saved = torch.ops.batchformer.encoder_layer(*call)
    return fakes, saved


def layouts(outputs) -> list[tuple[object, ...]]:
    return [(tuple(y.shape), y.stride(), y.dtype, y.device) for y in outputs]


@pytest.mark.parametrize("contiguous", [True, False], ids=["contiguous", "strided"])
@pytest.mark.parametrize("norm_first", [False, True], ids=["post_norm", "pre_norm"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("autocast", [False, True], ids=["plain", "autocast"])
def test_fake_tensors_have_the_layout_of_the_real_ones(contiguous, norm_first, dtype, autocast):
    # opcheck does not compare strides; compiled code relies on them.
    options = {"norm_first": norm_first, "batch_first": norm_first, "grad": False, "dtype": dtype}
    x, *rest = arguments("cpu", contiguous=contiguous, **options)
    mode = FakeTensorMode()
    forward, backward = torch.ops.batchformer.encoder_layer, torch.ops.batchformer.encoder_layer_backward
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y, saved = forward(x, *rest)
        fake_x, *fake_rest = tree_map_only(torch.Tensor, mode.from_tensor, [x, *rest])
        with mode:
            fake_y, fake_saved = forward(fake_x, *fake_rest)
    assert layouts([fake_y, *fake_saved]) == layouts([y, *saved])
    if autocast:
        return
    grads = backward(x, x, *rest[:-1], saved, rest[-1])
    with mode:
        fake_grads = backward(fake_x, fake_x, *fake_rest[:-1], fake_saved, rest[-1])
    assert layouts(fake_grads) == layouts(grads)


@pytest.mark.parametrize("norm_first", [False, True], ids=["post_norm", "pre_norm"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("n", "l"), [(1, 1), (128, 1), (129, 1), (128, 4), (129, 4), (2, 256), (1, 3)])
@pytest.mark.parametrize("needed", [(0,), range(13), (12,), (3,), (5, 7), (0, 1), ()], ids=str)
def test_fake_tensors_know_what_the_forward_leaves(n, l, norm_first, dtype, needed):
    _, *rest = arguments("cpu", norm_first=norm_first, batch_first=norm_first, grad=False, dtype=dtype)
    x = torch.randn((l, n, 8) if norm_first else (n, l, 8), dtype=dtype)
    rest[-1] = [i in needed for i in range(14)]
    fakes, saved = saved_by_fakes_and_by(x, *rest)
    assert layouts(fakes) == layouts(saved)
    assert bool(saved) == bool(needed)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_fake_tensors_know_what_a_layer_without_hidden_units_leaves(dtype):
    fakes, saved = saved_by_fakes_and_by(*arguments("cpu", hidden=0, grad=False, dtype=dtype))
    assert layouts(fakes) == layouts(saved)


@pytest.mark.parametrize("name", ["x", "linear2_bias", "seed"])
def test_a_tensor_left_on_meta_is_refused_instead_of_read(name):
    """The dispatcher takes the fake kernel then, and what comes out would be memory that nobody wrote."""
    names = ("x", *bf.ops.Parameters._fields, "keys_values", "key_count", "seed")
    tensors = list(arguments("cpu", grad=False))
    tensors[names.index(name)] = tensors[names.index(name)].to("meta")
    found = "in_proj_weight: expected device meta" if name == "x" else f"{name}: expected device cpu"
    with pytest.raises(ValueError, match=found):
        torch.ops.batchformer.encoder_layer(*tensors)
    if name == "x":
        return
    x, *rest = arguments("cpu", grad=False)
    _, saved = torch.ops.batchformer.encoder_layer(x, *rest)
    with pytest.raises(ValueError, match=found):
        torch.ops.batchformer.encoder_layer_backward(x, *tensors[:-1], saved, tensors[-1])


def test_every_op_of_the_namespace_is_checked_here():
    assert set(dir(torch.ops.batchformer)) >= {"encoder_layer", "encoder_layer_backward"}
    names = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("batchformer::")}
    assert names == {
        "batchformer::encoder_layer",
        "batchformer::encoder_layer_backward",
        "batchformer::first_forward",
        "batchformer::all_gather_samples",  # both in tests/test_ranks.py
        "batchformer::reduce_scatter_samples",
    }


def test_opcheck_passes_on_what_tells_a_first_forward():
    for count in (torch.tensor(3), torch.arange(4)):
        opcheck(torch.ops.batchformer.first_forward.default, (count,))


MODULES = {
    "BatchFormer": (lambda: bf.BatchFormer(16, dropout=0.0), lambda n: (torch.randn(n, 16), torch.arange(n))),
    "BatchFormerV2": (lambda: bf.BatchFormerV2(16, dropout=0.0), lambda n: (torch.randn(n, 5, 16),)),
    "BatchFormerV2 NCHW": (
        lambda: bf.BatchFormerV2(16, dropout=0.0, layout="NCHW"),
        lambda n: (torch.randn(n, 16, 3, 2),),
    ),
    "TransformerEncoderLayer": (
        lambda: bf.TransformerEncoderLayer(16, 4, 24, 0.0, "gelu", norm_first=True, batch_first=True),
        lambda n: (torch.randn(n, 5, 16),),
    ),
}


def step(call, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> dict[str, torch.Tensor]:
    module.zero_grad()
    x = inputs[0].clone().requires_grad_()
    outputs = call(x, *inputs[1:])
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    outputs[0].square().sum().backward()
    grads = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    return {"grad of x": x.grad, **{f"output {i}": y.detach() for i, y in enumerate(outputs)}, **grads}


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compiled_without_a_graph_break_the_results_are_the_same(name, dynamic):
    make, inputs_for = MODULES[name]
    module = make()
    compiled = torch.compile(module, fullgraph=True, dynamic=dynamic)
    for mode in (True, False, True):
        module.train(mode)
        for n in (6, 9):
            inputs = inputs_for(n)
            assert_near(step(compiled, module, inputs), step(module, module, inputs), torch.float32)


def test_a_dynamic_graph_serves_every_batch_size():
    module = bf.BatchFormer(16)
    graphs = []

    def count(graph, _):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend=count)
    for n in (6, 9, 33):
        assert compiled(torch.randn(n, 16), torch.arange(n))[0].shape == (2 * n, 16)
    assert len(graphs) == 1


def test_a_compiled_module_with_dropout_draws_anew_at_every_call():
    compiled = torch.compile(bf.BatchFormer(16), fullgraph=True)
    x = torch.randn(6, 16)
    torch.manual_seed(5)
    first, second = compiled(x)[0], compiled(x)[0]
    torch.manual_seed(5)
    assert not torch.equal(first, second)
    assert torch.equal(first, compiled(x)[0])


def test_an_exported_evaluation_model_has_no_trace_of_the_module():
    class Classifier(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = torch.nn.Linear(12, 16)
            self.batchformer = bf.BatchFormer(16)
            self.tokens = bf.BatchFormerV2(16)
            self.head = torch.nn.Linear(16, 3)

        def forward(self, x):
            x, _ = self.batchformer(self.backbone(x))
            return self.head(self.tokens(x.unsqueeze(1)).squeeze(1))

    model = Classifier().eval()
    x = torch.randn(4, 12)
    program = torch.export.export(model, (x,), dynamic_shapes={"x": {0: torch.export.Dim("n", min=2)}})
    assert [str(node.target) for node in program.graph.nodes if node.op == "call_function"] == [
        "aten.linear.default",
        "aten.unsqueeze.default",
        "aten.squeeze.dim",
        "aten.linear.default",
    ]
    used = [node.name for node in program.graph.nodes if node.users]
    assert not [name for name in used if "batchformer" in name or "tokens" in name]
    torch.testing.assert_close(program.module()(x), model(x))


def test_an_exported_encoder_layer_is_one_op():
    layer = bf.TransformerEncoderLayer(16, 4).eval()
    program = torch.export.export(layer, (torch.randn(4, 3, 16),))
    targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert "batchformer.encoder_layer.default" in targets
    assert not [target for target in targets if "linear" in target or "softmax" in target]


EXPORTS = {
    "TransformerEncoderLayer": (
        lambda: bf.TransformerEncoderLayer(16, 4, 24, 0.0),
        lambda n, l: (torch.randn(n, l, 16),),
        {"src": {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}},
    ),
    "BatchFormer": (
        lambda: bf.BatchFormer(16, dropout=0.0),
        lambda n, l: (torch.randn(n, 16), torch.arange(n)),
        {"x": {0: Dim.DYNAMIC}, "y": {0: Dim.DYNAMIC}},
    ),
    "BatchFormer of a stack, self": (
        lambda: bf.BatchFormer(16, dropout=0.0, num_layers=2, attend="alone"),
        lambda n, l: (torch.randn(n, 16), torch.arange(n)),
        {"x": {0: Dim.DYNAMIC}, "y": {0: Dim.DYNAMIC}},
    ),
    "BatchFormerV2 NLC": (
        lambda: bf.BatchFormerV2(16, dropout=0.0),
        lambda n, l: (torch.randn(n, l, 16),),
        {"x": {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}},
    ),
    "BatchFormerV2 LNC": (
        lambda: bf.BatchFormerV2(16, dropout=0.0, layout="LNC"),
        lambda n, l: (torch.randn(l, n, 16),),
        {"x": {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}},
    ),
    "BatchFormerV2 NCHW": (
        lambda: bf.BatchFormerV2(16, dropout=0.0, layout="NCHW"),
        lambda n, l: (torch.randn(n, 16, l, 3),),
        {"x": {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}},
    ),
}


@pytest.mark.parametrize("name", EXPORTS)
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_an_exported_program_serves_every_batch_size_and_number_of_positions(name, training):
    make, inputs_for, shapes = EXPORTS[name]
    module = make().train(training)
    program = torch.export.export(module, inputs_for(6, 5), dynamic_shapes=shapes).module()
    for n, l in ((6, 5), (3, 7), (200, 4)):  # below and above the bound of tiles
        inputs = inputs_for(n, l)
        torch.testing.assert_close(program(*inputs), module(*inputs))


@pytest.mark.parametrize("options", [{}, {"norm_first": True, "bias": False}, {"batch_first": True}], ids=str)
@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
def test_batched_gradients_are_those_of_torchs_layer(options, recompute):
    theirs, ours = layers(8, 2, 12, 0.0, dtype=torch.float64, **options)
    ours.recompute = recompute
    x = torch.randn(3, 2, 8, dtype=torch.float64)
    rows = torch.eye(x.numel(), dtype=torch.float64).view(-1, *x.shape)
    gradients = []
    for layer in (theirs, ours):
        source = x.clone().requires_grad_()
        inputs = (source, *layer.parameters())
        gradients.append(torch.autograd.grad(layer(source), inputs, rows, is_grads_batched=True))
    torch.testing.assert_close(gradients[1], gradients[0])
    jacobian = torch.autograd.functional.jacobian(ours, x, vectorize=True)
    torch.testing.assert_close(jacobian.flatten(3).sum(-1), gradients[1][0].view(*x.shape, -1).sum(-1))


@pytest.mark.parametrize("batched", ["x", "seed", "linear1_weight", "x twice"])
def test_the_op_under_vmap_is_the_op_for_each_entry(batched):
    x, *rest = arguments("cpu", grad=False, needed=False)
    position = {"x": 0, "x twice": 0, "linear1_weight": 5, "seed": 15}[batched]
    entries = torch.stack([(x, *rest)[position], 2 * (x, *rest)[position]], -1)

    def call(entry):
        every = [x, *rest]
        every[position] = entry
        return torch.ops.batchformer.encoder_layer(*every)[0]

    expected = torch.stack([call(entry) for entry in entries.unbind(-1)])
    assert torch.equal(torch.vmap(call, in_dims=-1)(entries), expected)
    if batched == "x twice":
        twice = torch.vmap(torch.vmap(call, in_dims=-1))(torch.stack([entries, entries]))
        assert torch.equal(twice, torch.stack([expected, expected]))


def flops(call, x: torch.Tensor, *, backward: bool) -> int:
    with FlopCounterMode(display=False) as counter:
        y = call(x.clone().requires_grad_(backward))
        if backward:
            y.sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("batch_first", [False, True], ids=["seq_first", "batch_first"])
@pytest.mark.parametrize("norm_first", [False, True], ids=["post_norm", "pre_norm"])
def test_as_many_operations_are_counted_as_in_torchs_layer(dropout, training, batch_first, norm_first):
    options = {"batch_first": batch_first, "norm_first": norm_first}
    theirs, ours = (layer.train(training) for layer in layers(16, 4, 24, dropout, **options))
    x = torch.randn(6, 5, 16)

    def op(x):
        rest = (torch.tensor(3), *ours._config(), ALL)
        return torch.ops.batchformer.encoder_layer(x, *ours._parameters_of_op(), None, None, *rest)[0]

    for backward in (False, True):
        expected = flops(theirs, x, backward=backward)
        assert expected >= 2 * 6 * 5 * (4 * 16 * 16 + 2 * 16 * 24)
        assert flops(ours, x, backward=backward) == flops(op, x, backward=backward) == expected


@pytest.mark.parametrize("norm_first", [False, True], ids=["post_norm", "pre_norm"])
@pytest.mark.parametrize(
    "trained", ["x", "parameters", "linear2.weight", "norm1.weight", "self_attn.out_proj"]
)
def test_what_needs_no_gradient_is_not_counted(trained, norm_first):
    theirs, ours = layers(16, 4, 24, 0.1, norm_first=norm_first)
    for layer in (theirs, ours):
        for name, parameter in layer.named_parameters():
            parameter.requires_grad_(trained == "parameters" or name.startswith(trained))
    x = torch.randn(6, 5, 16, requires_grad=trained == "x")

    def op(x):
        parameters = ours._parameters_of_op()
        needs = [*(tensor.requires_grad for tensor in (x, *parameters)), False]
        return torch.ops.batchformer.encoder_layer(
            x, *parameters, None, None, torch.tensor(3), *ours._config(), needs
        )[0]

    counts = []
    for call in (op, theirs):
        with FlopCounterMode(display=False) as counter:
            call(x).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1]


def test_the_profiler_shows_the_ops_with_their_shapes():
    layer = bf.TransformerEncoderLayer(16, 4, 24)
    with torch.profiler.profile(record_shapes=True, acc_events=True) as profile:
        layer(torch.randn(6, 5, 16)).sum().backward()
    shapes = {event.name: event.input_shapes for event in profile.events() if "batchformer" in event.name}
    assert shapes.keys() == {"batchformer::encoder_layer", "batchformer::encoder_layer_backward"}
    assert shapes["batchformer::encoder_layer"][:2] == [[6, 5, 16], [48, 16]]
    assert shapes["batchformer::encoder_layer_backward"][:3] == [[6, 5, 16], [6, 5, 16], [48, 16]]


def test_the_meta_device_gives_the_shape():
    layer = bf.TransformerEncoderLayer(16, 4, device="meta")
    y = layer(torch.empty(7, 5, 16, device="meta"))
    assert y.shape == (7, 5, 16)
    assert y.device.type == "meta"
