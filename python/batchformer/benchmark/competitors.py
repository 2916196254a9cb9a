"""What is timed: our layer, torch's eager and compiled, and the bare matrix products of the same shape."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from batchformer import ops
from batchformer.benchmark.shapes import Shape
from batchformer.modules._composed import composed
from batchformer.modules._keys import of_queries, split_in_proj
from batchformer.modules.encoder_layer import TransformerEncoderLayer

OURS, EAGER, COMPILED, PRODUCTS = "ours", "eager", "compile", "products"
GRAPHED = "reduce-overhead"  # torch's layer compiled in that mode: replays of CUDA graphs
MODES = {COMPILED: None, GRAPHED: "reduce-overhead"}  # of torch.compile
OWN_KEYS = "own keys"  # our layer as it is, to compare with itself on given keys
MOST_BATCHES = 64


@dataclass(frozen=True)
class Setting:
    """What holds for every shape."""

    device: torch.device
    dtype: torch.dtype
    dropout: float
    frozen: bool = False  # no parameter needs a gradient, only the input

    def randn(self, *size: int) -> Tensor:
        """Normal numbers on the device."""
        return torch.randn(*size, device=self.device, dtype=self.dtype)


Case = tuple[Shape, Setting]


def case_as_json(case: Case) -> dict[str, Any]:
    """A case for another process."""
    shape, setting = case
    return {
        "shape": list(shape),
        "device": str(setting.device),
        "dtype": str(setting.dtype).removeprefix("torch."),
        "dropout": setting.dropout,
        "frozen": setting.frozen,
        "float32_products": torch.get_float32_matmul_precision(),
    }


def case_from_json(task: dict[str, Any]) -> Case:
    """The case that :func:`case_as_json` was given, and its precision of products for this process."""
    torch.set_float32_matmul_precision(task["float32_products"])
    dtype = getattr(torch, task["dtype"])
    setting = Setting(torch.device(task["device"]), dtype, task["dropout"], task["frozen"])
    return Shape(*task["shape"]), setting


@dataclass(frozen=True)
class Competitor:
    """Two calls to time: forward with backward, and forward alone as it is in training."""

    name: str
    step: Callable[[], Any]
    forward: Callable[[], Any] | None  # None: compiled, where a graph waits for its backward


def make_layer(name: str, shape: Shape, setting: Setting) -> nn.Module:
    """The layer of a competitor in training mode, as the official code makes it."""
    cls = TransformerEncoderLayer if name in (OURS, OWN_KEYS) else nn.TransformerEncoderLayer
    layer = cls(
        shape.channels,
        shape.heads,
        shape.channels,
        setting.dropout,
        device=setting.device,
        dtype=setting.dtype,
    )
    layer.requires_grad_(not setting.frozen)
    if name in MODES:
        # By torch.compile, as layer.compile() does nothing for classes of torch.nn in some releases;
        # static, as a training has one shape, or few.
        return cast(nn.Module, torch.compile(layer, mode=MODES[name], dynamic=False))
    return layer


class Call(NamedTuple):
    """A forward of a layer, with what it can be applied to."""

    layer: nn.Module
    x: Tensor
    forward: Callable[[Tensor], Tensor]


def make_call(name: str, shape: Shape, setting: Setting) -> Call:
    """A layer on random samples, which attend to each other or to the keys of the shape."""
    layer: Any = make_layer(name, shape, setting)
    x = setting.randn(shape.samples, shape.positions, shape.channels).requires_grad_()
    if shape.keys == 0 or name == OWN_KEYS:
        return Call(layer, x, layer)
    everyones = setting.randn(shape.keys, shape.positions, 2 * shape.channels)

    def forward(x: Tensor) -> Tensor:
        projection = split_in_proj(layer.self_attn, uniform=False)
        keys_values = _Gathered.apply(F.linear(x, projection.weight, projection.bias), everyones)
        if name == EAGER:
            return composed(layer, x, keys_values, None, projection)
        parameters = of_queries(layer._parameters_of_op(), projection)
        return ops.encoder_layer(x, parameters, layer._config(), keys_values=keys_values)

    return Call(layer, x, forward)


class _Gathered(torch.autograd.Function):
    """A rank's own keys and values among those of all, as if received; backward: the gradient of its own."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, everyones: Tensor) -> Tensor:
        everyones[: len(own)] = own
        ctx.samples = len(own)
        return everyones.view_as(everyones)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad[: ctx.samples], None


def layer_competitor(name: str, shape: Shape, setting: Setting) -> Competitor:
    """A layer called as its public nn.Module or, with keys, as the module calls it; and autograd."""
    layer, x, forward = make_call(name, shape, setting)
    grad_y = setting.randn(shape.samples, shape.positions, shape.channels)
    batches = _taking_turns(x, grad_y, setting.device)

    def step() -> None:
        x, grad_y = next(batches)
        if name == GRAPHED:
            torch.compiler.cudagraph_mark_step_begin()  # outputs of the previous step are no longer read
        forward(x).backward(grad_y)
        x.grad = None
        layer.zero_grad()

    def forward_alone() -> Tensor:
        return forward(next(batches)[0])

    return Competitor(name, step, None if name in MODES else forward_alone)


def _taking_turns(x: Tensor, grad_y: Tensor, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs for the steps: on a device so many that each has left the cache when it is used again.

    The parameters stay in the cache, and so does what the previous step left, as in training.
    """
    batches = [(x, grad_y)]
    if device.type == "cuda":
        cache = torch.cuda.get_device_properties(device).L2_cache_size
        more = min(MOST_BATCHES, 2 * cache // (2 * x.nbytes))
        batches += [
            (torch.randn_like(x).requires_grad_(), torch.randn_like(grad_y)) for _ in range(int(more))
        ]
    return cycle(batches)


def product_competitor(shape: Shape, setting: Setting) -> Competitor:
    """The least that the layer computes: the products of its four linears, for V1 with those of attention.

    With K keys only the rank's own samples are projected, as those of others arrive projected.

    Forward, gradient of the input and, unless frozen, of the weight through torch.mm, with allocated outputs.
    """
    m, c = shape.tokens, shape.channels
    linears = []
    for width_out, width_in in ((3 * c, c), (c, c), (c, c), (c, c)):
        sizes = ((m, width_in), (width_out, width_in), (m, width_out))
        linears.append(tuple(setting.randn(*size) for size in sizes))  # x, weight, grad_y
    keys, width = shape.keys or shape.samples, c // shape.heads
    query, scores = setting.randn(shape.heads, shape.samples, width), None
    key = setting.randn(shape.heads, keys, width)
    if shape.positions == 1:
        scores = setting.randn(shape.heads, shape.samples, keys)

    def forward() -> None:
        for x, weight, _ in linears:
            torch.mm(x, weight.T)
        if scores is not None:
            torch.bmm(query, key.mT)  # Q Kᵀ
            torch.bmm(scores, key)  # P V

    def step() -> None:
        forward()
        for x, weight, grad_y in linears:
            torch.mm(grad_y, weight)
            if not setting.frozen:
                torch.mm(grad_y.T, x)
        if scores is not None:
            torch.bmm(query, key.mT)  # grad_P
            torch.bmm(scores, key)  # grad_Q
            for _ in range(2):  # grad_K, grad_V
                torch.bmm(scores.mT, query)

    return Competitor(PRODUCTS, step, forward)


def make_competitors(names: list[str], shape: Shape, setting: Setting) -> list[Competitor]:
    """The competitors of these names, for one shape."""
    return [
        product_competitor(shape, setting) if name == PRODUCTS else layer_competitor(name, shape, setting)
        for name in names
    ]
