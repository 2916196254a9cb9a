"""Whether the kernels of CUDA serve a call, and the list of those that they did not serve."""

import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from batchformer._extension import core
from batchformer.ops.arguments import Parameters
from batchformer.tracer import constant

MOST_SAMPLES, WIDEST_HEAD_OF_FLASH = 2048, 256
"""Among more samples torch's layer is the faster one, with heads up to that width: its attention on Hopper
reaches more of the tensor cores than kernels for all architectures do.

Microseconds of all kernels of a step, ours and torch's, on an H200 with C=512 and H=4: N=256 89 and 143 in
bfloat16, 255 and 357 in float32; N=1024 176 and 248, 772 and 891; N=4096 893 and 666, 5831 and 4714. With
heads of 512, N=4096: 2167 and 18537, 22534 and 26763.
"""


MOST_SAMPLES_OF_A_TILE = 64
"""The most samples whose scores attention keeps in registers, whatever the width of the heads is."""


class Signature(NamedTuple):
    """A kind of call: what decides whether the kernels serve it. Numbers of samples and positions do not."""

    device: int
    x: str
    """The dtype of x; the next two are those of the linears' and of the norms' parameters."""
    linears: str
    norms: str
    channels: int
    heads: int
    feedforward: int
    gelu: bool
    norm_first: bool

    def __str__(self) -> str:
        dtypes = "/".join(dict.fromkeys((self.x, self.linears, self.norms)))
        widths = f"C={self.channels} H={self.heads} F={self.feedforward}"
        activation, order = "gelu" if self.gelu else "relu", "pre" if self.norm_first else "post"
        return f"cuda:{self.device} {dtypes} {widths} {activation} {order}-norm"


_served: set[tuple[object, ...]] = set()
"""Kinds of calls known to be served; asking the core takes longer."""
_warned = False


def reason(
    src: Tensor, parameters: Parameters, *, nhead: int, activation: str, norm_first: bool, batch_first: bool
) -> str | None:
    """Why the kernels do not serve a call with this src on a CUDA device; None if they do.

    The first call of a kind (device, dtypes, widths, activation, place of the norms) compiles the kernels and
    compares a small layer with libtorch's. With BATCHFORMER_CUDA=kernels every call runs the op, which raises
    where the kernels do not serve.
    """
    x, linears, norms = src.dtype, parameters.in_proj_weight.dtype, parameters.norm1_weight.dtype
    if torch.is_autocast_enabled("cuda") and torch.float64 not in (x, linears, norms):
        linears, norms = torch.get_autocast_dtype("cuda"), torch.float32
        x = x if norm_first else torch.float32
    feedforward, channels = parameters.linear1_weight.shape
    gelu = activation == "gelu"
    kind = (src.device.index or 0, x, linears, norms, channels, nhead, feedforward, gelu, norm_first)
    compiling = torch.compiler.is_compiling()
    if compiling or kind not in _served:  # a graph would be guarded on the whole set
        sentence: str | None = _decided(*kind)
        if sentence is not None:
            return sentence
        if not compiling:
            _served.add(kind)
    samples = src.shape[-2 if batch_first else 0]
    positions = src.shape[0 if batch_first else 1] if src.dim() == 3 else 1
    better = _better_by_torch(samples, positions, channels // nhead, linears.itemsize)
    return None if better is None or _switch() == "kernels" else better


def allows_tf32(x: Tensor) -> bool:
    """Whether torch multiplies float32 in TF32 on the device of x; the kernels of attention then do, too."""
    return x.is_cuda and torch._C._get_fp32_precision_getter("cuda", "matmul") == "tf32"


def _better_by_torch(samples: int, positions: int, width: int, itemsize: int) -> str | None:
    """Why torch's layer is to run calls of these sizes, with heads of that width, though kernels would."""
    if type(samples) is not int:  # it would add a guard: then the kernels run
        return None
    if samples > MOST_SAMPLES and width <= WIDEST_HEAD_OF_FLASH:
        return f"torch's attention is the faster one among {samples} samples"
    several = type(positions) is not int or positions > 1
    if several and samples > MOST_SAMPLES_OF_A_TILE and width * itemsize % 16 != 0:
        return f"heads of {width} channels are no multiple of 16 bytes, and all scores would be kept"
    return None


def _is_there() -> bool:
    """Whether CUDA is NVIDIA's (ROCm calls its devices cuda, too) and a device can be used."""
    return torch.version.cuda is not None and torch.cuda.is_available()


@constant
def _switch() -> str:
    return str(core.cuda_switch())


@constant
def _decided(
    device: int,
    x: torch.dtype,
    linears: torch.dtype,
    norms: torch.dtype,
    channels: int,
    heads: int,
    feedforward: int,
    gelu: bool,
    norm_first: bool,
) -> str | None:
    if _switch() == "kernels":
        return None
    if not _is_there():
        return "this torch sees no CUDA device"
    names = tuple(str(dtype).removeprefix("torch.") for dtype in (x, linears, norms))
    for name in names:
        if name not in ("float32", "float64", "bfloat16", "float16"):
            return f"{name} has no kernels"
    of_x, of_linears, of_norms = names
    traced = torch._C._len_torch_dispatch_stack() > 0
    kind = Signature(device, of_x, of_linears, of_norms, channels, heads, feedforward, gelu, norm_first)
    # The comparison sets its dtypes itself.
    with torch.autocast("cuda", enabled=False):
        found = core.cuda_reason(kind, not traced)
    if found is None:
        return None
    sentence, is_fault = found
    if is_fault:
        _warn_once(sentence)
    return str(sentence)


def _warn_once(sentence: str) -> None:
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(
            f"batchformer's CUDA kernels do not run here, so torch's own layer does: {sentence}. "
            "Details: python -m batchformer.cuda --check; to silence this: BATCHFORMER_CUDA=torch",
            RuntimeWarning,
            stacklevel=2,
        )


def declined() -> list[str]:
    """The kinds of calls on CUDA in this process that the kernels did not serve, and why.

    Reasons beyond the kind, such as many samples, are not listed:
    :meth:`batchformer.TransformerEncoderLayer.declined` gives the reason for one call.

    >>> all(line.startswith("cuda:") and ": " in line for line in declined())
    True
    """
    decisions = ((Signature(*kind), sentence) for kind, sentence in core.cuda_decisions())
    return sorted(f"{kind}: {sentence}" for kind, sentence in decisions if sentence is not None)
