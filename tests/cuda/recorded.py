"""Which kernels a training step launches, asked of the core, which hands its launches out."""

import ctypes
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from batchformer import ops
from batchformer._extension import core
from batchformer.modules.encoder_layer import TransformerEncoderLayer

NAMES = {torch.bfloat16: "bf16", torch.float16: "f16", torch.float32: "float"}


class Call(NamedTuple):
    """A training step of a layer, of which tensors' sizes and types matter alone."""

    samples: int
    positions: int
    channels: int
    heads: int
    dtype: torch.dtype
    feedforward: int = 0  # 0: as wide as the channels
    autocast: bool = False  # float32 but for the linears, which have the dtype
    keys: int = 0
    options: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        """Sizes, dtype and what else is not the default."""
        sizes = f"N={self.samples} L={self.positions} C={self.channels} D={self.channels // self.heads}"
        more = [f"{name}={value}" for name, value in self.options]
        more += [f"K={self.keys}"] * (self.keys > 0) + ["autocast"] * self.autocast
        return " ".join([sizes, NAMES[self.dtype], *more])


class Launch(NamedTuple):
    """A kernel as it was asked for."""

    source: str
    kernel: str
    defines: tuple[tuple[str, str], ...]
    grid: tuple[int, ...]
    block: int
    shared: int


@contextmanager
def recording() -> Iterator[list[Launch]]:
    """The launches of the calls inside, whose tensors are on the CPU and come out as zeros.

    As they were allocated they may hold denormal numbers, with which a product takes a hundred times as long.
    """
    launches: list[Launch] = []

    def keep(
        source: str,
        kernel: str,
        defines: list[tuple[str, str]],
        grid: list[int],
        block: int,
        shared: int,
        arguments: list[Any],
    ) -> None:
        pairs = tuple(sorted((name, str(value)) for name, value in defines))
        launches.append(Launch(source, kernel, pairs, tuple(grid), block, shared))
        for each in arguments:
            if type(each) is tuple and each[0] != "in":
                _, address, size = each
                ctypes.memset(address, 0, size)

    core.emulate_cuda(keep)
    try:
        yield launches
    finally:
        core.emulate_cuda(None)


def launches_of(call: Call) -> list[Launch]:
    """The kernels of forward and backward, in their order."""
    linears = call.dtype
    outside = torch.float32 if call.autocast else call.dtype
    layer = TransformerEncoderLayer(
        call.channels, call.heads, call.feedforward or call.channels, 0.5, **dict(call.options)
    )
    x = torch.zeros(call.samples, call.positions, call.channels, dtype=outside).requires_grad_()
    parameters = []
    for name, parameter in zip(ops.Parameters._fields, layer._parameters_of_op(), strict=True):
        dtype = outside if name.startswith("norm") else linears
        rows = call.channels if call.keys and name.startswith("in_proj") else None
        parameters.append(None if parameter is None else parameter.detach()[:rows].to(dtype).requires_grad_())
    keys = None
    if call.keys:
        keys = torch.zeros(call.keys, call.positions, 2 * call.channels, dtype=linears).requires_grad_()
    with recording() as launches:
        y = ops.encoder_layer(x, ops.Parameters(*parameters), layer._config(), keys_values=keys)
        y.backward(torch.zeros_like(y))
    return launches


def systems(dtypes: Iterable[torch.dtype]) -> list[Call]:
    """The kinds of call that the systems make; few positions stand for many, and few keys for wide heads."""
    calls = []
    for dtype in dtypes:
        calls += [
            Call(2, 256, 256, 4, dtype),  # DETR
            Call(4, 256, 256, 4, dtype),
            Call(16, 64, 256, 4, dtype),
            Call(16, 64, 256, 8, dtype),
            Call(64, 16, 192, 4, dtype),  # DeiT
            Call(64, 16, 384, 4, dtype),
            Call(32, 16, 256, 4, dtype),
            Call(96, 1, 512, 4, dtype),  # SWAD
            Call(128, 1, 48, 1, dtype),  # RIDE
            Call(256, 1, 512, 4, dtype),
            Call(1024, 1, 512, 4, dtype),
            Call(4096, 1, 512, 4, dtype),
            Call(512, 1, 2048, 4, dtype),  # heads too wide for one kernel
        ]
    half = next((dtype for dtype in dtypes if dtype != torch.float32), torch.bfloat16)
    gelu = (("activation", "gelu"), ("norm_first", True))
    calls += [
        Call(2, 256, 256, 8, half, 1024, options=gelu),
        Call(4, 64, 256, 4, half, autocast=True),
        Call(256, 1, 512, 4, half, autocast=True, options=gelu),
        Call(64, 1, 512, 4, half, keys=256),
    ]
    return calls


def distinct(calls: Iterable[Call]) -> dict[tuple[str, tuple[tuple[str, str], ...]], dict[str, Launch]]:
    """The launches by what is compiled for them, source and defines, and by kernel; the first of each."""
    modules: dict[tuple[str, tuple[tuple[str, str], ...]], dict[str, Launch]] = {}
    for call in calls:
        for launch in launches_of(call):
            modules.setdefault((launch.source, launch.defines), {}).setdefault(launch.kernel, launch)
    return modules
