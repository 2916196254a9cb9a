"""The layer against torch's own and against the plain reading, dropout off."""

import itertools
from collections import Counter

import pytest
import torch

import batchformer as bf
from devices import path_of, skip_what_is_refused
from reference import ALL, layer_forward, layers, results
from tolerances import HALF, assert_near, assert_no_worse_than_twice, squared_errors

SAMPLES = (1, 2, 3, 7, 64, 256)
POSITIONS = (1, 5, 197)
CHANNELS = (8, 48, 64, 192, 256, 512)
HEADS = (1, 2, 4, 8)


def feedforward_widths(channels: int) -> tuple[int, int, int]:
    return channels, 2 * channels, channels + 13 - channels % 2


def grid() -> list[tuple[int, int, int, int, int, bool, str, bool, bool]]:
    """Every size of up to 2.5 million elements; the other axes turn at rates without a common divisor.

    Above that, float32 says less: among so many hidden units one lands within rounding of the ReLU's 0,
    passes in one of the two evaluations only, and is all that the largest difference shows.
    """
    sizes = [
        (n, l, c) for n, l, c in itertools.product(SAMPLES, POSITIONS, CHANNELS) if n * l * c <= 2_500_000
    ]
    cases = []
    for turn, (n, l, c) in enumerate(sizes):
        heads = HEADS[turn % 4] if n * n * l < 5_000_000 else HEADS[turn % 2]
        width = feedforward_widths(c)[turn % 3]
        norm_first, activation = turn % 5 in (1, 3), ("relu", "gelu")[turn // 2 % 2]
        cases.append((n, l, c, heads, width, norm_first, activation, turn % 7 != 3, turn % 3 != 1))
    return cases + ODD


# Primes everywhere, the widest layers, the most heads.
ODD = [
    (13, 41, 52, 13, 53, False, "relu", True, True),
    (127, 7, 34, 2, 31, True, "gelu", True, True),
    (131, 3, 46, 1, 47, False, "gelu", False, True),
    (257, 1, 96, 16, 97, False, "relu", True, False),
    (521, 1, 32, 4, 32, True, "relu", True, True),
    (1031, 1, 16, 2, 16, False, "relu", True, True),
    (5, 3, 1024, 16, 1024, False, "relu", True, True),
    (3, 2, 2048, 16, 2048, True, "gelu", True, True),
    (31, 1, 2048, 8, 512, False, "relu", True, True),
    (2, 331, 64, 4, 64, False, "relu", True, True),
]


def make_input(shape: tuple[int, ...], contiguous: bool, **options: object) -> torch.Tensor:
    if contiguous:
        return torch.randn(shape, **options)
    return torch.randn((shape[2], shape[0], 2 * shape[1]), **options)[..., ::2].permute(1, 2, 0)


def nearest_to_the_kink(layer: torch.nn.TransformerEncoderLayer, x: torch.Tensor) -> float:
    """The least distance of a hidden unit to 0: within rounding, it passes in one evaluation only."""
    distances = []
    hook = layer.linear1.register_forward_hook(lambda _module, _inputs, z: distances.append(z.abs().min()))
    layer(x)
    hook.remove()
    return distances[0].item()


def test_the_grid_has_every_value_of_every_axis():
    columns = list(zip(*grid(), strict=True))
    for axis, column in zip((SAMPLES, POSITIONS, CHANNELS, HEADS), columns, strict=False):
        assert set(column) >= set(axis)
    assert all(set(column) >= {True, False} for column in (columns[5], columns[7], columns[8]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(
    ("n", "l", "c", "heads", "width", "norm_first", "activation", "bias", "contiguous"), grid()
)
def test_output_and_gradients_are_those_of_torch(
    n, l, c, heads, width, norm_first, activation, bias, contiguous, dtype, device
):
    options = {"norm_first": norm_first, "bias": bias, "device": device, "dtype": dtype}
    theirs, ours = layers(c, heads, width, 0.0, activation, **options)
    x = make_input((n, l, c), contiguous, device=device, dtype=dtype)
    while activation == "relu" and nearest_to_the_kink(theirs, x) < 3e-7:
        x = make_input((n, l, c), contiguous, device=device, dtype=dtype)
    grad_y = torch.randn(n, l, c, device=device, dtype=dtype)
    path = path_of(ours, x)
    expected = dict(bf.ops.path_counts())
    if path is not None:
        expected[path] += 2
    actual = results(ours, ours, x, grad_y)
    assert bf.ops.path_counts() == expected, "another path ran"
    assert_near(actual, results(theirs, theirs, x, grad_y), dtype)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("norm_first", [False, True], ids=["post_norm", "pre_norm"])
@pytest.mark.parametrize("width", [0, 8])
def test_heads_of_one_channel_at_several_positions_are_those_of_torch(width, norm_first, path):
    theirs, ours = layers(6, 6, width, 0.0, norm_first=norm_first, dtype=torch.float64)
    x, grad_y = torch.randn(2, 3, 2, 6, dtype=torch.float64)
    assert ours.declined(x) is None
    assert_near(results(ours, ours, x, grad_y), results(theirs, theirs, x, grad_y), torch.float64)


@pytest.mark.parametrize(
    ("n", "c", "norm_first"), [(64, 256, False), (64, 512, True), (256, 64, True), (256, 192, False)]
)
def test_output_and_gradients_of_large_inputs_are_those_of_torch_in_float64(n, c, norm_first):
    l = 197
    theirs, ours = layers(c, 2, c, 0.0, norm_first=norm_first, dtype=torch.float64)
    x, grad_y = torch.randn(2, n, l, c, dtype=torch.float64)
    assert_near(results(ours, ours, x, grad_y), results(theirs, theirs, x, grad_y), torch.float64)


@pytest.mark.parametrize("batch_first", [False, True], ids=["seq_first", "batch_first"])
@pytest.mark.parametrize("norm_first", [False, True], ids=["post_norm", "pre_norm"])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("contiguous", [True, False], ids=["contiguous", "strided"])
@pytest.mark.parametrize("width", [24, 48, 37])
def test_every_combination_of_options_is_torch_in_float64(
    batch_first, norm_first, activation, bias, contiguous, width, path
):
    options = {"batch_first": batch_first, "norm_first": norm_first, "bias": bias, "dtype": torch.float64}
    theirs, ours = layers(24, 4, width, 0.0, activation, **options)
    x = make_input((7, 5, 24), contiguous, dtype=torch.float64)
    grad_y = make_input((7, 5, 24), not contiguous, dtype=torch.float64)
    assert ours.declined(x) is None
    before = bf.ops.path_counts()[path]
    assert_near(results(ours, ours, x, grad_y), results(theirs, theirs, x, grad_y), torch.float64)
    assert bf.ops.path_counts()[path] == before + 2


@pytest.mark.parametrize("norm_first", [False, True], ids=["post_norm", "pre_norm"])
def test_the_layer_is_the_plain_reading_of_the_papers(norm_first, device):
    _, ours = layers(24, 4, 30, 0.0, norm_first=norm_first, device=device, dtype=torch.float64)
    x = torch.randn(7, 5, 24, device=device, dtype=torch.float64)
    grad_y = torch.randn_like(x)
    skip_what_is_refused(ours, x)

    def plain(x):
        return layer_forward(x, dict(ours.named_parameters()), 4, norm_first=norm_first)

    assert_near(results(ours, ours, x, grad_y), results(plain, ours, x, grad_y), torch.float64)


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("norm_first", [False, True], ids=["post_norm", "pre_norm"])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize(("n", "l", "c"), [(64, 1, 64), (7, 33, 64), (256, 1, 192)])
def test_half_precision_errs_at_most_twice_as_much_as_torch(
    n, l, c, norm_first, activation, dtype, device, path
):
    # Ten draws: in one, a single hidden unit that rounds to the other side of the ReLU's 0 decides the error.
    our_errors, their_errors = Counter(), Counter()
    for _ in range(10):
        theirs, ours = layers(c, 4, c, 0.0, activation, norm_first=norm_first, device=device, dtype=dtype)
        exact, _ = layers(c, 4, c, 0.0, activation, norm_first=norm_first, device=device, dtype=torch.float64)
        exact.load_state_dict(theirs.state_dict())
        x = torch.randn(n, l, c, device=device, dtype=dtype)
        skip_what_is_refused(ours, x)
        grad_y = torch.randn_like(x)
        truth = results(exact, exact, x.double(), grad_y.double())
        our_errors.update(squared_errors(results(ours, ours, x, grad_y), truth))
        their_errors.update(squared_errors(results(theirs, theirs, x, grad_y), truth))
    assert_no_worse_than_twice(our_errors, their_errors)


@pytest.mark.parametrize("batch_first", [False, True], ids=["seq_first", "batch_first"])
def test_an_unbatched_input_is_a_batch_of_one(batch_first):
    theirs, ours = layers(16, 4, 16, 0.0, batch_first=batch_first, dtype=torch.float64)
    x, grad_y = torch.randn(7, 16, dtype=torch.float64), torch.randn(7, 16, dtype=torch.float64)
    assert_near(results(ours, ours, x, grad_y), results(theirs, theirs, x, grad_y), torch.float64)


def test_the_two_norms_may_have_their_own_epsilon():
    theirs, ours = layers(16, 4, 16, 0.0, dtype=torch.float64)
    for layer in (theirs, ours):
        layer.norm1.eps, layer.norm2.eps = 0.1, 0.3
    x = torch.randn(7, 5, 16, dtype=torch.float64)
    assert_near({"output": ours(x)}, {"output": theirs(x)}, torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_tensors_at_an_odd_address_give_what_others_give(dtype):
    def moved(tensor: torch.Tensor) -> torch.Tensor:
        memory = bytearray(tensor.nbytes + 1)
        odd = torch.frombuffer(memory, dtype=dtype, offset=1, count=tensor.numel()).view(tensor.shape)
        assert odd.data_ptr() % 2 == 1
        return odd.copy_(tensor)

    layer = bf.TransformerEncoderLayer(16, 4, 24, 0.0, dtype=dtype)
    x, grad_y = torch.randn(5, 3, 16, dtype=dtype), torch.randn(5, 3, 16, dtype=dtype)
    expected = results(layer, layer, x, grad_y)
    for parameter in layer.parameters():
        parameter.data = moved(parameter.data)
    actual = results(layer, layer, moved(x), moved(grad_y))
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def test_the_output_is_contiguous_whatever_the_input_is():
    ours = bf.TransformerEncoderLayer(16, 4, 16, norm_first=True)
    assert ours(make_input((7, 5, 16), False)).is_contiguous()


@pytest.mark.parametrize("norm_first", [False, True], ids=["post_norm", "pre_norm"])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("p", [0.0, 0.4])
def test_gradcheck_passes_in_float64(norm_first, activation, p, device, path):
    layer = bf.TransformerEncoderLayer(
        8, 2, 6, p, activation, norm_first=norm_first, device=device, dtype=torch.float64
    )
    parameters, config = layer._parameters_of_op(), layer._config()
    seed = torch.tensor(7, device=device)

    def op(x, *parameters):
        return torch.ops.batchformer.encoder_layer(x, *parameters, None, None, seed, *config, ALL)[0]

    x = torch.randn(4, 3, 8, device=device, dtype=torch.float64, requires_grad=True)
    skip_what_is_refused(layer, x)
    assert torch.autograd.gradcheck(op, (x, *parameters))


@pytest.mark.parametrize(("batch_first", "l"), [(False, 1), (False, 3), (True, 1), (True, 3)])
def test_the_output_may_be_changed_in_place(batch_first, l, path):
    layer = bf.TransformerEncoderLayer(16, 4, 16, 0.5, batch_first=batch_first)
    x = torch.randn(5, l, 16, requires_grad=True)
    layer(x).add_(1).square().sum().backward()
    assert x.grad.any()


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_a_layer_without_hidden_units_is_torchs():
    theirs, ours = layers(16, 4, 0, 0.0, dtype=torch.float64)
    x = torch.randn(5, 3, 16, dtype=torch.float64)
    grad_y = torch.randn_like(x)
    assert_near(results(ours, ours, x, grad_y), results(theirs, theirs, x, grad_y), torch.float64)


def test_frozen_parameters_get_no_gradient_and_the_input_still_does():
    theirs, ours = layers(16, 4, 16, 0.0, dtype=torch.float64)
    x = torch.randn(5, 3, 16, dtype=torch.float64)
    grads = []
    for layer in (theirs, ours):
        layer.requires_grad_(False).linear1.weight.requires_grad_(True)
        leaf = x.clone().requires_grad_()
        layer(leaf).sum().backward()
        assert [name for name, p in layer.named_parameters() if p.grad is not None] == ["linear1.weight"]
        grads.append({"x": leaf.grad, "linear1": layer.linear1.weight.grad})
    assert_near(grads[1], grads[0], torch.float64)
