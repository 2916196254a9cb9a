"""What the op does not cover runs torch's own implementation, with its result, and can be asked for."""

import pytest
import torch
from torch import nn

import batchformer as bf
from batchformer.modules import encoder_layer
from reference import layers


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


CHANGES = {
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
    x = torch.randn(7, 5, 16)
    assert CHANGES[change] in ours.declined(x)
    assert torch.equal(ours(x), theirs(x))


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
    monkeypatch.setattr(encoder_layer, "_DEVICES", ("cuda",))
    assert ours.declined(x) == "src is on cpu, which is none of cuda"
    assert torch.equal(ours(x), theirs(x))


def test_an_empty_input_gives_what_torch_gives():
    theirs, ours = layers(16, 4, 16, 0.0)
    for shape in ((0, 3, 16), (3, 0, 16)):
        assert ours(torch.empty(shape)).shape == theirs(torch.empty(shape)).shape == shape
    assert ours.declined(torch.empty(0, 3, 16)) == "src is empty"


@pytest.mark.parametrize(
    "activation",
    [torch.relu, torch.nn.functional.relu, nn.ReLU(), "relu", torch.nn.functional.gelu, nn.GELU(), "gelu"],
    ids=str,
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
