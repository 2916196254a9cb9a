"""BatchFormer and BatchFormerV2 against the official lines, and their properties."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import batchformer as bf
from tolerances import assert_near

F64 = {"dtype": torch.float64}


def official_lines(x, y, encoder, is_training):
    """The README of the official repository: [N, C] is a sequence of N with an inner batch of 1."""
    if not is_training:
        return x, y
    pre_x = x
    x = encoder(x.unsqueeze(1)).squeeze(1)
    return torch.cat([pre_x, x], dim=0), torch.cat([y, y], dim=0)


def official_lines_v2(x, encoder, is_training, insert_index):
    """V2: [B, L, C] goes into a batch_first=False layer as it is; a later insertion splits both streams."""
    if not is_training:
        return x
    if insert_index == 0:
        return torch.cat([x, encoder(x)], dim=0)
    half = len(x) // 2
    return torch.cat([x[:half], encoder(x[half:])], dim=0)


def torchs_encoder(module: nn.Module) -> nn.Module:
    """An official encoder with the module's weights."""
    width = module.encoder.linear1.out_features
    encoder = nn.TransformerEncoderLayer(module.dim, 4, width, module.encoder.dropout.p, dtype=torch.float64)
    encoder.load_state_dict(module.encoder.state_dict())
    return encoder


def test_the_defaults_are_those_of_the_official_module():
    for module in (bf.BatchFormer(48), bf.BatchFormerV2(48)):
        encoder = module.encoder
        assert isinstance(encoder, bf.TransformerEncoderLayer)
        assert (encoder.self_attn.num_heads, encoder.linear1.out_features) == (4, 48)
        dropouts = (encoder.self_attn.dropout, encoder.dropout.p, encoder.dropout1.p, encoder.dropout2.p)
        assert dropouts == (0.5, 0.5, 0.5, 0.5)
        assert (encoder.norm_first, encoder.self_attn.batch_first, encoder.norm1.eps) == (False, False, 1e-5)
        assert encoder.activation is torch.nn.functional.relu


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_the_two_stream_forward_equals_the_official_lines(training):
    module = bf.BatchFormer(24, dropout=0.0, **F64).train(training)
    x, y = torch.randn(9, 24, **F64), torch.arange(9)
    expected_x, expected_y = official_lines(x, y, torchs_encoder(module), training)
    for actual_x, actual_y in (module(x, y), bf.batchformer(x, y, module.encoder, training)):
        assert_near({"x": actual_x.detach()}, {"x": expected_x.detach()}, torch.float64)
        assert torch.equal(actual_y, expected_y)


@pytest.mark.parametrize("encoder", ["batch_first", "wrapped batch_first", "stack"])
def test_the_function_takes_any_encoder_and_finds_the_batch(encoder):
    layer = nn.TransformerEncoderLayer(24, 4, 24, 0.0, **F64)
    plain, given = layer, layer
    if "batch_first" in encoder:
        given = nn.TransformerEncoderLayer(24, 4, 24, 0.0, batch_first=True, **F64)
        given.load_state_dict(layer.state_dict())
        given = nn.Sequential(given) if "wrapped" in encoder else given
    else:
        plain = given = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    x, y = torch.randn(9, 24, **F64), torch.arange(9)
    actual, _ = bf.batchformer(x, y, given, is_training=True)
    expected, _ = official_lines(x, y, plain, True)
    assert_near({"x": actual.detach()}, {"x": expected.detach()}, torch.float64)


def move(x: torch.Tensor, layout: str) -> torch.Tensor:
    """[N, L, C] in the layout; L is 6 = 3 * 2 for NCHW."""
    if layout == "NLC":
        return x
    return x.transpose(0, 1) if layout == "LNC" else x.transpose(1, 2).reshape(len(x), -1, 3, 2)


@pytest.mark.parametrize("layout", ["NLC", "LNC", "NCHW"])
@pytest.mark.parametrize("streams", [1, 2])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_v2_equals_the_official_lines_in_every_layout(layout, streams, training):
    module = bf.BatchFormerV2(24, dropout=0.0, layout=layout, **F64).train(training)
    x = torch.randn(8, 6, 24, **F64)
    expected = official_lines_v2(x, torchs_encoder(module), training, insert_index=streams - 1)
    given = move(x, layout)
    actual = module(given, streams=streams)
    assert_near({"x": actual.detach()}, {"x": move(expected, layout).detach()}, torch.float64)
    assert training or actual is given


def test_a_single_stream_replaces_the_features():
    x, y = torch.randn(9, 24, **F64), torch.arange(9)
    module = bf.BatchFormer(24, dropout=0.0, two_stream=False, **F64)
    actual, targets = module(x, y)
    assert targets is y
    expected = torchs_encoder(module)(x.unsqueeze(1)).squeeze(1)
    assert_near({"x": actual.detach()}, {"x": expected.detach()}, torch.float64)
    module = bf.BatchFormerV2(24, dropout=0.0, two_stream=False, **F64)
    tokens = torch.randn(8, 6, 24, **F64)
    assert_near({"x": module(tokens).detach()}, {"x": torchs_encoder(module)(tokens).detach()}, torch.float64)


def test_the_control_attends_to_itself_only():
    x = torch.randn(9, 24, **F64)
    module = bf.BatchFormer(24, dropout=0.0, attend="alone", **F64)
    encoder = torchs_encoder(module)
    alone = torch.cat([encoder(sample[None, None]).squeeze(1) for sample in x])
    assert_near({"x": bf.related(module(x)[0]).detach()}, {"x": alone.detach()}, torch.float64)
    changed = x.clone()
    changed[0] += 1
    assert torch.equal(bf.related(module(changed)[0])[1:], bf.related(module(x)[0])[1:])


@pytest.mark.parametrize("layout", ["NLC", "LNC", "NCHW"])
def test_the_control_of_v2_attends_to_its_own_token_only(layout):
    module = bf.BatchFormerV2(24, dropout=0.0, attend="alone", layout=layout, **F64)
    x = torch.randn(8, 6, 24, **F64)
    encoder = torchs_encoder(module)
    related = encoder(x.reshape(1, 48, 24)).reshape(8, 6, 24)
    expected = move(torch.cat([x, related]), layout)
    assert_near({"x": module(move(x, layout)).detach()}, {"x": expected.detach()}, torch.float64)


def test_a_stack_has_its_layers_and_relates_through_all_of_them():
    module = bf.BatchFormer(24, dropout=0.0, num_layers=3, **F64)
    assert len(module.encoder.layers) == 3
    x = torch.randn(9, 24, **F64)
    expected = x.unsqueeze(1)
    for layer in module.encoder.layers:
        expected = layer(expected)
    assert torch.equal(bf.related(module(x)[0]), expected.squeeze(1))


def test_gradients_reach_the_module_and_the_features():
    module = bf.BatchFormer(24)
    x = torch.randn(9, 24, requires_grad=True)
    module(x)[0].square().sum().backward()
    assert x.grad.abs().min(dim=1).values.max() > 0
    assert all(parameter.grad is not None for parameter in module.parameters())


@settings(deadline=None, max_examples=30)
@given(n=st.integers(1, 12), heads=st.sampled_from([1, 2, 4]), seed=st.integers(0, 2**31), data=st.data())
def test_permuting_samples_permutes_outputs(n, heads, seed, data):
    torch.manual_seed(seed)
    order = data.draw(st.permutations(range(n)))
    module = bf.BatchFormer(8, heads, dropout=0.0, **F64)
    x = torch.randn(n, 8, **F64)
    permuted = bf.related(module(x[order])[0]).detach()
    assert_near({"x": permuted}, {"x": bf.related(module(x)[0])[order].detach()}, torch.float64)


@settings(deadline=None, max_examples=30)
@given(
    n=st.integers(1, 6),
    positions=st.integers(2, 9),
    layout=st.sampled_from(["NLC", "LNC"]),
    seed=st.integers(0, 2**31),
    data=st.data(),
)
def test_positions_of_v2_are_independent(n, positions, layout, seed, data):
    torch.manual_seed(seed)
    changed = data.draw(st.integers(0, positions - 1))
    module = bf.BatchFormerV2(8, 2, dropout=0.0, layout=layout, **F64)
    x = torch.randn(n, positions, 8, **F64)
    other = x.clone()
    other[:, changed] += torch.randn(n, 8, **F64)

    def run(x):
        y = module(move(x, layout))
        return y if layout == "NLC" else y.transpose(0, 1)

    same = (run(x) - run(other)).abs().amax(dim=(0, 2)) < 1e-12
    assert [position for position in range(positions) if not same[position]] == [changed]


@settings(deadline=None, max_examples=30)
@given(n=st.integers(0, 8), layout=st.sampled_from(["NLC", "LNC", "NCHW"]), streams=st.sampled_from([1, 2]))
def test_evaluation_is_the_identity(n, layout, streams):
    x, y = torch.randn(n, 8), torch.arange(n)
    assert bf.BatchFormer(8).eval()(x, y) == (x, y)
    tokens = torch.randn(n, 6, 8)
    assert bf.BatchFormerV2(8, layout=layout).eval()(tokens, streams=streams) is tokens


def test_the_representation_shows_what_the_encoder_does_not():
    assert "two_stream=True, attend='alone'" in repr(bf.BatchFormer(8, attend="alone"))
    assert "layout='LNC', two_stream=False" in repr(bf.BatchFormerV2(8, layout="LNC", two_stream=False))
