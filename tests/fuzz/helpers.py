"""Calls of the helpers, which judge themselves: targets in two halves, relations, accelerate."""

import random
from dataclasses import replace

from fuzz import layers, tensors
from fuzz.call import Call

# How far from torch's probabilities in float64; float32's inputs are normal and its norms well conditioned.
PROBABILITY = {"float64": 1e-10, "float32": 1e-4, "bfloat16": 0.1, "float16": 0.1}


def draw_targets(rng: random.Random) -> Call:
    """Both halves of what is doubled are what was doubled, and the originals come first."""
    n = rng.choice((0, 1, 2, 3, 5, 8))
    targets = _targets(rng, n, depth=rng.randint(0, 2))
    return Call(
        "targets",
        (
            "import numpy as np",
            f"torch.manual_seed({rng.randrange(2**31)})",
            f"y = {targets}",
            "before = repr(y)",
            "doubled = bf.duplicate(y)",
            "assert repr(bf.original(doubled)) == before, 'the first half'",
            "assert repr(bf.related(doubled)) == before, 'the second half'",
            "assert repr(y) == before, 'the targets themselves changed'",
            f"x, twice = bf.BatchFormer(4)(torch.randn({n}, 4), y) if {n} else (None, doubled)",
            "assert repr(twice) == repr(doubled), 'the module doubles otherwise'",
        ),
    )


def _targets(rng: random.Random, n: int, depth: int) -> str:
    if depth:
        values = [_targets(rng, n, depth - 1) for _ in range(rng.randint(1, 3))]
        values += rng.sample(("0.7", '"mixup"', "torch.tensor(0.5)", "None"), rng.randint(0, 2))
        if rng.random() < 0.5:
            return f"({', '.join(values)},)"
        return "{" + ", ".join(f'"{i}": {value}' for i, value in enumerate(values)) + "}"
    return rng.choice(
        (
            f"torch.arange({n})",
            f"torch.rand({n}, 3)",
            f"torch.rand(3, {n}).t()",
            f"torch.zeros({n}, 2, 0)",
            f"torch.zeros({n}, dtype=torch.bool)",
            f"np.arange({n})",
            f"np.ones(({n}, 2), dtype=np.float32)",
            f"[{{'labels': torch.arange(2), 'id': i}} for i in range({n})]",
            f"list('abcdefgh'[:{n}])",
        )
    )


def draw_relations(rng: random.Random) -> Call:
    """Probabilities that are torch's, and sum to 1."""
    layer = replace(layers.draw(rng), dropout=0.5, eps=1e-5)
    n, c = max(layer.samples, 1), layer.channels
    owner = rng.choice(("layer", "theirs", "module"))
    return Call(
        "relations",
        (
            f"torch.manual_seed({rng.randrange(2**31)})",
            f"theirs = nn.TransformerEncoderLayer({layer.arguments()})",
            f"layer = bf.TransformerEncoderLayer({layer.arguments()})",
            "layer.load_state_dict(theirs.state_dict())",
            f"module = bf.BatchFormer({layer.arguments('batch_first')})",
            "module.encoder.load_state_dict(theirs.state_dict())",
            f"x = torch.randn({[n, c]}, dtype=torch.{layer.dtype})",
            f"x = {tensors.layout(rng, 'x', (n, c))}",
            f"actual = torch.from_numpy(bf.relations({owner}, x)).double()",
            "exact = copy.deepcopy(theirs).double().eval()",
            "query = exact.norm1(x.double()) if exact.norm_first else x.double()",
            "if exact.self_attn.batch_first: query = query[None]",
            "_, expected = exact.self_attn(query, query, query, average_attn_weights=False)",
            f"assert (actual - expected).abs().max() <= {PROBABILITY[layer.dtype]}",
            f"assert (actual.sum(-1) - 1).abs().max() <= {1e-12 if layer.dtype == 'float64' else 1e-5}",
        ),
    )


def draw_accelerate(rng: random.Random) -> Call:
    """A model of torch's with our layers, in evaluation and in training, beside the same model in float64."""
    heads, width = rng.choice(((1, 3), (2, 4), (4, 8), (1, 1), (3, 12)))
    n, l = rng.randint(1, 6), rng.randint(1, 5)
    batch_first, norm_first = rng.random() < 0.5, rng.random() < 0.5
    causal = f"nn.Transformer.generate_square_subsequent_mask({l if batch_first else n}).double()"
    mask = f", src_mask={causal}" if rng.random() < 0.5 else ""
    mode = rng.choice(("train", "eval"))
    return Call(
        "accelerate",
        (
            f"torch.manual_seed({rng.randrange(2**31)})",
            f"theirs = nn.Transformer({width}, {heads}, 2, 1, 7, 0.0, batch_first={batch_first}, "
            f"norm_first={norm_first}, dtype=torch.float64).{mode}()",
            "ours = bf.accelerate(copy.deepcopy(theirs), verbose=False)",
            f"a = torch.randn({n}, {l}, {width}, dtype=torch.float64, requires_grad=True)",
            "b = a.detach().clone().requires_grad_()",
            f"y, z = ours(a, a{mask}), theirs(b, b{mask})",
            "(y * y).sum().backward(), (z * z).sum().backward()",
            "torch.testing.assert_close(y, z, rtol=1e-10, atol=1e-9)",
            "for p, q in zip((a, *ours.parameters()), (b, *theirs.parameters()), strict=True):",
            "    largest = q.grad.abs().max().item()",
            "    torch.testing.assert_close(p.grad, q.grad, rtol=1e-10, atol=1e-9 * (1 + largest))",
        ),
    )
