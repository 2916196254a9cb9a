"""Sizes and options of a layer, drawn; and the lines that make torch's and ours with the same parameters."""

import random
from dataclasses import dataclass, replace

WIDTHS = (1, 2, 3, 4, 5, 6, 7, 8, 12, 15, 16, 17, 24, 31, 32, 33, 64)
HIDDEN = (1, 2, 3, 5, 7, 8, 13, 16, 17, 31, 32, 64, 65)
# Around 128 samples and 512 tokens the core cuts a call in another way.
EDGES = (
    (128, 4),
    (127, 5),
    (129, 4),
    (128, 3),
    (127, 4),
    (129, 1),
    (128, 1),
    (1, 512),
    (1, 511),
    (2, 256),
    (4, 128),
    (3, 171),
    (5, 103),
    (16, 32),
    (64, 8),
    (2, 255),
    (257, 2),
    (513, 1),
)
ACTIVATIONS = (
    '"relu"',
    '"gelu"',
    "torch.relu",
    "nn.functional.relu",
    "nn.ReLU()",
    "nn.functional.gelu",
    "nn.GELU()",
)
OTHER_ACTIVATIONS = ("nn.functional.silu", 'nn.GELU(approximate="tanh")', "torch.tanh")
PARAMETERS = (
    "self_attn.in_proj_weight",
    "self_attn.in_proj_bias",
    "self_attn.out_proj.weight",
    "self_attn.out_proj.bias",
    "linear1.weight",
    "linear1.bias",
    "linear2.weight",
    "linear2.bias",
    "norm1.weight",
    "norm1.bias",
    "norm2.weight",
    "norm2.bias",
)
PLACES = ("self_attn.dropout", "dropout.p", "dropout1.p", "dropout2.p")


@dataclass(frozen=True)
class Layer:
    """What the constructors of torch's layer and ours are given."""

    samples: int
    positions: int
    channels: int
    heads: int
    feedforward: int
    activation: str
    norm_first: bool
    batch_first: bool
    bias: bool
    dtype: str
    eps: float
    dropout: float
    layers: int

    def arguments(self, *skipped: str) -> str:
        named = {
            "layer_norm_eps": self.eps,
            "batch_first": self.batch_first,
            "norm_first": self.norm_first,
            "bias": self.bias,
        }
        options = [f"{name}={value}" for name, value in named.items() if name not in skipped]
        first = f"{self.channels}, {self.heads}, {self.feedforward}, {self.dropout}, {self.activation}"
        return ", ".join((first, *options, f"dtype=torch.{self.dtype}"))


def draw(rng: random.Random) -> Layer:
    samples, positions, widths = _sizes(rng)
    channels = rng.choice(widths)
    divisors = [heads for heads in range(1, 17) if channels % heads == 0]
    return Layer(
        samples=samples,
        positions=positions,
        channels=channels,
        heads=rng.choice(divisors),
        feedforward=rng.choice(HIDDEN[:9] if widths != WIDTHS else HIDDEN),
        activation=rng.choice(ACTIVATIONS) if rng.random() < 0.96 else rng.choice(OTHER_ACTIVATIONS),
        norm_first=rng.random() < 0.5,
        batch_first=rng.random() < 0.4,
        bias=rng.random() < 0.8,
        dtype=rng.choices(("float32", "float64", "bfloat16", "float16"), (45, 30, 15, 10))[0],
        eps=rng.choices((1e-5, 1e-12, 0.1), (90, 5, 5))[0],
        dropout=rng.choices((0.0, 1.0), (96, 4))[0],
        layers=1,
    )


def _sizes(rng: random.Random) -> tuple[int, int, tuple[int, ...]]:
    kind = rng.choices(("edge", "middle", "small", "empty"), (7, 15, 77, 1))[0]
    if kind == "edge":
        return *rng.choice(EDGES), WIDTHS[:11]
    if kind == "middle":
        return rng.randint(1, 40), rng.choice((1, 2, 5, rng.randint(1, 30))), WIDTHS
    if kind == "empty":
        return *rng.choice(((0, 3), (3, 0), (0, 0))), WIDTHS
    return rng.choice((1, 1, 2, 3, 4, 5, 7, 8)), rng.choice((1, 1, 2, 3, 4, 7)), WIDTHS


def theirs(rng: random.Random, layer: Layer) -> list[str]:
    """Torch's layer, with parameters away from their initial 1 and 0."""
    made = f"nn.TransformerEncoderLayer({layer.arguments()})"
    if layer.layers > 1:
        made = f"nn.TransformerEncoder({made}, {layer.layers}, enable_nested_tensor=False)"
    scale = rng.choices(("0.2", "1.0"), (90, 10))[0]
    return [f"theirs = {made}", f"for p in theirs.parameters(): p.data += {scale} * torch.randn_like(p)"]


def ours(rng: random.Random, layer: Layer, *, frozen: bool = True) -> list[str]:
    """`ours` with the parameters of `theirs`: a layer of our own, or torch's led through accelerate()."""
    if rng.random() < 0.1:
        made = ["ours = bf.accelerate(copy.deepcopy(theirs), verbose=False)"]
    else:
        recompute = ", recompute=True" if rng.random() < 0.2 else ""
        one = f"bf.TransformerEncoderLayer({layer.arguments()}{recompute})"
        if layer.layers > 1:
            one = f"nn.TransformerEncoder({one}, {layer.layers}, enable_nested_tensor=False)"
        made = [f"ours = {one}", "ours.load_state_dict(theirs.state_dict())"]
    return [*made, "encoder = ours", *changes(rng, layer, frozen=frozen)]


def changes(rng: random.Random, layer: Layer, *, frozen: bool = True) -> list[str]:
    """Lines that freeze parameters of both, lay ours otherwise in memory, and turn both to evaluation."""
    made = []
    if frozen and rng.random() < 0.4:
        names = tuple(name for name in PARAMETERS if rng.random() < rng.choice((0.2, 0.8, 1.0)))
        made += [
            f"frozen = {names}",
            "for layer in (theirs, encoder): "
            "[p.requires_grad_(False) for name, p in layer.named_parameters() if name.endswith(frozen)]",
        ]
    if rng.random() < 0.1:
        made.append("for p in encoder.parameters(): p.data = p.data.t().contiguous().t()")
    elif rng.random() < 0.05:
        made.append("for p in encoder.parameters(): p.data = torch.stack([p.data, p.data], -1)[..., 0]")
    if layer.layers == 1 and layer.dropout == 0.0 and rng.random() < 0.05:
        place = rng.choice(PLACES)
        made.append(f"theirs.{place} = encoder.{place} = 1.0")
    if layer.layers == 1 and rng.random() < 0.05:
        made.append("for layer in (theirs, encoder): layer.norm1.eps, layer.norm2.eps = 0.3, 1e-6")
    return made


def stacked(rng: random.Random, layer: Layer) -> Layer:
    """The same, at times with more than one layer, which `nn.TransformerEncoder` holds."""
    return replace(layer, layers=rng.choice((2, 3))) if rng.random() < 0.15 else layer
