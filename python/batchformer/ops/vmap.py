"""The ops for a whole batch of calls, as batched gradients make them: one call for each entry.

torch has two such mechanisms. `torch.vmap` takes rules; `torch.autograd.grad(is_grads_batched=True)` and
`torch.autograd.functional` use an older one that knows kernels of the dispatch key Batched.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import (
    _broadcast_to_and_flatten,
    tree_flatten,
    tree_leaves,
    tree_map,
    tree_unflatten,
)

from batchformer.ops.op import library


def _one_by_one(op: Any, size: int, dims: tuple[Any, ...], arguments: tuple[Any, ...]) -> Any:
    """The outputs of `op` for each of `size` entries, stacked; a tensor without a dim is passed whole."""
    leaves, structure = tree_flatten(arguments)
    flat_dims = _broadcast_to_and_flatten(dims, structure)
    pairs = list(zip(leaves, flat_dims or [], strict=True))
    entries = [
        op(*tree_unflatten([_part(leaf, dim, i) for leaf, dim in pairs], structure)) for i in range(size)
    ]
    return tree_map(lambda *each: torch.stack(each), *entries)


def _part(leaf: Any, dim: int | None, i: int) -> Any:
    return leaf.select(dim, i) if isinstance(leaf, Tensor) and dim is not None else leaf


def _rule(op: Any) -> Callable[..., tuple[Any, Any]]:
    def rule(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
        outputs = _one_by_one(op, info.batch_size, in_dims, arguments)
        return outputs, tree_map(lambda _: 0, outputs)

    return rule


def _batched_kernel(op: Any) -> Callable[..., Any]:
    def batched(*arguments: Any) -> Any:
        level = torch._C._vmapmode_increment_nesting() - 1  # no other call returns the current level
        torch._C._vmapmode_decrement_nesting()
        dims = tree_map(lambda leaf: 0 if _is_batched(leaf) else None, arguments)
        plain = tree_map(
            lambda leaf: torch._remove_batch_dim(leaf, level, 1, 0) if _is_batched(leaf) else leaf, arguments
        )
        batched = (
            leaf
            for leaf, was in zip(tree_leaves(plain), tree_leaves(arguments), strict=True)
            if _is_batched(was)
        )
        outputs = _one_by_one(op, next(batched).shape[0], dims, plain)
        return tree_map(lambda output: torch._add_batch_dim(output, 0, level), outputs)

    return batched


def _is_batched(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and torch._C._functorch.is_legacy_batchedtensor(leaf)


for _op in (torch.ops.batchformer.encoder_layer, torch.ops.batchformer.encoder_layer_backward):
    torch.library.register_vmap(_op.default, _rule(_op.default), lib=library)
    library.impl(_op.default, _batched_kernel(_op.default), "Batched")
