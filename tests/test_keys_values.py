"""The op with keys and values that a call brings: against the plain reading, and the op with its own."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounterWithBackend
from torch.library import opcheck
from torch.utils.flop_counter import FlopCounterMode

import batchformer as bf
from batchformer.benchmark.competitors import OURS, Setting
from batchformer.benchmark.memory import peak_floats, saved_floats
from batchformer.benchmark.shapes import Shape
from reference import ALL, layers, multiplier, multipliers, of_queries
from tolerances import assert_near, relative_error

C, F_WIDTH, HEADS = 24, 37, 4
# N, K, L: one position, several by rows, tiles of positions; fewer keys and more, blocks of keys.
SHAPES = [(1, 1, 1), (7, 5, 1), (130, 33, 1), (64, 300, 1), (2, 9, 150), (5, 1, 3), (3, 130, 4), (4, 40, 150)]


def layer_of(dtype=torch.float64, **options):
    return layers(C, HEADS, F_WIDTH, 0.0, dtype=dtype, **options)[1]


def tokens(layer, n, l, width=C, dtype=torch.float64):
    shape = (l, n, width) if layer.self_attn.batch_first else (n, l, width)
    return torch.randn(shape, dtype=dtype)


def op(layer, x, keys_values, seed=None, key_count=None, dropout=(0.0,) * 4):
    parameters = of_queries(layer)
    needs = [tensor is not None and tensor.requires_grad for tensor in (x, *parameters, keys_values)]
    seed = None if seed is None else torch.tensor(seed)
    config = layer._config()._replace(dropout=dropout)
    return torch.ops.batchformer.encoder_layer(x, *parameters, keys_values, key_count, seed, *config, needs)[
        0
    ]


def plain(layer, x, keys_values, masks=None):
    """The reading in a few lines: queries of x, keys and values as they are brought."""
    weights, masks = dict(layer.named_parameters()), masks or {}
    batch_first, norm_first = layer.self_attn.batch_first, layer.norm_first
    function = F.gelu if layer.activation is F.gelu else torch.relu
    x, keys_values = (each.transpose(0, 1) if batch_first else each for each in (x, keys_values))
    (n, l, channels), k = x.shape, len(keys_values)
    normed = F.layer_norm(x, (channels,), layer.norm1.weight, layer.norm1.bias) if norm_first else x
    bias = weights.get("self_attn.in_proj_bias")
    query = F.linear(
        normed, weights["self_attn.in_proj_weight"][:channels], None if bias is None else bias[:channels]
    )
    query = query.view(n, l, HEADS, -1)
    key, value = keys_values.reshape(k, l, 2, HEADS, -1).unbind(2)
    scores = torch.einsum("nlhd,klhd->lhnk", query, key) / (channels // HEADS) ** 0.5
    probabilities = scores.softmax(-1) * masks.get("attention", 1.0)
    attended = torch.einsum("lhnk,klhd->nlhd", probabilities, value).reshape(n, l, channels)
    branch = layer.self_attn.out_proj(attended) * masks.get("residual1", 1.0)

    def feedforward(each):
        hidden = function(layer.linear1(each)) * masks.get("hidden", 1.0)
        return layer.linear2(hidden) * masks.get("residual2", 1.0)

    if norm_first:
        y = x + branch
        y = y + feedforward(layer.norm2(y))
    else:
        y = layer.norm1(x + branch)
        y = layer.norm2(y + feedforward(y))
    return y.transpose(0, 1) if batch_first else y


def everything(layer, call, x, keys_values, grad_y):
    x, keys_values = (each.detach().requires_grad_() for each in (x, keys_values))
    layer.zero_grad()
    y = call(layer, x, keys_values)
    y.backward(grad_y)
    grads = {name: parameter.grad.clone() for name, parameter in layer.named_parameters()}
    return {"y": y.detach(), "x": x.grad, "keys_values": keys_values.grad, **grads}


@pytest.mark.parametrize("norm_first", [False, True], ids=["post_norm", "pre_norm"])
@pytest.mark.parametrize("batch_first", [False, True], ids=["seq_first", "batch_first"])
@pytest.mark.parametrize(("n", "k", "l"), SHAPES)
def test_output_and_gradients_are_the_plain_reading(n, k, l, norm_first, batch_first, path):
    activation, bias = ("gelu", False) if (n + norm_first) % 2 else ("relu", True)
    options = {"norm_first": norm_first, "batch_first": batch_first, "activation": activation, "bias": bias}
    layer = layer_of(**options)
    x, grad_y, keys_values = tokens(layer, n, l), tokens(layer, n, l), tokens(layer, k, l, 2 * C)
    actual, expected = (everything(layer, call, x, keys_values, grad_y) for call in (op, plain))
    assert_near(actual, expected, torch.float64)


@pytest.mark.parametrize("norm_first", [False, True], ids=["post_norm", "pre_norm"])
@pytest.mark.parametrize(("n", "k", "l"), [(7, 5, 3), (65, 130, 1), (2, 9, 150)])
def test_the_dropout_of_each_site_is_that_of_its_element(n, k, l, norm_first, path):
    seed, p = -987, {"attention": 0.5, "hidden": 0.25, "residual1": 0.1, "residual2": 0.8}
    layer = layer_of(norm_first=norm_first)
    masks = multipliers(seed, p, n, l, C, F_WIDTH, HEADS)
    masks["attention"] = multiplier(seed, "attention", p["attention"], (l, HEADS, n, k))
    x, grad_y, keys_values = tokens(layer, n, l), tokens(layer, n, l), tokens(layer, k, l, 2 * C)

    def with_dropout(layer, x, keys_values):
        return op(layer, x, keys_values, seed, dropout=tuple(p.values()))

    def masked(layer, x, keys_values):
        return plain(layer, x, keys_values, masks)

    actual, expected = (everything(layer, call, x, keys_values, grad_y) for call in (with_dropout, masked))
    assert_near(actual, expected, torch.float64)


@pytest.mark.parametrize("norm_first", [False, True], ids=["post_norm", "pre_norm"])
@pytest.mark.parametrize(("n", "l"), [(33, 1), (130, 1), (4, 150), (3, 5)])
def test_with_the_samples_own_keys_it_is_the_layer_with_its_dropout_too(n, l, norm_first, path):
    layer = layer_of(norm_first=norm_first)
    x, grad_y = tokens(layer, n, l), tokens(layer, n, l)
    dropout, seed = (0.5, 0.5, 0.5, 0.5), 7

    def own(layer, x, _):
        config = layer._config()._replace(dropout=dropout)
        parameters = layer._parameters_of_op()
        return torch.ops.batchformer.encoder_layer(
            x, *parameters, None, None, torch.tensor(seed), *config, ALL
        )[0]

    def brought(layer, x, _):
        normed = layer.norm1(x) if norm_first else x
        attention = layer.self_attn
        keys_values = F.linear(normed, attention.in_proj_weight[C:], attention.in_proj_bias[C:])
        return op(layer, x, keys_values, seed, dropout=dropout)

    unused = torch.zeros(1, requires_grad=True)
    actual, expected = (
        everything(layer, lambda *a, call=call: call(*a) + 0 * a[2].sum(), x, unused, grad_y)
        for call in (brought, own)
    )
    assert_near(actual, expected, torch.float64)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("batch_first", [False, True], ids=["seq_first", "batch_first"])
@pytest.mark.parametrize(("n", "k", "l"), [(7, 12, 1), (2, 9, 150), (66, 300, 1)])
def test_keys_that_do_not_count_change_nothing(n, k, l, batch_first, dropout, path):
    layer = layer_of(batch_first=batch_first)
    x, grad_y, keys_values = tokens(layer, n, l), tokens(layer, n, l), tokens(layer, k, l, 2 * C)
    counted, axis, seed = k // 2, int(batch_first), 3
    rest = {"dropout": (dropout,) * 4, "seed": seed if dropout else None}

    def some(layer, x, keys_values):
        return op(layer, x, keys_values, key_count=torch.tensor(counted), **rest)

    actual = everything(layer, some, x, keys_values, grad_y)
    assert not actual["keys_values"].narrow(axis, counted, k - counted).any()
    keys_values.narrow(axis, counted, k - counted).fill_(float("nan"))
    again = everything(layer, some, x, keys_values, grad_y)
    assert all(torch.equal(actual[name], again[name]) for name in actual)
    if not dropout:
        expected = everything(layer, op, x, keys_values.narrow(axis, 0, counted), grad_y)
        actual["keys_values"] = actual["keys_values"].narrow(axis, 0, counted)
        assert_near(actual, expected, torch.float64)


@pytest.mark.parametrize("norm_first", [False, True], ids=["post_norm", "pre_norm"])
@pytest.mark.parametrize(("n", "k", "l"), [(5, 9, 1), (2, 9, 150)])
def test_a_gradient_is_the_same_whichever_others_are_needed(n, k, l, norm_first, path):
    layer = layer_of(norm_first=norm_first)
    names = ("x", *bf.ops.Parameters._fields, "keys_values")
    x, grad_y, keys_values = tokens(layer, n, l), tokens(layer, n, l), tokens(layer, k, l, 2 * C)
    forward, backward = torch.ops.batchformer.encoder_layer, torch.ops.batchformer.encoder_layer_backward
    arguments = (x, *of_queries(layer), keys_values, None, None, *layer._config())

    def gradients(chosen):
        needs = [name in chosen for name in names]
        _, saved = forward(*arguments, needs)
        grads = backward(grad_y, *arguments, saved, needs)
        return dict(zip([name for name in names if name in chosen], grads, strict=True))

    expected = gradients(names)
    for chosen in (*({name} for name in names), {"x", "keys_values"}, {"norm1_weight", "keys_values"}):
        grads = gradients(chosen)
        assert [name for name in grads if not torch.equal(grads[name], expected[name])] == []


def test_what_is_no_number_stays_at_its_position():
    layer = layer_of()
    x, keys_values = tokens(layer, 2, 150), tokens(layer, 9, 150, 2 * C)
    expected = op(layer, x, keys_values)
    keys_values[3, 70, -1] = float("nan")
    y = op(layer, x, keys_values)
    others = [position for position in range(150) if position != 70]
    torch.testing.assert_close(y[:, others], expected[:, others])
    assert y[:, 70].isnan().all()


@pytest.mark.parametrize(("n", "k", "l"), [(64, 300, 1), (2, 40, 150), (130, 33, 1)])
def test_any_number_of_threads_gives_the_same_bits(n, k, l):
    layer = layer_of(torch.float32)
    x, grad_y = tokens(layer, n, l, dtype=torch.float32), tokens(layer, n, l, dtype=torch.float32)
    keys_values = tokens(layer, k, l, 2 * C, torch.float32)
    results = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        results.append(everything(layer, op, x, keys_values, grad_y))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


@pytest.mark.parametrize("large", [40.0, 1e3])
def test_queries_with_large_scores_have_exact_gradients(large):
    layer = layer_of()
    x, grad_y, keys_values = tokens(layer, 5, 1), tokens(layer, 5, 1), large * tokens(layer, 300, 1, 2 * C)
    actual, expected = (everything(layer, call, x, keys_values, grad_y) for call in (op, plain))
    assert_near(actual, expected, torch.float64)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_as_near_as_its_rounding(dtype, path):
    layer, wide = layer_of(dtype), layer_of()
    wide.load_state_dict({name: value.double() for name, value in layer.state_dict().items()})
    x, keys_values = tokens(layer, 6, 3, dtype=dtype), tokens(layer, 11, 3, 2 * C, dtype)
    grad_y = tokens(layer, 6, 3, dtype=dtype)
    actual = everything(layer, op, x, keys_values, grad_y)
    expected = everything(wide, plain, x.double(), keys_values.double(), grad_y.double())
    assert {name: each.dtype for name, each in actual.items()} == dict.fromkeys(actual, dtype)
    too_far = {name: relative_error(actual[name], expected[name]) for name in actual}
    assert max(too_far.values()) < 16 * torch.finfo(dtype).eps, too_far


def test_autocast_casts_keys_and_values_as_the_linears():
    layer = layer_of(torch.float32)
    x, keys_values = tokens(layer, 6, 3, dtype=torch.float32), tokens(layer, 11, 3, 2 * C, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        actual = everything(layer, op, x, keys_values, x)
    expected = everything(layer, op, x, keys_values, x)
    assert {name: each.dtype for name, each in actual.items()} == dict.fromkeys(actual, torch.float32)
    assert all(relative_error(actual[name], expected[name]) < 0.1 for name in actual)


def call_arguments(*, grad=True, **options):
    layer = layer_of(torch.float32, **options)
    layer.requires_grad_(grad)
    x, keys_values = (
        tokens(layer, rows, 3, width, torch.float32).requires_grad_(grad)
        for rows, width in ((5, C), (8, 2 * C))
    )
    needs = [grad and tensor is not None for tensor in (x, *layer._parameters_of_op(), keys_values)]
    config = layer._config()._replace(dropout=(0.3,) * 4)
    return x, *of_queries(layer), keys_values, torch.tensor(6), torch.tensor(4), *config, needs


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # torch 2.14's own, of its copies
@pytest.mark.parametrize("norm_first", [False, True], ids=["post_norm", "pre_norm"])
def test_opcheck_passes(norm_first):
    leaves = call_arguments(norm_first=norm_first, batch_first=norm_first)
    arguments = [
        each.detach().requires_grad_() if isinstance(each, torch.Tensor) and each.requires_grad else each
        for each in leaves
    ]
    opcheck(torch.ops.batchformer.encoder_layer.default, tuple(arguments))
    x, *rest = call_arguments(norm_first=norm_first, grad=False)
    needs = [True] * 14
    _, saved = torch.ops.batchformer.encoder_layer(x, *rest[:-1], needs)
    opcheck(
        torch.ops.batchformer.encoder_layer_backward.default,
        (torch.randn_like(x), x, *rest[:-1], saved, needs),
    )


def test_a_compiled_step_is_the_eager_one_for_any_number_of_keys_that_count():
    layer = layer_of()

    def step(x, keys_values, count):
        parameters = of_queries(layer)
        return bf.ops.encoder_layer(x, parameters, layer._config(), keys_values=keys_values, key_count=count)

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(step, fullgraph=True, backend=counter)
    x, grad_y, keys_values = tokens(layer, 6, 3), tokens(layer, 6, 3), tokens(layer, 11, 3, 2 * C)
    for count in (1, 4, 11):
        actual, expected = (
            everything(
                layer,
                lambda _, *a, call=call, count=count: call(*a, torch.tensor(count)),
                x,
                keys_values,
                grad_y,
            )
            for call in (compiled, step)
        )
        assert_near(actual, expected, torch.float64)
    assert counter.frame_count == 1


def test_ranks_with_the_same_random_state_draw_different_masks():
    layer = bf.TransformerEncoderLayer(C, HEADS, F_WIDTH, 0.5)
    x, keys_values = torch.randn(6, 3, C), torch.randn(9, 3, 2 * C)

    def drawn(rank):
        torch.manual_seed(0)
        parameters, config = of_queries(layer), layer._config()
        return bf.ops.encoder_layer(x, parameters, config, keys_values=keys_values, rank=rank)

    ys = [drawn(rank) for rank in range(4)]
    assert torch.equal(ys[1], drawn(1))
    assert not any(torch.allclose(a, b) for a, b in itertools.combinations(ys, 2))


def test_recompute_keeps_the_arguments_alone_and_gives_the_same():
    layer = layer_of()
    x, grad_y, keys_values = tokens(layer, 6, 3), tokens(layer, 6, 3), tokens(layer, 9, 3, 2 * C)

    def call(layer, x, keys_values, *, recompute):
        torch.manual_seed(0)
        config = layer._config()._replace(dropout=(0.5,) * 4)
        return bf.ops.encoder_layer(
            x, of_queries(layer), config, keys_values=keys_values, recompute=recompute
        )

    results = [
        everything(
            layer, lambda *a, recompute=recompute: call(*a, recompute=recompute), x, keys_values, grad_y
        )
        for recompute in (False, True)
    ]
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_keys_of_probability_0_may_come_first():
    """The first block of them has no score above -inf."""
    layer = layer_of(torch.float32)
    with torch.no_grad():
        layer.self_attn.in_proj_weight[:C] = 0
        layer.self_attn.in_proj_bias[:C] = 10
    keys_values = tokens(layer, 200, 1, 2 * C, torch.float32)
    without = keys_values[130:].clone().requires_grad_()
    keys_values[:130, :, :C] = -3e38
    x = tokens(layer, 5, 1, dtype=torch.float32)
    keys_values.requires_grad_()
    actual, expected = (op(layer, x, each) for each in (keys_values, without))
    (grad,) = torch.autograd.grad(actual.square().sum(), keys_values)
    (grad_without,) = torch.autograd.grad(expected.square().sum(), without)
    assert relative_error(actual.detach(), expected.detach()) < 1e-6
    assert relative_error(grad[130:, :, C:], grad_without[:, :, C:]) < 1e-5
    assert not grad[:130, :, C:].any()


def test_memory_grows_with_samples_and_keys_and_not_with_their_product():
    setting = Setting(torch.device("cpu"), torch.float32, dropout=0.5)
    shape = Shape("", 1024, 1, 64, keys=4096)
    tokens_of_keys = 2 * shape.keys / shape.samples  # keys and values, in multiples of N C
    assert saved_floats(OURS, shape, setting) < tokens_of_keys + 10
    pairs = shape.heads * shape.keys / shape.channels  # the N x K probabilities of all heads
    peak = peak_floats(OURS, shape, setting, threads=1)
    assert 3 * tokens_of_keys < peak < 3 * tokens_of_keys + 60 < pairs / 2


def test_the_products_of_all_keys_are_counted():
    layer = layer_of(torch.float32)
    x, keys_values = tokens(layer, 6, 3, dtype=torch.float32), tokens(layer, 11, 3, 2 * C, torch.float32)
    with FlopCounterMode(display=False) as counter:
        op(layer, x, keys_values, 3, dropout=(0.5,) * 4)
    linears = 6 * 3 * (2 * C * C + 2 * C * F_WIDTH)
    assert counter.get_total_flops() == 2 * (linears + 2 * 3 * 6 * 11 * C)
