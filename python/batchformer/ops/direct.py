"""Whether a call may bypass the dispatcher and go from Python to the core, which makes small layers faster.

The dispatcher is for what has to see the op: modes of torch and of users, the profiler, autocast, tracers and
compilers, transforms, subclasses of tensors. If none of those is active, dispatching decides nothing, and
takes as long as a layer of two samples and eight channels.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

_keys_of = torch._C._dispatch_keys


def _keys_of_a_plain_tensor(device: torch.device | str) -> int:
    with torch.inference_mode(False):  # which the import may be in
        return _keys_of(torch.empty(0, device=device)).raw_repr()


_plain = {_keys_of_a_plain_tensor("cpu")}
"""The dispatch keys of plain tensors on a device: dense, with no negative view, not batched.

Those of CUDA are added at the first call with a CUDA tensor."""


def nobody_watches(tensors: Iterable[Tensor | None]) -> bool:
    """Whether a call with these tensors gives the same without the dispatcher."""
    if (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or torch._C._is_any_autocast_enabled()
        or torch._C._autograd._profiler_enabled()
        or torch._C._are_functorch_transforms_active()
        or torch._C._get_tracing_state() is not None
        or torch.is_inference_mode_enabled()
        or forward_ad._current_level >= 0
    ):
        return False
    for tensor in tensors:
        if tensor is not None and (
            (type(tensor) is not nn.Parameter and type(tensor) is not Tensor)
            or (_keys_of(tensor).raw_repr() not in _plain and not _is_plain_on_cuda(tensor))
        ):
            return False
    return True


def _is_plain_on_cuda(tensor: Tensor) -> bool:
    if not tensor.is_cuda:
        return False
    _plain.add(_keys_of_a_plain_tensor(tensor.device))
    return _keys_of(tensor).raw_repr() in _plain


def saved_as_they_are() -> bool:
    """Whether saved tensors come back as they were: no hooks on saved tensors are active."""
    return torch._C._autograd._top_saved_tensors_default_hooks(False) is None
