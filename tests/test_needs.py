"""What needs no gradient: neither computed nor saved for, and the others are the same without it."""

import itertools

import pytest
import torch

import batchformer as bf
from reference import ALL, NOTHING

OP, BACKWARD = torch.ops.batchformer.encoder_layer, torch.ops.batchformer.encoder_layer_backward
NAMES = ("x", *bf.ops.Parameters._fields)  # without keys and values, which no call here brings
# One position, tiles of its rows, tiles of positions, several positions without tiles.
SHAPES = [(33, 1), (130, 1), (4, 150), (7, 3)]
CHOSEN = {
    "a frozen layer": {"x"},
    "a first layer": {*NAMES} - {"x"},
    "biases": {name for name in NAMES if name.endswith("bias")},
    "norms": {name for name in NAMES if name.startswith("norm")},
    **{name: {name} for name in NAMES},
}


def call(n, l, *, norm_first, activation="relu", dtype=torch.float64):
    torch.manual_seed(0)
    layer = bf.TransformerEncoderLayer(16, 4, 24, 0.3, activation, norm_first=norm_first, dtype=dtype)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(n, l, 16, dtype=dtype)
    return (x, *layer._parameters_of_op(), None, None, torch.tensor(5), *layer._config()), torch.randn_like(x)


def gradients(arguments, grad_y, needs):
    _, saved = OP(*arguments, needs)
    return BACKWARD(grad_y, *arguments, saved, needs), saved


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("norm_first", [False, True], ids=["post_norm", "pre_norm"])
@pytest.mark.parametrize(("n", "l"), SHAPES)
def test_a_gradient_is_the_same_whichever_others_are_needed(n, l, norm_first, activation, path):
    arguments, grad_y = call(n, l, norm_first=norm_first, activation=activation)
    everything, _ = gradients(arguments, grad_y, ALL)
    expected = dict(zip(NAMES, everything, strict=True))
    pairs = (set(pair) for pair in itertools.combinations(NAMES[::3], 2))
    for chosen in (*CHOSEN.values(), *pairs):
        grads, _ = gradients(arguments, grad_y, [*(name in chosen for name in NAMES), False])
        found = dict(zip([name for name in NAMES if name in chosen], grads, strict=True))
        assert [name for name in found if not torch.equal(found[name], expected[name])] == []


@pytest.mark.parametrize("norm_first", [False, True], ids=["post_norm", "pre_norm"])
def test_a_backward_that_nothing_needs_gives_nothing(norm_first, path):
    arguments, grad_y = call(33, 1, norm_first=norm_first)
    assert gradients(arguments, grad_y, NOTHING) == ([], [])


def saved_floats(needs, *, norm_first=False) -> float:
    arguments, _ = call(33, 1, norm_first=norm_first)
    return sum(tensor.numel() for tensor in OP(*arguments, needs)[1]) / arguments[0].numel()


@pytest.mark.parametrize("norm_first", [False, True], ids=["post_norm", "pre_norm"])
def test_what_no_gradient_needs_is_not_saved(norm_first):
    def saved(*names: str) -> float:
        return saved_floats([*(name in names for name in NAMES), False], norm_first=norm_first)

    assert saved_floats(NOTHING, norm_first=norm_first) == 0
    assert saved("linear2_weight") < 3 < saved("out_proj_weight") < 10
    assert saved("x") == saved(*NAMES)
    assert saved("norm2_weight", "norm2_bias") <= (4 if norm_first else 1.2)


def test_a_frozen_layer_computes_the_gradient_of_its_input_alone(monkeypatch):
    layer = bf.TransformerEncoderLayer(16, 4, 16, 0.0).requires_grad_(False)
    x = torch.randn(5, 3, 16, requires_grad=True)
    asked = []

    forward, backward = bf.ops.op._CORE

    def note(grad_y, inputs, call, saved):
        asked.append(tuple(call.needs))
        return backward(grad_y, inputs, call, saved)

    monkeypatch.setattr(bf.ops.op, "_CORE", (forward, note))
    layer(x).sum().backward()
    assert asked == [(True, *NOTHING[1:])]


def test_what_is_frozen_gets_no_gradient_and_a_missing_bias_has_none():
    arguments, grad_y = call(5, 3, norm_first=False)
    without = list(arguments)
    without[NAMES.index("linear1_bias")] = None
    with pytest.raises(ValueError, match="needs: expected False for linear1_bias, which is None, got True"):
        OP(*without, ALL)
    needs = [*(name != "linear1_bias" for name in NAMES), False]
    grads, _ = gradients(without, grad_y, needs)
    assert len(grads) == len(NAMES) - 1


@pytest.mark.parametrize("norm_first", [False, True], ids=["post_norm", "pre_norm"])
def test_a_backward_is_told_when_it_is_not_that_of_the_forward(norm_first):
    arguments, grad_y = call(5, 3, norm_first=norm_first)
    _, saved = OP(*arguments, ALL)

    def backward(saved=saved, grad_y=grad_y, needs=ALL, **config):
        new = bf.ops.Config(*arguments[16:])._replace(**config)
        return BACKWARD(grad_y, *arguments[:16], *new, saved, needs)

    names = [name for name, *_ in bf.ops.table._SAVED]
    kept = bf.ops.table.core.saved_kept(bf.ops.Config(*arguments[16:]), ALL, 2)
    names = [name for name, is_kept in zip(names, kept, strict=True) if is_kept]
    for wrong in (
        lambda each: each[:-1],
        lambda each: torch.cat([each, each]),
        lambda each: each.float(),
        lambda each: each.unsqueeze(0),
    ):
        for i, name in enumerate(names):
            changed = [wrong(each) if i == j else each for j, each in enumerate(saved)]
            with pytest.raises(ValueError, match=f"{name}: expected"):
                backward(changed)
    for config in ({"nhead": 2}, {"norm_first": not norm_first}, {"activation": "gelu"}):
        with pytest.raises(ValueError, match="expected"):
            backward(**config)
    with pytest.raises(ValueError, match=f"saved: expected the {len(saved)} tensors that a forward"):
        backward(saved[1:])
    with pytest.raises(ValueError, match="grad_y: expected dtype float64 as x has, got float32"):
        backward(grad_y=grad_y.float())
    with pytest.raises(ValueError, match="grad_y: expected shape"):
        backward(grad_y=grad_y[:, :2])


def test_saved_tensors_may_come_back_with_other_strides():
    arguments, grad_y = call(5, 3, norm_first=False)
    _, saved = OP(*arguments, ALL)
    moved = [tensor.transpose(0, 1).contiguous().transpose(0, 1) for tensor in saved]
    assert any(not tensor.is_contiguous() for tensor in moved)
    expected = BACKWARD(grad_y, *arguments, saved, ALL)
    assert all(map(torch.equal, BACKWARD(grad_y, *arguments, moved, ALL), expected))
