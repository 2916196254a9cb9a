"""Rows of gather_distributed: disagreements of ranks, which every rank reports."""

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist

from batchformer.disagreement import Report, refuse
from batchformer.ranks import Ranks, gather, ranks_of
from error_table.row import Mistake, Row

NOT_ITS_GROUP = Mistake(
    "`process_group` is something else, or what `new_group` gave to a process that is not among its ranks.",
    "Pass what `torch.distributed.new_group` or `mesh.get_group()` gave, on its own ranks alone.",
)
OTHER_GROUP = Mistake(
    "A compiled step, or a backward, runs after the process group was destroyed and made with other ranks.",
    "Call `torch.compiler.reset()` after `init_process_group`, and finish every backward before it.",
)
OTHER_BATCH = Mistake(
    "The collectives are called by hand with a tensor of another batch than was announced.",
    "Pass the tensor whose length went to `agree`.",
)
FAULT = Mistake(
    "One rank got an input that it cannot take; the others raise, too, as they would wait for it.",
    "Look at the rank that is named: its data or its model are not like the others'.",
)
OTHER_FACT = Mistake(
    "The ranks were made with different options, or have inputs of different sizes or dtypes.",
    "Build the model alike on all ranks; pad maps to one fixed size.",
)
NO_SAMPLES = Mistake(
    "Every rank has an empty batch in the same step.",
    "Skip the step on all of them, or use `drop_last=True`.",
)
LAST_BATCH = Mistake(
    "The step is compiled, and the last batch of an epoch is smaller on some rank.",
    "Use `drop_last=True` with a compiled step; without compilation, batches may differ.",
)


def alone(call: Callable[[], object]) -> Callable[[], object]:
    """The call in a process group of one."""

    def with_a_group() -> object:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        try:
            return call()
        finally:
            dist.destroy_process_group()

    return with_a_group


def gather_as(rank: int, samples: Sequence[int]) -> torch.Tensor:
    return gather(torch.ones(2, 1), samples, Ranks(rank, len(samples), dist.group.WORLD.group_name))


def report(samples=2, *, equal=False, fault=None, **facts: str) -> Report:
    return Report(samples, equal, fault, facts)


POSITIONS = "x: number of positions; pad all maps to one size"

RANKS = (
    Row(
        lambda: ranks_of("gloo"),
        ValueError,
        "process_group: expected None or a torch.distributed.ProcessGroup that this process is in, "
        "got 'gloo'",
        *NOT_ITS_GROUP,
    ),
    Row(
        alone(lambda: gather_as(1, [2, 2])),
        RuntimeError,
        "process_group: expected rank 1 of 2 as when this was compiled or gathered, got rank 0 of 1; "
        "call torch.compiler.reset() after another init_process_group",
        *OTHER_GROUP,
    ),
    Row(
        alone(lambda: gather_as(0, [3])),
        ValueError,
        "x: expected 3 samples as the ranks agreed on, got 2",
        *OTHER_BATCH,
    ),
    Row(
        lambda: refuse([report(), report(fault="x: expected shape [N, 16], got [16]")]),
        ValueError,
        "x: expected shape [N, 16], got [16] on rank 1; an error on one rank stops all 2",
        *FAULT,
    ),
    Row(
        lambda: refuse([report(nhead="4"), report(nhead="8")]),
        ValueError,
        "nhead: expected the same value on every rank, got 4 on rank 0 and 8 on rank 1",
        *OTHER_FACT,
    ),
    Row(
        lambda: refuse([report(**{POSITIONS: "49"}), report(**{POSITIONS: "64"})]),
        ValueError,
        "x: expected the same number of positions on every rank, got 49 on rank 0 and 64 on rank 1; "
        "pad all maps to one size",
        *OTHER_FACT,
    ),
    Row(
        lambda: refuse([report(0), report(0)]),
        ValueError,
        "x: expected at least 1 sample on one of 2 ranks, got 0 on each",
        *NO_SAMPLES,
    ),
    Row(
        lambda: refuse([report(6, equal=True), report(5, equal=True)]),
        ValueError,
        "x: expected the same number of samples on every rank, as ranks 0 and 1 assumed (a compiled graph "
        "does), got 6 on rank 0 and 5 on rank 1",
        *LAST_BATCH,
    ),
)
