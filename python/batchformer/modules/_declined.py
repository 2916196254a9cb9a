"""Which calls of the encoder layer run torch's own implementation, and why."""

import sys
from types import BuiltinFunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.nn.modules import module as _module
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.utils._device import DeviceContext

from batchformer import ops
from batchformer._extension import core
from batchformer.ops.forward_mode import has_tangent

OP_DEVICES = tuple(core.op_devices())
"""Devices where the op has kernels that are faster; on CUDA for the calls that they support. Elsewhere
torch's own layer runs, and torch.compile sees into it."""

TORCH_IS_FASTER = {
    getattr(torch, dtype): (channels, divisor) for dtype, channels, divisor in core.torch_is_faster()
}
"""By dtype, if the processor multiplies in half precision: (width, divisor). Torch's own layer is faster with
C channels above that width and fewer than C² / divisor samples."""

MOST_POSITIONS = 65_535
"""The most positions that torch's attention on an accelerator takes at once, as a CUDA grid has no more
blocks on that axis: flash attention fails above, memory-efficient attention refuses dropout (pytorch/pytorch,
issue 146704)."""
ANY_POSITIONS = ("cpu", "meta")
"""Types of devices without that limit."""

_PLAIN = frozenset((Tensor, nn.Parameter, FakeTensor, FunctionalTensor))
_LINEARS = (nn.Linear, NonDynamicallyQuantizableLinear)
_KINDS: dict[str, type[nn.Module]] = {
    "linear1": nn.Linear,
    "linear2": nn.Linear,
    "norm1": nn.LayerNorm,
    "norm2": nn.LayerNorm,
    "dropout": nn.Dropout,
    "dropout1": nn.Dropout,
    "dropout2": nn.Dropout,
}
_ANOTHER_MODULE = "a module inside the layer is not the one that torch puts there"
_TRACERS = ("torch.fx.", "torch.export.", "torch._export.", "torch._dynamo.")


def for_call(src: Tensor) -> str | None:
    """Why the op does not take a call without a mask, whatever the layer; None if it does."""
    if src.is_nested:
        return "src is nested"
    if src.device.type not in OP_DEVICES:
        return f"src is on {src.device.type}, which is none of {', '.join(OP_DEVICES)}"
    if src.numel() == 0:
        return "src is empty"
    # torch.onnx is imported where it is first asked: in a trace or an export alone.
    if (torch._C._get_tracing_state() or torch.compiler.is_exporting()) and torch.onnx.is_in_onnx_export():
        return "the model is exported to ONNX"
    if torch._C._are_functorch_transforms_active():
        return "a transform of torch.func is active"
    if torch._C._len_torch_function_stack() and (mode := _mode_of_the_user()) is not None:
        return f"the torch function mode {mode} is active"
    if (
        _module._global_forward_hooks
        or _module._global_forward_pre_hooks
        or _module._global_backward_hooks
        or _module._global_backward_pre_hooks
    ):
        return "a hook on all modules is registered"
    if _in_place() != _OF_TORCH and (name := _replaced()) is not None:
        return f"{name} was replaced"
    return None


def for_modules(layer: nn.TransformerEncoderLayer, inside: dict[str, Any]) -> str | None:
    """Why the modules `inside` a layer cannot be read as parameters."""
    reason = block_changed(layer, "_sa_block") or block_changed(layer, "_ff_block")
    if reason is not None:
        return reason
    activation = layer.activation
    if activation_name(activation) is None:
        return "the activation is neither ReLU nor the exact GELU"
    attention = inside.get("self_attn")
    if (
        type(attention) is not nn.MultiheadAttention
        or attention.in_proj_weight is None
        or attention.bias_k is not None
        or attention.add_zero_attn
        or type(attention.out_proj) not in _LINEARS
        or getattr(inside.get("norm1"), "weight", None) is None
        or getattr(inside.get("norm2"), "weight", None) is None
    ):
        return _ANOTHER_MODULE
    reason = changed(attention) or changed(attention.out_proj)
    for name, kind in _KINDS.items():
        module = inside.get(name)
        if module is None or type(module) is not kind:
            return _ANOTHER_MODULE
        reason = reason or changed(module)
    if reason is None and isinstance(activation, nn.Module):
        reason = changed(activation)
    return reason


def for_precision(src: Tensor, batch_first: bool) -> str | None:
    """Why the op does not take a call in half precision, by its dtype or by autocast."""
    if src.device.type != "cpu":
        return None
    dtype = src.dtype
    if torch.is_autocast_enabled("cpu") and dtype != torch.float64:
        dtype = torch.get_autocast_dtype("cpu")
        if src.dtype in (torch.float16, torch.bfloat16) and src.dtype != dtype:
            return f"src is {src.dtype}, and autocast computes in {dtype}"
    if dtype not in TORCH_IS_FASTER:
        return None
    wide, divisor = TORCH_IS_FASTER[dtype]
    samples, channels = src.shape[-2 if batch_first else 0], src.shape[-1]
    if channels <= wide:
        return None
    # A symbolic number of samples would add a guard: then the width alone decides.
    if type(samples) is int and samples * divisor >= channels**2:
        return None
    return f"torch's layer is the faster one in {dtype} at this width"


def for_tensors(src: Tensor, parameters: ops.Parameters) -> str | None:
    """Why the op does not take these tensors, all that it would be given."""
    for tensor in (src, *parameters):
        if tensor is None:
            continue
        if type(tensor) not in _PLAIN:
            return f"src or a parameter is of the tensor subclass {type(tensor).__name__}"
        if tensor.layout is not torch.strided:
            return f"a parameter has the layout {tensor.layout}"
    if has_tangent((src, *parameters)):
        return "src or a parameter has a tangent (forward-mode AD)"
    return None


def activation_name(activation: Any) -> str | None:
    """The op's name for an activation; None if it does not support it."""
    if type(activation) is nn.ReLU or activation in _RELUS:
        return "relu"
    if (type(activation) is nn.GELU and activation.approximate == "none") or activation in _GELUS:
        return "gelu"
    return None


def positions_at_once(x: Tensor, positions: int) -> int:
    """How many of the positions torch's attention takes at once on the device of x, at least 1."""
    return max(1, positions) if x.device.type in ANY_POSITIONS else MOST_POSITIONS


def block_changed(layer: nn.Module, name: str) -> str | None:
    """Why a block of the layer, "_sa_block" or "_ff_block", is not torch's."""
    if getattr(type(layer), name, None) is not _BLOCKS[name]:
        return "the class overrides a block of the layer"
    if name in layer.__dict__:
        return "a block of the layer was replaced"
    return None


def changed(module: nn.Module) -> str | None:
    """Why calling `module` does something else than its class says."""
    if (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    ):
        return "a module inside the layer has a hook"
    if "forward" in module.__dict__ or "_call_impl" in module.__dict__:
        return "the forward of a module inside the layer was replaced"
    return None


def _mode_of_the_user() -> str | None:
    """A mode that has to see the ops in torch's layer; torch's default device and tracers accept any op."""
    for i in range(torch._C._len_torch_function_stack()):
        mode = type(torch._C._get_function_stack_at(i))
        if mode is not DeviceContext and not mode.__module__.startswith(_TRACERS):
            return mode.__name__
    return None


_CALLED: tuple[tuple[Any, str], ...] = (
    (nn.TransformerEncoderLayer, "forward"),
    (nn.MultiheadAttention, "forward"),
    (nn.Linear, "forward"),
    (nn.LayerNorm, "forward"),
    (nn.Dropout, "forward"),
    (nn.ReLU, "forward"),
    (nn.GELU, "forward"),
    (nn.Module, "_call_impl"),
    (nn.Module, "__call__"),
    (F, "multi_head_attention_forward"),
    (F, "scaled_dot_product_attention"),
    (F, "linear"),
    (F, "layer_norm"),
    (F, "dropout"),
    (F, "relu"),
    (F, "gelu"),
    (torch, "relu"),
    (torch, "layer_norm"),
)
"""The functions that run inside torch's layer. Libraries replace some for all layers at once: the attention,
for context parallelism or other kernels, and the linear, for ZeRO and profilers."""


def _in_place() -> list[Any]:
    return [getattr(owner, name) for owner, name in _CALLED]


def _replaced() -> str | None:
    """What was replaced of `_CALLED`, by name; torch's tracer, which replaces __call__, accepts any op."""
    for (owner, name), now, torchs in zip(_CALLED, _in_place(), _OF_TORCH, strict=True):
        if now is not torchs and not hasattr(now, "_Patcher__fx_already_patched"):
            return f"{owner.__name__}.{name}"
    return None


def _of_torch(owner: Any, name: str) -> Any:
    """The function that torch has under this name; None if it was replaced before this import.

    A function of Python has the globals of the module that defines it, whatever wrappers copy of its names.
    """
    function = getattr(owner, name)
    if isinstance(function, BuiltinFunctionType):
        builtins = torch._C._VariableFunctions if owner is torch else torch._C._nn
        return function if function is getattr(builtins, name) else None
    home = sys.modules[owner.__module__] if isinstance(owner, type) else owner
    return function if getattr(function, "__globals__", None) is vars(home) else None


_OF_TORCH = [_of_torch(owner, name) for owner, name in _CALLED]
_RELUS = tuple(filter(None, (_of_torch(F, "relu"), _of_torch(torch, "relu"))))
_GELUS = tuple(filter(None, (_of_torch(F, "gelu"),)))
_BLOCKS = {name: _of_torch(nn.TransformerEncoderLayer, name) for name in ("_sa_block", "_ff_block")}
