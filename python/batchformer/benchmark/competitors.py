"""What is timed: our layer, torch's eager and compiled, and the bare matrix products of the same shape."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from batchformer.benchmark.shapes import Shape
from batchformer.modules.encoder_layer import TransformerEncoderLayer

OURS, EAGER, COMPILED, PRODUCTS = "ours", "eager", "compile", "products"


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


@dataclass(frozen=True)
class Competitor:
    """Two calls to time: forward with backward, and forward alone as it is in training."""

    name: str
    step: Callable[[], Any]
    forward: Callable[[], Any]


def make_layer(name: str, shape: Shape, setting: Setting) -> nn.Module:
    """The layer of a competitor in training mode, as the official code makes it."""
    cls = TransformerEncoderLayer if name == OURS else nn.TransformerEncoderLayer
    layer = cls(
        shape.channels,
        shape.heads,
        shape.channels,
        setting.dropout,
        device=setting.device,
        dtype=setting.dtype,
    )
    layer.requires_grad_(not setting.frozen)
    if name == COMPILED:
        layer.compile()
    return layer


def layer_competitor(name: str, shape: Shape, setting: Setting) -> Competitor:
    """A layer through its public nn.Module and autograd."""
    layer = make_layer(name, shape, setting)
    x = setting.randn(shape.samples, shape.positions, shape.channels).requires_grad_()
    grad_y = setting.randn(shape.samples, shape.positions, shape.channels)

    def step() -> None:
        layer.zero_grad()
        x.grad = None
        layer(x).backward(grad_y)

    return Competitor(name, step, lambda: layer(x))


def product_competitor(shape: Shape, setting: Setting) -> Competitor:
    """The least that the layer computes: the products of its four linears, for V1 with those of attention.

    Forward, gradient of the input and, unless frozen, of the weight through torch.mm, with allocated outputs.
    """
    m, c = shape.tokens, shape.channels
    linears = []
    for width_out, width_in in ((3 * c, c), (c, c), (c, c), (c, c)):
        sizes = ((m, width_in), (width_out, width_in), (m, width_out))
        linears.append(tuple(setting.randn(*size) for size in sizes))  # x, weight, grad_y
    batch = (shape.heads, shape.samples)
    head, square = setting.randn(*batch, c // shape.heads), None
    if shape.positions == 1:
        square = setting.randn(*batch, shape.samples)

    def forward() -> None:
        for x, weight, _ in linears:
            torch.mm(x, weight.T)
        if square is not None:
            torch.bmm(head, head.mT)  # Q Kᵀ
            torch.bmm(square, head)  # P V

    def step() -> None:
        forward()
        for x, weight, grad_y in linears:
            torch.mm(grad_y, weight)
            if not setting.frozen:
                torch.mm(grad_y.T, x)
        if square is not None:
            torch.bmm(head, head.mT)  # grad_P
            for _ in range(3):  # grad_Q, grad_K, grad_V
                torch.bmm(square, head)

    return Competitor(PRODUCTS, step, forward)


def make_competitors(names: list[str], shape: Shape, setting: Setting) -> list[Competitor]:
    """The competitors of these names, for one shape."""
    return [
        product_competitor(shape, setting) if name == PRODUCTS else layer_competitor(name, shape, setting)
        for name in names
    ]
