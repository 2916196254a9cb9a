"""Modules and attached models that remember earlier samples, and the control that attends to all alike."""

import copy
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.utils.checkpoint import checkpoint

import batchformer as bf
import stand_ins
from attach_nets import WIDTH, Blocks, Net
from batchformer.modules import _declined
from tolerances import assert_near

C, L, SIZE = 8, 3, 7
KINDS = {
    "V1": (bf.BatchFormer, {}, 1),
    "NLC": (bf.BatchFormerV2, {}, L),
    "LNC": (bf.BatchFormerV2, {"layout": "LNC"}, L),
    "NCHW": (bf.BatchFormerV2, {"layout": "NCHW"}, 4),
}


def make(kind="V1", **options):
    cls, own, positions = KINDS[kind]
    module = cls(C, **{"nhead": 2, "dropout": 0.0, "dtype": torch.float64, **own, **options})
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.4)
    return module, positions


def call(module, x):
    """The related stream `[N, L, C]` of x `[N, L, C]`."""
    if isinstance(module, bf.BatchFormer):
        return module(x[:, 0])[0].chunk(2)[1][:, None]
    to, back = {"NLC": ((0, 1, 2), (0, 1, 2)), "LNC": ((1, 0, 2), (1, 0, 2)), "NCHW": ((0, 2, 1), (0, 2, 1))}[
        module.layout
    ]
    tokens = x.permute(to)
    tokens = tokens.unflatten(2, (2, 2)) if module.layout == "NCHW" else tokens
    y = module(tokens).chunk(2, dim=module.batch_axis)[1]
    return (y.flatten(2) if module.layout == "NCHW" else y).permute(back)


def layers_of(module):
    return module.encoder.layers if isinstance(module.encoder, nn.TransformerEncoder) else [module.encoder]


def plain_layer(layer, x, rows):
    """The layer in plain PyTorch: x [N, L, C] attends to itself and to rows [M, L, C]."""
    attention = layer.self_attn
    heads = attention.num_heads

    def project(inputs):
        inputs = layer.norm1(inputs) if layer.norm_first else inputs
        parts = F.linear(inputs, attention.in_proj_weight, attention.in_proj_bias).chunk(3, -1)
        return [part.unflatten(-1, (heads, -1)) for part in parts]  # [N, L, H, D] each

    query = project(x)[0]
    _, key, value = project(torch.cat([x, rows]))
    scores = torch.einsum("nlhd,klhd->lhnk", query, key) / query.shape[-1] ** 0.5
    attended = torch.einsum("lhnk,klhd->nlhd", scores.softmax(-1), value).flatten(2)
    y = x + F.linear(attended, attention.out_proj.weight, attention.out_proj.bias)
    y = y if layer.norm_first else layer.norm1(y)
    z = layer.norm2(y) if layer.norm_first else y
    z = y + F.linear(torch.relu(F.linear(z, *_of(layer.linear1))), *_of(layer.linear2))
    return z if layer.norm_first else layer.norm2(z)


def _of(linear):
    return linear.weight, linear.bias


def gradients(module, x):
    found = {name: p.grad for name, p in module.named_parameters()} | {"x": x.grad}
    module.zero_grad()
    x.grad = None
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("norm_first", [False, True], ids=["post_norm", "pre_norm"])
@pytest.mark.parametrize("path", ["op", "torch"])
def test_each_layer_attends_to_its_inputs_of_earlier_steps(kind, norm_first, path):
    module, positions = make(
        kind, memory_bank_size=SIZE, num_layers=2, norm_first=norm_first, bias=kind != "NLC"
    )
    if path == "torch":  # which a hook calls for
        layers_of(module)[0].linear1.register_forward_hook(lambda *_: None)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    earlier = [torch.zeros(0, positions, C, dtype=torch.float64) for _ in range(2)]
    for samples in (3, 2, 5, 9, 1, 4):
        x = torch.randn(samples, positions, C, dtype=torch.float64, requires_grad=True)
        weights = torch.randn(samples, positions, C, dtype=torch.float64)
        expected = x
        for number, layer in enumerate(layers_of(module)):
            seen, inputs = earlier[number], expected
            expected = plain_layer(layer, inputs, seen)
            earlier[number] = torch.cat([inputs.detach(), seen])[:SIZE]
        (expected * weights).sum().backward()
        wanted = gradients(module, x) | {"y": expected}
        actual = call(module, x)
        (actual * weights).sum().backward()
        optimizer.step()
        assert_near(gradients(module, x) | {"y": actual}, wanted, torch.float64)


@pytest.mark.parametrize("norm_first", [False, True], ids=["post_norm", "pre_norm"])
def test_the_noise_of_torchs_path_is_that_of_torchs_layer(norm_first):
    module, positions = make("NLC", memory_bank_size=SIZE, dropout=0.4, norm_first=norm_first)
    theirs = nn.TransformerEncoderLayer(C, 2, C, 0.4, norm_first=norm_first, dtype=torch.float64)
    theirs.load_state_dict(module.encoder.state_dict())
    module.encoder.linear1.register_forward_hook(lambda *_: None)
    x = torch.randn(5, positions, C, dtype=torch.float64)
    outputs = []
    for layer in (lambda x: call(module, x), theirs):
        torch.manual_seed(3)
        outputs.append(layer(x))
    torch.testing.assert_close(*outputs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, {"norm_first": True, "num_layers": 2, "bias": False}], ids=str)
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_uniform_attention_is_that_of_queries_and_keys_of_zero_with_the_same_noise(kind, options, dropout):
    module, positions = make(kind, attend="uniform", dropout=dropout, **options)
    zeroed, _ = make(kind, dropout=dropout, **options)
    zeroed.load_state_dict(module.state_dict())
    with torch.no_grad():
        for layer in layers_of(zeroed):
            layer.self_attn.in_proj_weight[: 2 * C] = 0
            if layer.self_attn.in_proj_bias is not None:
                layer.self_attn.in_proj_bias[: 2 * C] = 0
    x = torch.randn(5, positions, C, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(5, positions, C, dtype=torch.float64)
    found = []
    for each in (module, zeroed):
        torch.manual_seed(3)
        y = call(each, x)
        (y * weights).sum().backward()
        found.append(gradients(each, x) | {"y": y})
    for name in found[0]:
        if "in_proj" in name:  # what is zero by definition has no gradient
            assert not found[0][name][: 2 * C].any()
            found[1][name][: 2 * C] = 0
    assert_near(*found, torch.float64)


def test_uniform_attention_remembers_and_has_the_same_values_on_torchs_path():
    module, positions = make("LNC", attend="uniform", memory_bank_size=SIZE)
    declined = copy.deepcopy(module)
    declined.encoder.linear1.register_forward_hook(lambda *_: None)
    mean = None
    for _ in range(3):
        x = torch.randn(4, positions, C, dtype=torch.float64)
        actual = call(module, x)
        torch.testing.assert_close(call(declined, x), actual)
        earlier = x if mean is None else torch.cat([x, mean])
        mean = earlier[:SIZE]
        layer = module.encoder
        values = F.linear(
            earlier, layer.self_attn.in_proj_weight[2 * C :], layer.self_attn.in_proj_bias[2 * C :]
        )
        y = layer.norm1(x + layer.self_attn.out_proj(values.mean(0, keepdim=True)))
        expected = layer.norm2(y + layer.linear2(torch.relu(layer.linear1(y))))
        torch.testing.assert_close(actual, expected)
    bank = next(iter(module._banks.values()))
    assert torch.equal(bank.rows, mean)


@pytest.mark.parametrize("kind", ["NLC", "LNC"])
def test_many_positions_go_to_torchs_attention_in_parts(kind, monkeypatch):
    module, positions = make(kind, memory_bank_size=SIZE)
    call(module, torch.randn(4, positions, C, dtype=torch.float64))
    x = torch.randn(4, positions, C, dtype=torch.float64)
    expected = call(copy.deepcopy(module), x)
    monkeypatch.setattr(_declined, "MOST_POSITIONS", 2)
    monkeypatch.setattr(_declined, "OP_DEVICES", ())
    monkeypatch.setattr(_declined, "ANY_POSITIONS", ())
    sizes, attention = [], F.scaled_dot_product_attention

    def counted(query, *others):
        sizes.append(len(query))
        return attention(query, *others)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    torch.testing.assert_close(call(module, x), expected)
    assert sizes == [2, 1]


def test_relations_of_uniform_attention_are_all_alike():
    module = bf.BatchFormer(WIDTH, attend="uniform")
    assert np.array_equal(bf.relations(module, torch.randn(5, WIDTH)), np.full((4, 5, 5), 0.2, np.float32))
    net = Net()
    attachment = bf.attach(net, before="fc", attend="uniform", num_layers=2)
    assert np.array_equal(bf.relations(attachment, torch.randn(4, 6)), np.full((4, 4, 4), 0.25, np.float32))
    blocks = Blocks()
    attachment = bf.attach(blocks, after="blocks.1", layout="NLC", attend="uniform")
    tokens = torch.randn(4, 3, WIDTH)
    for position in (None, 1):
        found = bf.relations(attachment, tokens, position=position)
        assert np.array_equal(found, np.full((4, 4, 4), 0.25, np.float32))


# Checkpoints


def plainly(part, *inputs):
    return part(*inputs)


def once_more(part, *inputs):
    return checkpoint(part, *inputs, use_reentrant=False)


def reentrant(part, *inputs):
    return checkpoint(part, *inputs, use_reentrant=True)


# With a reentrant one samples enter in the backward: a second forward does not see those of the first.
@pytest.mark.parametrize(("way", "together"), [(once_more, 1), (once_more, 2), (reentrant, 1)])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "recompute": True}], ids=str)
def test_a_checkpoint_around_the_module_changes_nothing(way, together, options):
    found = []
    for run in (plainly, way):
        torch.manual_seed(1)
        module, positions = make("NLC", memory_bank_size=SIZE, dropout=0.3, **options)
        for _ in range(3):
            outputs = []
            for _ in range(together):
                x = torch.randn(4, positions, C, dtype=torch.float64, requires_grad=True)
                outputs.append(run(module, x))
            for y in outputs[::-1]:
                y.square().sum().backward()
        rows = next(iter(module._banks.values())).rows
        found.append({name: p.grad for name, p in module.named_parameters()} | {"rows": rows})
    assert_near(*found, torch.float64)


@pytest.mark.parametrize("way", [once_more, reentrant])
def test_two_views_have_their_own_samples_also_where_a_checkpoint_runs_them_again(way):
    found = []
    for run in (plainly, way):
        torch.manual_seed(1)
        model = stand_ins.MoCoV3().double()
        attachment = bf.attach(model, "moco_v3", dropout=0.0, memory_bank_size=SIZE)
        forward = model.base_encoder.forward
        model.base_encoder.forward = lambda x, forward=forward, run=run: run(forward, x)
        for _ in range(3):
            views = torch.randn(2, 4, 3, 8, 8, dtype=torch.float64, requires_grad=True)
            model(*views, 0.9).backward()
        banks = attachment.inserted[0]._banks
        rows = {str(key): bank.rows for key, bank in banks.items() if bank.rows is not None}
        assert rows.keys() == {"((0, 0), 0)", "((0, 1), 0)"}, "not of the momentum encoder, without gradients"
        found.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None} | rows)
    assert_near(*found, torch.float64)


@pytest.mark.parametrize("way", [once_more, reentrant])
def test_a_checkpoint_around_a_model_or_a_block_changes_nothing(way):
    found = {}
    for around in ("nothing", "model", "block"):
        torch.manual_seed(1)
        model = Blocks().double()
        attachment = bf.attach(
            model, after=["blocks.0", "blocks.2"], layout="NLC", dropout=0.0, memory_bank_size=SIZE
        )
        if around == "block":
            block = model.blocks[2]
            block.forward = lambda x, inner=block.forward: way(inner, x)
        for _ in range(3):
            x = torch.randn(4, 3, WIDTH, dtype=torch.float64, requires_grad=True)
            y = (way if around == "model" else plainly)(model, x)
            attachment.wrap(nn.CrossEntropyLoss())(y, torch.arange(4)).backward()
        rows = {str(key): bank.rows for key, bank in attachment.inserted[0]._banks.items()}
        found[around] = {name: p.grad for name, p in model.named_parameters()} | rows
    assert_near(found["model"], found["nothing"], torch.float64)
    assert_near(found["block"], found["nothing"], torch.float64)


# Places


def test_experts_that_share_a_module_remember_their_own_samples():
    experts = [f"backbone.linears.{number}" for number in range(3)]
    apart = {"before": experts, "shared": False, "outputs": "originals", "dim": stand_ins.WIDTH}
    losses, state = [], None
    for options in ({"preset": "ride"}, apart):
        torch.manual_seed(1)
        model = stand_ins.Ride().double()
        for number, expert in enumerate(model.backbone.linears):  # else all get the same features
            expert.register_forward_pre_hook(lambda _, args, number=number: (args[0] * (1 + number),))
        attachment = bf.attach(model, nhead=4, dropout=0.0, memory_bank_size=SIZE, **options)
        state = state or attachment.inserted[0].state_dict()
        for module in attachment.inserted:
            module.load_state_dict(state)
        criterion = attachment.wrap(F.cross_entropy)
        torch.manual_seed(2)
        for _ in range(3):
            x = torch.randn(4, 8, dtype=torch.float64)
            losses.append(criterion(model(x)["output"], torch.arange(4)))
    torch.testing.assert_close(losses[:3], losses[3:])


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_maps_of_another_shape_are_refused_also_with_as_many_positions(layout):
    module = bf.BatchFormerV2(8, layout=layout, memory_bank_size=4, dropout=0.0)

    def maps(height, width):
        return torch.randn((2, 8, height, width) if layout == "NCHW" else (2, height, width, 8))

    for _ in range(2):
        assert module(maps(2, 3)).isfinite().all()
    with pytest.raises(ValueError, match=r"x: expected 2 x 3 positions of a sample.*, got 3 x 2;"):
        module(maps(3, 2))
    assert module(maps(2, 3)).isfinite().all()


def test_nothing_enters_of_fake_samples_or_in_inference_mode():
    module = bf.BatchFormer(8, memory_bank_size=4)
    with FakeTensorMode(allow_non_fake_inputs=True):
        for _ in range(2):
            assert module(torch.randn(3, 8))[0].shape == (6, 8)
    with torch.inference_mode(), torch.enable_grad():
        module(torch.randn(3, 8))
    assert [bank.rows for bank in module._banks.values()] == [None]  # of inference
    module(torch.randn(3, 8))[0].sum().backward()
    assert int(module._bank(None, 0).count) == 3


def test_a_place_that_is_skipped_keeps_what_it_remembers():
    model = Blocks()
    attachment = bf.attach(
        model,
        after=["blocks.0", "blocks.2"],
        layout="NLC",
        optional=["blocks.0"],
        memory_bank_size=64,
        wrapped=False,
    )
    model(torch.randn(4, 3, WIDTH))
    model.skipped = (0,)
    model(torch.randn(5, 3, WIDTH))
    counts = {key: int(bank.count) for key, bank in attachment.inserted[0]._banks.items()}
    assert counts == {((0, 0), 0): 4, ((1, 0), 0): 9}


def test_samples_enter_in_training_with_gradients_alone():
    net = Net()
    attachment = bf.attach(net, before="fc", memory_bank_size=64, wrapped=False)
    (module,) = attachment.inserted
    x = torch.randn(4, 6)
    net.eval()(x)
    assert not module._banks
    net.train()
    with torch.no_grad():
        net(x)
    net(x)
    net.eval()(x)
    (bank,) = module._banks.values()
    assert int(bank.count) == 4


# Copies


def test_copies_and_pickles_remember_and_a_state_dict_does_not():
    net = Net()
    attachment = bf.attach(net, before="fc", memory_bank_size=64, gather_distributed=False, wrapped=False)
    before = set(net.state_dict())
    x = torch.randn(4, 6)
    net(x).sum().backward()
    assert set(net.state_dict()) == before
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        (bank,) = other.batchformer.inserted[0]._banks.values()
        (ours,) = attachment.inserted[0]._banks.values()
        assert torch.equal(bank.rows, ours.rows)
        assert int(bank.count) == 4
        other(x)
        assert (int(bank.count), int(ours.count)) == (8, 4)
    net.double()
    assert ours.rows.dtype == torch.float64


def test_the_options_are_printed_where_they_are_on():
    assert repr(bf.BatchFormer(C, nhead=2)).splitlines()[1].strip() == "two_stream=True, attend='batch'"
    module = bf.BatchFormerV2(C, nhead=2, gather_distributed=True, memory_bank_size=5, attend="uniform")
    assert repr(module).splitlines()[1].strip() == (
        "layout='NLC', two_stream=True, attend='uniform', gather_distributed=True, memory_bank_size=5"
    )
