"""`batchformer::first_forward`: by which a compiled forward notices that a checkpoint runs it again."""

import torch
from torch import Tensor

from batchformer.marks import in_backward
from batchformer.ops.op import library

library.define("first_forward(Tensor count) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))


def first_forward(count: Tensor) -> Tensor:
    """A copy of `count`, a tensor of any shape, in a forward that no backward runs.

    A compiled graph runs no Python code that could check, and would take a recomputation for a first forward.

    Raises:
        RuntimeError: a backward runs this forward.
    """
    copy: Tensor = torch.ops.batchformer.first_forward.default(count)
    return copy


def _first_forward(count: Tensor) -> Tensor:
    if in_backward():
        raise RuntimeError(
            "checkpoint: expected a forward with a memory bank to be eager, got a compiled one, which cannot "
            "tell what the bank held when it ran first; leave out the checkpoint, torch.compile or "
            "memory_bank_size"
        )
    return count.clone()


library.impl("first_forward", _first_forward, "CompositeExplicitAutograd")
torch.library.register_fake("batchformer::first_forward", torch.empty_like, lib=library)
