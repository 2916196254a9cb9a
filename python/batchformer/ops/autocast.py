"""The encoder layer under torch.autocast: the dtypes that torch's own layer gives.

The linears run in autocast's dtype, the norms and the residuals as autocast treats them on the device:
float32 on CUDA, the dtype of x on the CPU.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from batchformer.ops.arguments import Parameters, unpack
from batchformer.ops.op import Outputs, library


def _kernel(device_type: str, dispatch_key: torch._C.DispatchKey) -> Callable[..., Outputs]:
    autocast_keys = torch._C.DispatchKeySet(dispatch_key)

    def autocast(x: Tensor, *arguments: Any) -> Outputs:
        parameters, keys_values, key_count, seed, config, (needs,) = unpack(arguments)
        dtype = torch.get_autocast_dtype(device_type)
        norms_in_float32 = device_type == "cuda"
        if x.dtype != torch.float64:
            parameters = Parameters._make(
                None if tensor is None else _cast(name, tensor, dtype, norms_in_float32)
                for name, tensor in parameters._asdict().items()
            )
            if keys_values is not None:
                keys_values = keys_values.to(dtype)
            if norms_in_float32 and not config.norm_first:
                x = x.to(torch.float32)
        with torch._C._ExcludeDispatchKeyGuard(autocast_keys):
            outputs: Outputs = torch.ops.batchformer.encoder_layer.default(
                x, *parameters, keys_values, key_count, seed, *config, needs
            )
        return outputs

    return autocast


def _cast(name: str, tensor: Tensor, dtype: torch.dtype, norms_in_float32: bool) -> Tensor:
    if tensor.dtype == torch.float64:
        return tensor
    if not name.startswith("norm"):
        return tensor.to(dtype)
    return tensor.to(torch.float32) if norms_in_float32 else tensor


def _backward_kernel(dispatch_key: torch._C.DispatchKey) -> Callable[..., list[Tensor]]:
    """The kernel of the backward, whose dtypes are those of its forward, whatever autocast is active."""
    autocast_keys = torch._C.DispatchKeySet(dispatch_key)

    def outside_autocast(*arguments: Any) -> list[Tensor]:
        with torch._C._ExcludeDispatchKeyGuard(autocast_keys):
            grads: list[Tensor] = torch.ops.batchformer.encoder_layer_backward.default(*arguments)
        return grads

    return outside_autocast


for _key in (torch._C.DispatchKey.AutocastCPU, torch._C.DispatchKey.AutocastCUDA):
    library.impl("encoder_layer_backward", _backward_kernel(_key), _key.name)
library.impl("encoder_layer", _kernel("cpu", torch._C.DispatchKey.AutocastCPU), "AutocastCPU")
library.impl("encoder_layer", _kernel("cuda", torch._C.DispatchKey.AutocastCUDA), "AutocastCUDA")
