"""Samples of other ranks: the only file with collectives, all of them on torch.distributed.

Every rank of a group has to make the same calls in the same order, as with each collective: in a forward one
:func:`agree`, then one :func:`gather` for each layer; in its backward one reduce-scatter for each gather.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from batchformer.disagreement import Report, digest, pack, plain, refuse, unpack
from batchformer.ops.op import library
from batchformer.tracer import constant

HANDED: Counter[str] = Counter()
"""How many elements this process has sent through collectives: "gather" and "scatter" without padding,
"gather padding", "scatter padding", and "sizes" for the numbers and digests that are exchanged first. Tests
reset it."""

_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.cudagraph_unsafe)  # sizes are read on the host
_alone_was_said = False


class Ranks(NamedTuple):
    """This process among those of its group."""

    rank: int
    size: int
    group_name: str
    """The group's name in torch: a graph can hold it, and so can a pickle."""


def ranks_of(process_group: "dist.ProcessGroup | None") -> Ranks | None:
    """This process among those of a group; None if there are no others.

    Args:
        process_group: None is the default group as it is now. Without one, that is without
            `init_process_group`, a warning says once that this process is alone.

    Raises:
        ValueError: not a group, or one that this process is not in.

    In a compiled graph they are constants; it is compiled anew when the default group changes.
    """
    if not dist.is_available():
        return None
    world = dist.group.WORLD  # read in any case: the compiler guards on it
    if process_group is None:
        if not dist.is_initialized():
            _say_alone()
            return None
        process_group = world
    if not torch.compiler.is_compiling():
        check_group(process_group)
    if process_group.size() == 1:  # type: ignore[union-attr] # torch does not type WORLD
        return None
    return Ranks(process_group.rank(), process_group.size(), process_group.group_name)  # type: ignore[union-attr]


def check_group(process_group: Any) -> None:
    """Raise ValueError unless it is a group that this process is in; to non-members torch gives a number."""
    if not dist.is_available() or not isinstance(process_group, dist.ProcessGroup):
        outside = dist.is_available() and process_group is dist.GroupMember.NON_GROUP_MEMBER
        raise ValueError(
            "process_group: expected None or a torch.distributed.ProcessGroup that this process is in, "
            f"got {'one that it is not in' if outside else repr(process_group)}"
        )


@constant
def _say_alone() -> None:
    global _alone_was_said
    if not _alone_was_said:
        _alone_was_said = True
        warnings.warn(
            "gather_distributed: there is no process group, so that this process is alone and nothing is "
            "gathered; call torch.distributed.init_process_group first",
            stacklevel=3,
        )


def agree(
    ranks: Ranks,
    samples: int,
    facts: Mapping[str, int | str],
    device: torch.device,
    *,
    fault: str | None = None,
) -> list[int]:
    """The numbers of samples of all ranks, by one all-gather of four numbers each. Not for compiled graphs.

    Args:
        ranks: from :func:`ranks_of`.
        samples: of this rank, 0 or more.
        facts: what has to be the same on every rank, by "argument" or "argument: property", as in {"nhead":
            4, "x: number of positions": 49}; "; " may follow, with advice for the reader of the error.
        device: of the samples; the numbers are exchanged on it if the group has no backend for the CPU.
        fault: the message of an error on this rank alone; `samples` and `facts` are then ignored.

    Raises:
        ValueError: on every rank, if one has a fault, if facts differ, or if none has a sample.
    """
    return _exchange(ranks, Report(samples, False, fault, plain(facts)), device)


def gather(
    x: Tensor, samples: Sequence[int], ranks: Ranks, facts: Mapping[str, int | str] | None = None
) -> Tensor:
    """The samples of all ranks in rank order, [sum(samples), ...]; each rank gets its gradient back.

    The gradient is summed over ranks, as for the sum of all ranks' losses. DistributedDataParallel takes the
    mean over ranks: where the numbers of samples n differ, each rank's mean loss has to be weighted by n *
    size / N for the gradients of one process with all N samples.

    Args:
        x (Tensor[n, ...]): of which this rank has `samples[ranks.rank]`, 0 or more.
        samples: of all ranks, from :func:`agree`; in a compiled graph `[len(x)] * ranks.size`.
        ranks: from :func:`ranks_of`.
        facts: if given, they and the equality of `samples` are checked whenever this runs. A compiled graph
            needs that, as it cannot call :func:`agree`.

    Raises:
        ValueError: on every rank, if facts are given and differ between ranks, or the samples do.
        RuntimeError: from torch, after the timeout of the group or before, if a rank does not take part.

    Each rank has to call this, and run its backward, as often as the others, even with 0 samples.
    """
    names, numbers = (None, []) if facts is None else pack(facts)
    gathered: Tensor = torch.ops.batchformer.all_gather_samples.default(
        x, samples, ranks.rank, ranks.group_name, names, numbers
    )
    return gathered


def _exchange(ranks: Ranks, report: Report, device: torch.device) -> list[int]:
    """The numbers of samples of all ranks; if anything is wrong, every rank gathers all reports."""
    group = _group(ranks.rank, ranks.size, ranks.group_name)
    if "cpu:" in dist.get_backend_config(group):
        device = torch.device("cpu")
    ours = torch.tensor(
        [report.samples, report.equal, report.fault is not None, digest(report.facts)], device=device
    )
    everyones = ours.new_empty(ranks.size * len(ours))
    HANDED["sizes"] += len(ours)
    dist.all_gather_into_tensor(everyones, ours, group=group)
    rows: list[list[int]] = everyones.view(ranks.size, -1).tolist()
    samples, equal, faults, digests = map(list, zip(*rows, strict=True))
    differ = len(set(digests)) > 1 or (any(equal) and len(set(samples)) > 1)
    if any(faults) or differ or not any(samples):
        reports: list[Any] = [None] * ranks.size
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            dist.all_gather_object(reports, tuple(report), group=group)
        refuse([Report(*each) for each in reports])
    return samples


def _group(rank: int, size: int, name: str) -> dist.ProcessGroup:
    resolve: Callable[[Any], dist.ProcessGroup] = torch._C._distributed_c10d._resolve_process_group
    group = resolve(name)
    if (group.rank(), group.size()) != (rank, size):
        raise RuntimeError(
            f"process_group: expected rank {rank} of {size} as when this was compiled or gathered, "
            f"got rank {group.rank()} of {group.size()}; call torch.compiler.reset() after another "
            "init_process_group"
        )
    return group


library.define(
    "all_gather_samples(Tensor x, SymInt[] samples, int rank, str group_name, str? names, SymInt[] numbers) "
    "-> Tensor",
    tags=_TAGS,
)


def _all_gather(
    x: Tensor, samples: Sequence[int], rank: int, group_name: str, names: str | None, numbers: Sequence[int]
) -> Tensor:
    group = _group(rank, len(samples), group_name)
    if names is not None:
        report = Report(len(x), True, None, plain(unpack(names, numbers)))
        samples = _exchange(Ranks(rank, len(samples), group_name), report, x.device)
    _check_rows("x", x, samples[rank])
    largest = max(samples)
    everyones = x.new_empty(len(samples) * largest, *x.shape[1:])
    if everyones.numel():
        ours = _padded(x, largest)
        _count("gather", x.numel(), ours.numel())
        dist.all_gather_into_tensor(everyones, ours, group=group)
    return _cut(everyones, samples)


def _all_gather_fake(x: Tensor, samples: Sequence[int], *_: Any) -> Tensor:
    return x.new_empty(sum(samples), *x.shape[1:])


library.define(
    "reduce_scatter_samples(Tensor grad, SymInt[] samples, int rank, str group_name) -> Tensor", tags=_TAGS
)


def _reduce_scatter(grad: Tensor, samples: Sequence[int], rank: int, group_name: str) -> Tensor:
    """The transpose of the gather: rank r gets the rows of its samples, summed over ranks."""
    group = _group(rank, len(samples), group_name)
    _check_rows("grad", grad, sum(samples))
    largest = max(samples)
    ours = grad.new_empty(largest, *grad.shape[1:])
    if ours.numel():
        everyones = grad.contiguous()
        if not _are_equal(samples):
            everyones = torch.cat([_padded(part, largest) for part in grad.split(list(samples))])
        _count("scatter", grad.numel(), everyones.numel())
        _sum_and_scatter(ours, everyones, rank, group)
    return ours if samples[rank] == largest else ours[: samples[rank]].clone()


def _sum_and_scatter(ours: Tensor, everyones: Tensor, rank: int, group: dist.ProcessGroup) -> None:
    try:
        dist.reduce_scatter_tensor(ours, everyones, group=group)
    except RuntimeError as error:  # gloo and NCCL support it; MPI raises before anything is sent
        if "not support" not in str(error):
            raise
        everyones = everyones.clone()
        dist.all_reduce(everyones, group=group)
        ours.copy_(everyones[rank * len(ours) : (rank + 1) * len(ours)])


def _reduce_scatter_fake(grad: Tensor, samples: Sequence[int], rank: int, _: str) -> Tensor:
    return grad.new_empty(samples[rank], *grad.shape[1:])


def _check_rows(name: str, x: Tensor, rows: int) -> None:
    if len(x) != rows:
        raise ValueError(f"{name}: expected {rows} samples as the ranks agreed on, got {len(x)}")


def _are_equal(samples: Sequence[int]) -> bool:
    return min(samples) == max(samples)


def _padded(x: Tensor, rows: int) -> Tensor:
    """[n, ...] as [rows, ...], contiguous, with zeros after the samples."""
    return x.contiguous() if len(x) == rows else torch.cat([x, x.new_zeros(rows - len(x), *x.shape[1:])])


def _cut(everyones: Tensor, samples: Sequence[int]) -> Tensor:
    """[size * largest, ...] without the padding, [sum(samples), ...]."""
    if _are_equal(samples):
        return everyones
    parts = everyones.split(max(samples))
    return torch.cat([part[:n] for part, n in zip(parts, samples, strict=True)])


def _count(kind: str, payload: int, handed: int) -> None:
    HANDED[kind] += payload
    HANDED[f"{kind} padding"] += handed - payload


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001 - torch names them
    _, ctx.samples, ctx.rank, ctx.group_name, *rest = inputs
    ctx.without_gradient = (None,) * (3 + len(rest))


def _gather_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    ours = torch.ops.batchformer.reduce_scatter_samples.default(grad, ctx.samples, ctx.rank, ctx.group_name)
    return ours, *ctx.without_gradient


def _scatter_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    everyones = torch.ops.batchformer.all_gather_samples.default(
        grad, ctx.samples, ctx.rank, ctx.group_name, None, []
    )
    return everyones, *ctx.without_gradient


for _name, _kernel, _fake, _backward in (
    ("all_gather_samples", _all_gather, _all_gather_fake, _gather_backward),
    ("reduce_scatter_samples", _reduce_scatter, _reduce_scatter_fake, _scatter_backward),
):
    library.impl(_name, _kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"batchformer::{_name}", _fake, lib=library)
    torch.library.register_autograd(f"batchformer::{_name}", _backward, setup_context=_keep, lib=library)
