"""What people wrap a model in: checkpointing, autocast, copies, pickles, state_dicts, DDP, gradient modes."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import batchformer as bf
import ddp_worker
from reference import ALL, NOTHING, layers, results
from tolerances import assert_near, relative_error


@pytest.mark.parametrize("use_reentrant", [False, True], ids=["non_reentrant", "reentrant"])
def test_checkpointing_with_dropout_gives_the_same_gradients(use_reentrant):
    module = bf.BatchFormer(16, dropout=0.5)
    x, grad_y = torch.randn(9, 16), torch.randn(18, 16)

    def plain(x):
        torch.manual_seed(3)
        return module(x)[0]

    def checkpointed(x):
        torch.manual_seed(3)
        return checkpoint(lambda x: module(x)[0], x, use_reentrant=use_reentrant)

    actual, expected = results(checkpointed, module, x, grad_y), results(plain, module, x, grad_y)
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


@pytest.mark.parametrize("norm_first", [False, True], ids=["post_norm", "pre_norm"])
@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_autocast_gives_the_dtypes_of_torch(norm_first, x_dtype, training, device):
    theirs, ours = layers(32, 4, 32, 0.0, norm_first=norm_first, device=device)
    x = torch.randn(16, 5, 32, device=device, dtype=x_dtype)
    outputs, grads = [], []
    for layer in (theirs.train(training), ours.train(training)):
        leaf = x.clone().requires_grad_()
        with torch.autocast(device, torch.bfloat16):
            y = layer(leaf)
        y.float().square().sum().backward()
        outputs.append(y)
        grads.append({"x": leaf.grad} | {name: p.grad for name, p in layer.named_parameters()})
    assert outputs[1].dtype == outputs[0].dtype
    assert {name: g.dtype for name, g in grads[1].items()} == {name: g.dtype for name, g in grads[0].items()}
    assert relative_error(outputs[1], outputs[0]) < 0.03
    assert max(relative_error(grads[1][name], grads[0][name]) for name in grads[0]) < 0.15


def test_autocast_computes_the_linears_in_its_dtype():
    ours = bf.TransformerEncoderLayer(32, 4, 32, 0.0)
    x = torch.randn(16, 5, 32)
    with torch.autocast("cpu", torch.bfloat16):
        rough = ours(x)
    assert rough.dtype == torch.float32
    assert 1e-4 < relative_error(rough, ours(x)) < 0.03


def test_autocast_leaves_float64_alone():
    _, ours = layers(16, 4, 16, 0.0, dtype=torch.float64)
    x = torch.randn(5, 3, 16, dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        inside = ours(x)
    assert torch.equal(inside, ours(x))


def test_autocast_works_in_a_compiled_graph():
    module = bf.BatchFormer(16, dropout=0.0)
    compiled = torch.compile(module, fullgraph=True)
    x = torch.randn(6, 16)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(compiled(x)[0], module(x)[0])


@pytest.mark.parametrize(
    "make",
    [
        lambda: bf.BatchFormer(16, num_layers=2),
        lambda: bf.BatchFormerV2(16, layout="LNC"),
        lambda: bf.TransformerEncoderLayer(16, 4),
    ],
    ids=["BatchFormer", "BatchFormerV2", "TransformerEncoderLayer"],
)
def test_copies_and_pickles_give_the_same_result_and_share_nothing(make):
    module = make()
    x = torch.randn(6, 16) if isinstance(module, bf.BatchFormer) else torch.randn(6, 5, 16)
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    copies = [
        copy.deepcopy(module),
        pickle.loads(pickle.dumps(module)),
        torch.load(buffer, weights_only=False),
    ]

    def run(module):
        torch.manual_seed(1)
        y = module(x)
        return y[0] if isinstance(y, tuple) else y

    for other in copies:
        assert torch.equal(run(other), run(module))
        pairs = zip(other.parameters(), module.parameters(), strict=True)
        assert not any(a.data_ptr() == b.data_ptr() for a, b in pairs)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
def test_state_dicts_load_both_ways_strict(bias):
    theirs = nn.TransformerEncoderLayer(16, 4, 24, bias=bias)
    ours = bf.TransformerEncoderLayer(16, 4, 24, bias=bias)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict(), strict=True)
    theirs.load_state_dict(ours.state_dict(), strict=True)


def test_the_modules_have_the_keys_of_the_official_encoder():
    official = nn.TransformerEncoderLayer(16, 4, 16, 0.5)
    for module in (bf.BatchFormer(16), bf.BatchFormerV2(16)):
        module.encoder.load_state_dict(official.state_dict(), strict=True)
        assert set(module.state_dict()) == {f"encoder.{key}" for key in official.state_dict()}
    stacked = nn.TransformerEncoder(official, 3, enable_nested_tensor=False)
    bf.BatchFormer(16, num_layers=3).encoder.load_state_dict(stacked.state_dict(), strict=True)


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_without_gradients_the_result_is_the_same_and_nothing_is_kept(guard):
    _, layer = layers(16, 4, 16, 0.0)
    x = torch.randn(7, 5, 16, requires_grad=True)
    with guard():
        y = layer(x)
    assert not y.requires_grad
    assert torch.equal(y, layer(x).detach())


def test_the_backward_keeps_no_mask_and_no_probability():
    layer = bf.TransformerEncoderLayer(16, 4, 16, 0.5)
    n = 400
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        layer(torch.randn(n, 1, 16, requires_grad=True))
    assert kept
    assert not [shape for shape in kept if shape[-2:] == (n, n)]


def test_a_second_derivative_says_that_it_is_not_supported():
    layer = bf.TransformerEncoderLayer(16, 4, 16, 0.0)
    x = torch.randn(3, 2, 16, requires_grad=True)
    (grad,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="a second derivative is not supported"):
        grad.sum().backward()


def test_a_forward_that_kept_nothing_is_run_again_by_the_backward():
    layer = bf.TransformerEncoderLayer(16, 4, 16, 0.5)
    x = torch.randn(3, 2, 16, requires_grad=True)
    op, seed = torch.ops.batchformer.encoder_layer, torch.tensor(5)
    grads = []
    for needs in (ALL, NOTHING):
        y = op(x, *layer._parameters_of_op(), None, None, seed, *layer._config(), needs)[0]
        grads.append(torch.autograd.grad(y.square().sum(), x)[0])
    assert torch.equal(*grads)


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # of torch's own, under vmap
def test_transforms_of_torch_func_run_torchs_own_implementation():
    theirs, ours = layers(16, 4, 16, 0.0, dtype=torch.float64)
    x = torch.randn(6, 5, 3, 16, dtype=torch.float64)
    assert_near({"y": torch.vmap(ours)(x)}, {"y": torch.vmap(theirs)(x)}, torch.float64)

    def loss(layer):
        weights = {name: p.detach() for name, p in layer.named_parameters()}
        return torch.func.grad(lambda w: torch.func.functional_call(layer, w, (x[0],)).square().sum())(
            weights
        )

    assert_near(loss(ours), loss(theirs), torch.float64)


def test_functional_call_uses_the_given_parameters():
    theirs, ours = layers(16, 4, 16, 0.0, dtype=torch.float64)
    x = torch.randn(5, 3, 16, dtype=torch.float64)
    doubled = {name: 2 * p.detach() for name, p in theirs.named_parameters()}
    actual, expected = (torch.func.functional_call(layer, doubled, (x,)) for layer in (ours, theirs))
    assert_near({"y": actual}, {"y": expected}, torch.float64)


def test_the_gil_is_free_while_the_op_runs():
    layer = bf.TransformerEncoderLayer(256, 4, 256, 0.0).eval()
    x = torch.randn(1024, 2, 256)
    assert ddp_worker.longest_pause_of_another_thread(lambda: layer(x)) < 0.5 * ddp_worker.seconds(
        lambda: layer(x)
    )


@pytest.mark.filterwarnings("ignore")
def test_distributed_data_parallel_gives_the_gradients_of_torchs_layer(tmp_path):
    torch.multiprocessing.spawn(ddp_worker.compare_with_torch, (2, str(tmp_path / "store")), nprocs=2)
