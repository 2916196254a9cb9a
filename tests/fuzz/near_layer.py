"""Calls of the layer and of its op that are compared with torch's layer."""

import random

from fuzz import layers, tensors
from fuzz.call import Call, under
from fuzz.direct import BACKWARD, FORWARD
from fuzz.layers import Layer

MODES = ("torch.no_grad()", "torch.inference_mode()", 'torch.autocast("cpu", dtype=torch.bfloat16)')
HOOKS = (
    "lambda t: t.transpose(0, -1).contiguous(), lambda t: t.transpose(0, -1)",
    "lambda t: t.double() if t.is_floating_point() else t, lambda t: t",
    "lambda t: t.clone(), lambda t: t",
)


def draw_layer(rng: random.Random) -> Call:
    """ours(x): masks, modes, frozen parameters, two backwards, hooks of saved tensors."""
    layer = layers.stacked(rng, layers.draw(rng))
    mode = rng.choice(MODES) if rng.random() < 0.2 else ""
    argument, lines = _mask(rng, layer) if rng.random() < 0.06 else ("", [])
    call = f"ours(z{argument})"
    ours_runs = not lines and not _declined(layer)
    hooks = rng.choice(HOOKS) if not mode and ours_runs and rng.random() < 0.08 else ""
    statement = f"y = {call.replace('z', 'x', 1)}"
    unbatched = rng.random() < 0.05 and not lines and layer.samples > 0 and layer.positions > 0
    shape = (layer.samples, layer.channels) if unbatched else token_shape(layer)
    return compared(
        rng,
        "layer",
        layer,
        shape,
        [*layers.theirs(rng, layer), *layers.ours(rng, layer), *_evaluation(rng), *lines],
        [f"def plain(layer, z): return layer(z{argument})"],
        [under(mode or (hooks and f"torch.autograd.graph.saved_tensors_hooks({hooks})"), statement)],
        mode=mode,
        may_raise=bool(hooks),
        masked=bool(lines),
    )


def draw_op(rng: random.Random) -> Call:
    """bf.ops.encoder_layer, with autograd."""
    layer = layers.draw(rng)
    mode = rng.choice(MODES) if rng.random() < 0.2 else ""
    recompute = f", recompute={rng.random() < 0.5}" if rng.random() < 0.5 else ""
    statement = f"y = bf.ops.encoder_layer(x, encoder._parameters_of_op(), encoder._config(){recompute})"
    lines = [*layers.theirs(rng, layer), *_only_ours(rng, layer)]
    return compared(
        rng,
        "op",
        layer,
        token_shape(layer),
        lines,
        ["def plain(layer, z): return layer(z)"],
        [under(mode, statement)],
        mode=mode,
        may_raise=_declined(layer),
    )


def draw_direct(rng: random.Random) -> Call:
    """Both ops by their schema, what is saved carried by hand, at times through other strides."""
    layer = layers.draw(rng)
    lines = [*layers.theirs(rng, layer), *_only_ours(rng, layer, frozen=False)]
    lines += ["parameters, config, seed = encoder._parameters_of_op(), encoder._config(), torch.tensor(5)"]
    moved = rng.random() < 0.15
    steps = [f"y, saved = {FORWARD}"]
    if moved:
        steps.append("saved = [s.transpose(0, -1).contiguous().transpose(0, -1) for s in saved]")
    steps += [
        f"x.grad, *grads = {BACKWARD}",
        "for p, grad in zip([p for p in parameters if p is not None], grads, strict=True): p.grad = grad",
    ]
    under_no_grad = ["with torch.no_grad():", *(f"    {line}" for line in steps)]
    return compared(
        rng,
        "direct op",
        layer,
        token_shape(layer),
        lines,
        ["def plain(layer, z): return layer(z)"],
        under_no_grad,
        may_raise=moved or _declined(layer),
        x_grad=True,
        backward_line=False,
    )


def token_shape(layer: Layer) -> tuple[int, int, int]:
    tokens = (layer.positions, layer.samples) if layer.batch_first else (layer.samples, layer.positions)
    return (*tokens, layer.channels)


def compared(
    rng: random.Random,
    kind: str,
    layer: Layer,
    shape: tuple[int, ...],
    made: list[str],
    plain: list[str],
    statements: list[str],
    *,
    mode: str = "",
    may_raise: bool = False,
    x_grad: bool | None = None,
    backward_line: bool = True,
    y_shape: tuple[int, ...] | None = None,
    one_key: bool = False,
    masked: bool = False,
) -> Call:
    """The call with its input, its gradient and the backward."""
    finite = layer.dropout == 1.0 or any(
        line.endswith("= 1.0") for line in made
    )  # torch multiplies by 0, which NaN survives
    x = tensors.lines(rng, "x", shape, layer.dtype, finite=finite)
    if x_grad if x_grad is not None else rng.random() < 0.8:
        x.append("x.requires_grad_()")
    dtype = "bfloat16" if "autocast" in mode and layer.dtype != "float64" else layer.dtype
    if rng.random() < 0.9:
        grad_y = [f"grad_y = torch.randn({list(y_shape or shape)}, dtype=torch.{layer.dtype})"]
        strided = tensors.layout(rng, "grad_y", y_shape or shape)
        grad_y += [f"grad_y = {strided}"] if strided != "grad_y" else []
    else:
        grad_y = tensors.lines(rng, "grad_y", y_shape or shape, layer.dtype, finite=finite)
    backwards = 2 if backward_line and rng.random() < 0.08 else 1
    steps = []
    if backward_line:
        retained = "y.backward(grad_y.to(y.dtype), retain_graph=True)"
        steps = [f"if y.requires_grad: {retained}"] * (backwards - 1) + [
            "if y.requires_grad: y.backward(grad_y.to(y.dtype))"
        ]
    return Call(
        kind,
        (
            f"torch.manual_seed({rng.randrange(2**31)}); torch.set_num_threads({threads(rng)})",
            *made,
            *x,
            *grad_y,
            *plain,
            *statements,
            *steps,
        ),
        compared=True,
        dtype=dtype,
        mode=mode,
        backwards=backwards,
        special=any(map(tensors.is_special, (*x, *grad_y))),
        one_key=(one_key or layer.samples == 1) and not masked and not _declined(layer),
        may_raise=may_raise,
    )


def threads(rng: random.Random) -> int:
    return rng.choices((1, 2, 3), (70, 20, 10))[0]


def _evaluation(rng: random.Random) -> list[str]:
    return ["theirs.eval(), ours.eval()"] if rng.random() < 0.15 else []


def _only_ours(rng: random.Random, layer: Layer, *, frozen: bool = True) -> list[str]:
    return [
        f"encoder = bf.TransformerEncoderLayer({layer.arguments()})",
        "encoder.load_state_dict(theirs.state_dict())",
        *layers.changes(rng, layer, frozen=frozen),
    ]


def _declined(layer: Layer) -> bool:
    """Where the op, which has no implementation of torch's behind it, has to refuse."""
    return layer.activation in layers.OTHER_ACTIVATIONS or layer.samples * layer.positions == 0


def _mask(rng: random.Random, layer: Layer) -> tuple[str, list[str]]:
    """A mask of the queries and keys, or of the keys, that leaves each query its first key."""
    attending = layer.samples
    if rng.random() < 0.5 or layer.layers > 1 or not attending:
        name = "mask" if layer.layers > 1 else "src_mask"
        lines = [f"mask = torch.rand({attending}, {attending}) < 0.4", "mask[:, :1] = False"]
        return f", {name}=mask", lines
    lines = [f"padding = torch.rand({layer.positions}, {attending}) < 0.4", "padding[:, :1] = False"]
    return ", src_key_padding_mask=padding", lines
