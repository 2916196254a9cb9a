"""Calls with dropout, and calls in evaluation: no oracle, but properties that an assert states."""

import random
from dataclasses import replace

from fuzz import layers, tensors
from fuzz.call import Call
from fuzz.near_layer import token_shape

RUN = (
    "def run(module, count):",
    "    torch.set_num_threads(count); torch.manual_seed(11)",
    "    leaf = x.detach().requires_grad_(); module.zero_grad()",
    "    y = module(leaf); y.backward(grad_y)",
    "    return [y.detach(), leaf.grad, *(p.grad for p in module.parameters())]",
    "def same(a, b): return all(torch.equal(u.nan_to_num(7.5), v.nan_to_num(7.5)) for u, v in zip(a, b))",
)
TEARDOWN = "torch.set_num_threads(1)"


def draw_dropout(rng: random.Random) -> Call:
    """Same seed, same bits: with one thread or more, recomputed or kept; and finite."""
    layer = replace(layers.draw(rng), dropout=rng.choice((0.1, 0.5, 0.9, 1e-6, 0.999)))
    layer = replace(layer, samples=max(layer.samples, 1), positions=max(layer.positions, 1))
    layer = layers.stacked(rng, replace(layer, activation=rng.choice(layers.ACTIVATIONS)))
    v2 = rng.random() < 0.3
    if v2:
        options = f'num_layers={layer.layers}, attend="{rng.choice(("batch", "alone"))}", two_stream=False'
        made = f"bf.BatchFormerV2({layer.arguments('batch_first')}, {options}, recompute={{}})"
        shape: tuple[int, ...] = (layer.samples, layer.positions, layer.channels)
    else:
        one = f"bf.TransformerEncoderLayer({layer.arguments()}, recompute={{}})"
        made = (
            one
            if layer.layers == 1
            else f"nn.TransformerEncoder({one}, {layer.layers}, enable_nested_tensor=False)"
        )
        shape = token_shape(layer)
    lines = [
        f"torch.manual_seed({rng.randrange(2**31)})",
        f"keeps, recomputes = [{made.format('recompute')} for recompute in (False, True)]",
        "recomputes.load_state_dict(keeps.state_dict())",
        f"x = torch.randn({list(shape)}, dtype=torch.{layer.dtype})",
        f"x = {tensors.layout(rng, 'x', shape)}",
        f"grad_y = torch.randn({list(shape)}, dtype=torch.{layer.dtype})",
        f"grad_y = {tensors.layout(rng, 'grad_y', shape)}",
        *RUN,
        "first = run(keeps, 1)",
        "assert same(run(keeps, 1), first), 'the same seed gave other bits'",
        "assert same(run(recomputes, 1), first), 'recomputing gave other bits'",
    ]
    if layer.dtype in ("float32", "float64"):  # libtorch's own kernels promise no such thing
        lines.append(f"assert same(run(keeps, {rng.choice((2, 3))}), first), 'more threads gave other bits'")
    if layer.dtype != "float16":  # where 1 / (1 - p) overflows sooner
        lines.append("assert all(each.isfinite().all() for each in first), 'not finite'")
    return Call("BatchFormerV2 dropout" if v2 else "layer dropout", (*lines, TEARDOWN))


def draw_evaluation(rng: random.Random) -> Call:
    """In evaluation a module gives x itself; a layer with dropout gives what it gives without."""
    layer = replace(layers.draw(rng), dropout=0.5)
    n, l, c = max(layer.samples, 1), max(layer.positions, 1), layer.channels
    x = tensors.lines(rng, "x", (n, l, c), layer.dtype)
    seeded = f"torch.manual_seed({rng.randrange(2**31)})"
    if rng.random() < 0.4:
        module = rng.choice(
            (
                (
                    f"bf.BatchFormer({layer.arguments('batch_first')})",
                    "module(x[:, 0], 3)",
                    "x[:, 0]",
                    "y[0]",
                ),
                (f"bf.BatchFormerV2({layer.arguments('batch_first')})", "module(x)", "x", "y"),
            )
        )
        made, called, given, taken = module
        return Call(
            "evaluation",
            (
                seeded,
                *x,
                f"module = {made}.eval()",
                f"y = {called}",
                f"assert str({taken}) == str({given}), 'not the identity'",
            ),
        )
    return Call(
        "evaluation",
        (
            seeded,
            *x,
            f"drops = bf.TransformerEncoderLayer({layer.arguments()}).eval()",
            f"keeps = bf.TransformerEncoderLayer({replace(layer, dropout=0.0).arguments()})",
            "keeps.load_state_dict(drops.state_dict())",
            "drops.requires_grad_(True), keeps.requires_grad_(True)",
            "state = torch.get_rng_state()",
            "a, b = drops(x).nan_to_num(), keeps(x).nan_to_num()",
            "assert torch.equal(a, b), 'dropout in evaluation'",
            "assert torch.equal(torch.get_rng_state(), state), 'evaluation draws'",
        ),
    )
