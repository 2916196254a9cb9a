"""One of the processes of a run of larger_batches.py, started by torchrun."""

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

import torch
import torch.distributed as dist

from examples.tables.larger_batches import train_rank
from examples.tables.lifetime import end_after
from examples.tables.optimization import DivergenceError
from examples.tables.table import Job


def main(job: str, found: str) -> None:
    """Train as this rank; end if standard input ends. The first rank writes the outcome."""
    # Not by sys.stdin, whose lock the waiting thread would hold when Python ends.
    end_after(lambda: os.read(0, 1))
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    values = json.loads(job)
    changes = tuple(map(tuple, values.pop("changes")))
    try:
        outcome = train_rank(Job(**values, changes=changes), dist.get_rank())
    except DivergenceError as error:  # the other rank waits until torchrun ends it
        Path(found).write_text(json.dumps({"diverged": str(error)}), encoding="utf-8")
        raise
    if dist.get_rank() == 0:
        Path(found).write_text(json.dumps(asdict(outcome)), encoding="utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
