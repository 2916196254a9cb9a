"""The ops for a whole batch of calls, as batched gradients make them: one call for each entry.

torch has two such mechanisms. `torch.vmap` takes rules; `torch.autograd.grad(is_grads_batched=True)` and
`torch.autograd.functional` use an older one that knows kernels of the dispatch key Batched.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from batchformer.ops.op import library


def _one_by_one(op: Any, size: int, dims: tuple[int | None, ...], arguments: tuple[Any, ...]) -> Any:
    """The outputs of `op` for each of `size` entries, stacked: of a tensor with a dim its part, else all."""
    entries = [
        op(*(_part(argument, dim, i) for argument, dim in zip(arguments, dims, strict=True)))
        for i in range(size)
    ]
    return type(entries[0])(map(torch.stack, zip(*entries, strict=True)))


def _part(argument: Any, dim: int | None, i: int) -> Any:
    return argument.select(dim, i) if isinstance(argument, Tensor) and dim is not None else argument


def _rule(op: Any) -> Callable[..., tuple[Any, Any]]:
    def rule(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Any, Any]:
        outputs = _one_by_one(op, info.batch_size, in_dims, arguments)
        return outputs, type(outputs)(0 for _ in outputs)

    return rule


def _batched_kernel(op: Any) -> Callable[..., Any]:
    def batched(*arguments: Any) -> Any:
        level = torch._C._vmapmode_increment_nesting() - 1  # no other call tells the present one
        torch._C._vmapmode_decrement_nesting()
        dims = tuple(0 if _is_batched(argument) else None for argument in arguments)
        plain = tuple(
            argument if dim is None else torch._remove_batch_dim(argument, level, 1, 0)
            for argument, dim in zip(arguments, dims, strict=True)
        )
        size = next(argument.shape[0] for argument, dim in zip(plain, dims, strict=True) if dim is not None)
        outputs = _one_by_one(op, size, dims, plain)
        return type(outputs)(torch._add_batch_dim(output, 0, level) for output in outputs)

    return batched


def _is_batched(argument: Any) -> bool:
    return isinstance(argument, Tensor) and torch._C._functorch.is_legacy_batchedtensor(argument)


for _op in (torch.ops.batchformer.encoder_layer, torch.ops.batchformer.encoder_layer_backward):
    torch.library.register_vmap(_op.default, _rule(_op.default), lib=library)
    library.impl(_op.default, _batched_kernel(_op.default), "Batched")
