"""How a process of the tests becomes one rank of several, and how it ends."""

import os
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

import torch
import torch.distributed as dist

PATIENCE = timedelta(seconds=60)  # a rank that waits for another in vain raises


def join(rank: int, world_size: int, store: str | Path) -> None:
    """Enters the group of those that name the same new file, with one thread: the ranks share the cores."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=world_size, timeout=PATIENCE
    )


def leave() -> NoReturn:
    """Ends the process, once all ranks of its group are here, past the ends of the group and of Python.

    gloo's threads outlive a group that a DistributedDataParallel has used (torch 2.11 and 2.15), or of which
    a rank is gone, and now and then abort a process that ends around them.
    """
    if dist.is_initialized():
        dist.barrier()
    os._exit(0)
