"""Calls that cannot be right: a documented error with a sentence, and nothing computed."""

import random
from dataclasses import replace

from fuzz import layers
from fuzz.call import Call
from fuzz.direct import BACKWARD, FEWEST_SAVED, FORWARD
from fuzz.near_layer import token_shape

BAD_TENSORS = (
    "{}.double()",
    "{}.int()",
    "{}[..., :-1]",
    "torch.cat([{}, {}])",
    "{}.unsqueeze(0)",
    '{}.to("meta")',
    "{}.to(torch.complex64)",
)
PARAMETERS = (
    "in_proj_weight",
    "in_proj_bias",
    "out_proj_weight",
    "out_proj_bias",
    "linear1_weight",
    "linear1_bias",
    "linear2_weight",
    "linear2_bias",
    "norm1_weight",
    "norm1_bias",
    "norm2_weight",
    "norm2_bias",
)
BAD_SAVED = (
    "s.new_empty(s.numel() + 1)",
    "torch.cat([s, s])",
    "s.flatten()[1:]",
    "s.int()",
    's.to("meta")',
    "s.unsqueeze(0)",
    "s.half()",
)
BAD_CONFIGS = (
    "nhead=config.nhead + channels",
    "nhead=0",
    "nhead=-1",
    "dropout=(2.0, 0.0, 0.0, 0.0)",
    'dropout=(0.0, float("nan"), 0.0, 0.0)',
    "dropout=(0.0, 0.0, -0.5, 0.0)",
    "dropout=(0.0,) * 3",
    "dropout=(0.0,) * 5",
    'activation="tanh"',
    "activation=None",
    "layer_norm_eps=(1e-5,)",
    "nhead=None",
    "layer_norm_eps=None",
)
BAD_SEEDS = (
    "torch.tensor(1.0)",
    "torch.tensor([1])",
    "torch.tensor([1, 2])",
    'torch.tensor(1, device="meta")',
    "None",
    "torch.tensor(1, dtype=torch.int32)",
)
MODULES = (
    "bf.BatchFormer({a})(x)",
    "bf.BatchFormer({a})(x[:, 0].double())",
    "bf.BatchFormer({a})(x[:, 0, :-1])",
    "bf.BatchFormer({a})(x[:, 0], [1] * (len(x) + 1))",
    "bf.BatchFormer({a})(x[:, 0], 3)",
    "bf.BatchFormer({a})(None)",
    "bf.BatchFormer({a})(x[:0, 0])",
    'bf.BatchFormer({a})(x[:, 0].to("meta"))',
    'bf.BatchFormer({a}).to("meta")(x[:, 0])',
    'bf.BatchFormer({a}, attend="nobody")',
    "bf.BatchFormer({a}, num_layers=0)",
    "bf.BatchFormer({c}, {c} + 1)",
    "bf.BatchFormer({c}, 0)",
    "bf.BatchFormer(0)",
    "bf.BatchFormer({c}, 1, dropout=1.5)",
    'bf.BatchFormer({c}, 1, activation="selu")',
    "bf.BatchFormerV2({a})(x[0])",
    "bf.BatchFormerV2({a})(x.unsqueeze(-1))",
    'bf.BatchFormerV2({a}, layout="NCHW")(x)',
    'bf.BatchFormerV2({a}, layout="NHWC")',
    "bf.BatchFormerV2({a})(x, streams=3)",
    "bf.BatchFormerV2({a}, two_stream=False)(x, streams=2)",
    "bf.BatchFormerV2({a})(torch.cat([x, x, x[:1]]), streams=2)",
    "bf.BatchFormerV2({a})(x[:0])",
    "bf.BatchFormerV2({a})(x.double())",
    "bf.BatchFormerV2({a})(x[..., :-1])",
    'bf.BatchFormerV2({a})(x.to("meta"))',
    'bf.BatchFormerV2({a}, layout="LNC").to("meta")(x)',
)
HELPERS = (
    "bf.duplicate(3)",
    "bf.duplicate(torch.tensor(1))",
    "bf.duplicate({1, 2})",
    "bf.original(torch.arange(3))",
    "bf.related([1])",
    "bf.original(3.0)",
    "bf.related({'a': torch.arange(5)})",
    "bf.accelerate(3)",
    "bf.batchformer(x, None, layer, True)",
    "bf.batchformer(x[:, 0], [1] * (len(x) + 1), layer, True)",
    "bf.batchformer(3, None, layer, True)",
    "bf.relations(layer, x[:, 0].double())",
    "bf.relations(layer, x[:, 0, :-1])",
    "bf.relations(layer, x)",
    "bf.relations(layer, x[:, 0].int())",
    "bf.relations(layer, None)",
    "bf.relations(nn.Linear(3, 3), x)",
    'bf.relations(layer, x[:, 0].to("meta"))',
    "bf.batchformer(x[:, 0].double(), None, layer, True)",
)
LAYER = (
    "layer({})",
    "layer(x[0, 0])",
    "layer(x.unsqueeze(0))",
    "layer(None)",
    "layer([x])",
    'layer.to("meta")(x)',
    "bf.TransformerEncoderLayer({c}, {c} + 1)",
    "bf.TransformerEncoderLayer({c}, 1, dropout=-0.1)",
    'bf.TransformerEncoderLayer({c}, 1, activation="tanh")',
)


def draw(rng: random.Random) -> Call:
    """One of them, on a layer that is right."""
    layer = replace(layers.draw(rng), activation='"relu"', dtype="float32", dropout=0.0, layers=1)
    layer = replace(layer, samples=max(layer.samples, 1), positions=max(layer.positions, 1))
    statement, before = _wrong(rng, layer.bias)
    named = {"a": layer.arguments("batch_first"), "c": layer.channels}
    for name, value in named.items():
        statement = statement.replace(f"{{{name}}}", str(value))
    needs_ops = any(word in statement for word in ("parameters", "config", "seed"))
    ops = (
        ["parameters, config, seed = layer._parameters_of_op(), layer._config(), None"]
        if needs_ops or before
        else []
    )
    return Call(
        "wrong",
        (
            f"torch.manual_seed({rng.randrange(2**31)})",
            f"layer = bf.TransformerEncoderLayer({layer.arguments()})",
            f"channels, x = {layer.channels}, torch.randn({list(token_shape(layer))})",
            *ops,
            *before,
            "try:",
            f"    {statement}",
            "except (TypeError, ValueError, RuntimeError) as error:",
            "    sentence = str(error)",
            "    assert len(sentence.split()) > 2 and 'report' not in sentence.lower(), sentence",
            "else:",
            "    raise AssertionError('no error')",
        ),
    )


def _wrong(rng: random.Random, bias: bool) -> tuple[str, list[str]]:
    """The statement that has to raise, and lines before it."""
    kind = rng.choice(
        ("layer", "parameter", "config", "seed", "grad_y", "saved", "saved", "modules", "modules", "helpers")
    )
    if kind == "layer":
        bad = rng.choice(BAD_TENSORS[:3] + BAD_TENSORS[5:]).format("x")
        return rng.choice(LAYER).replace("{}", bad), []
    if kind == "parameter":
        name = rng.choice([name for name in PARAMETERS if bias or "bias" not in name])
        bad = rng.choice(BAD_TENSORS).replace("{}", f"parameters.{name}")
        bad = "None" if name.endswith("weight") and rng.random() < 0.1 else bad
        return f"bf.ops.encoder_layer(x, parameters._replace({name}={bad}), config)", []
    if kind == "config":
        replaced = f"config = config._replace({rng.choice(BAD_CONFIGS)})"
        return FORWARD, ["seed = torch.tensor(1)", replaced]
    if kind == "seed":
        return FORWARD, ["config = config._replace(dropout=(0.5,) * 4)", f"seed = {rng.choice(BAD_SEEDS)}"]
    if kind in ("grad_y", "saved"):
        saving = ["with torch.no_grad():", f"    y, saved = {FORWARD}", "grad_y = torch.randn(x.shape)"]
        if kind == "grad_y":
            bad = rng.choice((*BAD_TENSORS, "None", "{}[:-1]", "{}.half()")).replace("{}", "grad_y")
            return BACKWARD, [*saving, f"grad_y = {bad}"]
        if rng.random() < 0.1:
            return BACKWARD, [
                *saving,
                f"saved = {rng.choice(('saved[:-1]', '[*saved, saved[0]]', '[None, *saved[1:]]'))}",
            ]
        index = rng.randrange(FEWEST_SAVED)
        return BACKWARD, [*saving, f"s = saved[{index}]", f"saved[{index}] = {rng.choice(BAD_SAVED)}"]
    return rng.choice(MODULES if kind == "modules" else HELPERS), []
