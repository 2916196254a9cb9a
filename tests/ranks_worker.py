"""What runs on each of some ranks: all cases one after another in one spawn of processes."""

import copy
import json
import os
import pickle
import time
import traceback
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.library import opcheck
from torch.nn.parallel import DistributedDataParallel

from batchformer.ranks import HANDED, Ranks, agree, gather, ranks_of
from rank import join
from tolerances import relative_error

CPU = torch.device("cpu")
EXACT = 1e-12
SIZES = {2: ((3, 3), (4, 2), (0, 5)), 3: ((2, 2, 2), (3, 1, 2), (0, 4, 0))}
FACTS = {"nhead": 4, "x: number of positions; pad them": 49, "attend": "both"}
PATIENCE = 1.0  # seconds, of a group in which a rank stays away
CASES: dict[int, dict[str, Callable[[], None]]] = {2: {}, 3: {}}
"""By the number of ranks."""
LAST = "the_others_of_a_rank_that_died_get_an_error_at_once"


def case(function: Callable[[], None]) -> Callable[[], None]:
    CASES[3][function.__name__] = function
    return case_of_two_ranks(function)


def case_of_two_ranks(function: Callable[[], None]) -> Callable[[], None]:
    """One that takes long, if only to import the compiler (DDP does), and is nothing new for a third rank."""
    CASES[2][function.__name__] = function
    return function


def run(rank: int, size: int, folder: str) -> None:
    """Write what went wrong in each case, or nothing, to a file of this rank."""
    join(rank, size, f"{folder}/store")
    outcomes: dict[str, str] = {}
    for name, function in CASES[size].items():
        torch.manual_seed(0)
        HANDED.clear()
        outcomes[name] = ""
        if name == LAST:  # of which this process may not come back
            Path(folder, f"{rank}.json").write_text(json.dumps(outcomes))
        try:
            function()
        except BaseException:  # pytest's failures are no Exceptions
            outcomes[name] = traceback.format_exc()
    Path(folder, f"{rank}.json").write_text(json.dumps(outcomes))
    os._exit(0)  # past the end of groups of which a rank is gone: gloo may abort there


def here() -> Ranks:
    ranks = ranks_of(None)
    assert ranks is not None
    return ranks


def sentence_of(call: Callable[[], object]) -> str:
    """Of the error that the call has to raise here, which is the same one on every rank."""
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - the caller looks at it
        call()
    said = str(raised.value).partition("\n")[0]  # torch 2.9 adds which node of a graph it was
    everyones: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(everyones, said)
    assert set(everyones) == {said}, everyones
    return said


class Meets(nn.Module):
    """Own samples ask, those of all ranks answer; without ranks those given are all there are."""

    def __init__(self, channels: int = 4, process_group: dist.ProcessGroup | None = None) -> None:
        super().__init__()
        self.query = nn.Linear(channels, channels, dtype=torch.float64)
        self.keys = nn.Linear(channels, channels, dtype=torch.float64)
        self.process_group = process_group

    def forward(self, x: Tensor, *, alone: bool = False) -> Tensor:
        keys = self.keys(x)  # [n, C]
        ranks = None if alone else ranks_of(self.process_group)
        if ranks is not None:
            samples = [len(x)] * ranks.size
            if not torch.compiler.is_compiling():
                samples = agree(ranks, len(x), FACTS, x.device)
            facts = FACTS if torch.compiler.is_compiling() else None
            keys = gather(keys, samples, ranks, facts)  # [K, C]
        return (self.query(x) @ keys.T).softmax(1) @ keys


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if not name.startswith("idle")}


def assert_exact(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name in expected:
        assert actual[name].shape == expected[name].shape, name
        assert relative_error(actual[name], expected[name]) <= EXACT, name


def batches(sizes: tuple[int, ...], channels: int = 4) -> tuple[Tensor, ...]:
    return torch.randn(sum(sizes), channels, dtype=torch.float64).split(list(sizes))


def of_one_process(model: Meets, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Output and gradients of the mean of squares over all samples."""
    model.zero_grad()
    y = model(x, alone=True)
    y.square().sum(1).mean().backward()
    return y.detach(), gradients(model)


@case
def forward_and_gradient_are_those_of_one_process() -> None:
    ranks = here()
    for sizes in SIZES[ranks.size]:
        model, everyones = Meets(), batches(sizes)
        whole = torch.cat(everyones).requires_grad_()
        model(whole, alone=True).square().sum().backward()
        expected = gradients(model)
        model.zero_grad()
        x = everyones[ranks.rank].clone().requires_grad_()
        y = model(x)
        y.square().sum().backward()
        assert_exact({"grad_x": x.grad}, {"grad_x": whole.grad.split(list(sizes))[ranks.rank]})
        actual = gradients(model)
        for grad in actual.values():
            dist.all_reduce(grad)
        assert_exact(actual, expected)


@case
def bfloat16_keeps_its_dtype_and_sums_gradients() -> None:
    ranks = here()
    for sizes in SIZES[ranks.size]:
        everyones = torch.arange(sum(sizes) * 6).view(-1, 3, 2).bfloat16() % 32
        x = everyones.split(list(sizes))[ranks.rank].clone().requires_grad_()
        y = gather(x, agree(ranks, len(x), {}, CPU), ranks)
        y.backward((everyones + ranks.rank).flip(0))
        assert torch.equal(y, everyones)
        assert y.is_contiguous()
        summed = everyones.flip(0) * ranks.size + sum(range(ranks.size))  # exact in 8 bits
        assert torch.equal(x.grad, summed.split(list(sizes))[ranks.rank])


@case
def a_gather_of_strided_samples_is_the_same() -> None:
    ranks = here()
    x = torch.randn(2, 3, 4).transpose(0, 1)
    y = gather(x, [3] * ranks.size, ranks)
    assert torch.equal(y, torch.cat([x] * ranks.size))


@case
def a_second_derivative_is_that_of_one_process() -> None:
    ranks = here()
    sizes = SIZES[ranks.size][1]
    everyones = batches(sizes)
    x = everyones[ranks.rank].clone().requires_grad_()
    weights = batches(sizes)[ranks.rank]
    (grad_x,) = torch.autograd.grad(gather(x, sizes, ranks).pow(3).sum(), x, create_graph=True)
    (grad_grad,) = torch.autograd.grad((grad_x * weights).sum(), x)
    torch.testing.assert_close(grad_grad, weights_of_all(sizes, weights, ranks) * 6 * x * ranks.size)


def weights_of_all(sizes: tuple[int, ...], weights: Tensor, ranks: Ranks) -> Tensor:
    """Each rank's graph has its own weights alone: summed where the samples are this rank's."""
    return gather(weights, sizes, ranks).split(list(sizes))[ranks.rank]


@case
def every_disagreement_raises_the_same_sentence_on_every_rank() -> None:
    ranks = here()
    last = ranks.size - 1
    for name, other, sentence in (
        ("nhead", 8, "nhead: expected the same value on every rank, got 4 on {} and 8 on {}"),
        (
            "attend",
            "uniform",
            "attend: expected the same value on every rank, got both on {} and uniform on {}",
        ),
        (
            "x: number of positions; pad them",
            64,
            "x: expected the same number of positions on every rank, got 49 on {} and 64 on {}; pad them",
        ),
        ("new", 1, "new: expected the same value on every rank, got nothing on {} and 1 on {}"),
    ):
        facts = FACTS | ({name: other} if ranks.rank == last else {})
        said = sentence_of(lambda facts=facts: agree(ranks, 3, facts, CPU))
        first = "rank 0" if ranks.size == 2 else "ranks 0 and 1"
        assert said == sentence.format(first, f"rank {last}"), said
    fault = "x: expected shape [N, 4], got [2]"
    said = sentence_of(lambda: agree(ranks, 3, {}, CPU, fault=fault if ranks.rank == 0 else None))
    assert said == f"{fault} on rank 0; an error on one rank stops all {ranks.size}"
    said = sentence_of(lambda: agree(ranks, 0, FACTS, CPU))
    assert said == f"x: expected at least 1 sample on one of {ranks.size} ranks, got 0 on each"
    assert agree(ranks, ranks.rank, FACTS, CPU) == list(range(ranks.size)), "nothing is left behind"


@case
def facts_in_another_order_are_the_same() -> None:
    ranks = here()
    names = sorted(FACTS, reverse=ranks.rank == 0)
    assert agree(ranks, 2, {name: FACTS[name] for name in names}, CPU) == [2] * ranks.size


@case
def handed_elements_are_two_channels_a_token_each_way() -> None:
    ranks = here()
    positions, channels = 3, 4
    for sizes in SIZES[ranks.size]:
        HANDED.clear()
        x = torch.randn(sizes[ranks.rank], positions, 2 * channels, requires_grad=True)
        gather(x, agree(ranks, len(x), FACTS, CPU), ranks).sum().backward()
        token = positions * 2 * channels
        largest, all_samples = max(sizes), sum(sizes)
        assert Counter(HANDED) == Counter(
            {
                "sizes": 4,
                "gather": sizes[ranks.rank] * token,
                "gather padding": (largest - sizes[ranks.rank]) * token,
                "scatter": all_samples * token,
                "scatter padding": (ranks.size * largest - all_samples) * token,
            }
        )


@case
def nothing_is_exchanged_for_tensors_without_elements() -> None:
    ranks = here()
    x = torch.randn(2, 0, requires_grad=True)
    gather(x, [2] * ranks.size, ranks).sum().backward()
    assert not HANDED
    assert x.grad.shape == (2, 0)


@case
def a_subgroup_gathers_its_own_samples_and_refuses_the_others() -> None:
    size = dist.get_world_size()
    members = [size - 1] if size == 2 else [1, 2]
    group = dist.new_group(members)
    rank = dist.get_rank()
    if rank not in members:
        with pytest.raises(
            ValueError, match=r"process_group: expected None or a torch.distributed.ProcessGroup"
        ):
            ranks_of(group)
        return
    ranks = ranks_of(group)
    if len(members) == 1:
        assert ranks is None
        return
    assert (ranks.rank, ranks.size) == (rank - 1, 2)
    x = torch.full((rank, 1), float(rank), requires_grad=True)
    y = gather(x, agree(ranks, len(x), {}, CPU), ranks)
    y.sum().backward()
    assert y.flatten().tolist() == [1, 2, 2]
    assert (x.grad == 2).all()


@case
def copies_of_a_module_gather_as_it_does() -> None:
    model = Meets()
    x = batches((2,) * dist.get_world_size())[dist.get_rank()]
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x), model(x))
    assert pickle.loads(pickle.dumps(here())) == here()


@case
def a_backend_without_reduce_scatter_sums_all_and_takes_its_part() -> None:
    ranks = here()
    there = dist.reduce_scatter_tensor

    def missing(*_: object, **__: object) -> None:
        raise RuntimeError("ProcessGroupMPI does not support _reduce_scatter_base")

    dist.reduce_scatter_tensor = missing
    try:
        for sizes in SIZES[ranks.size]:
            x = torch.ones(sizes[ranks.rank], 2, requires_grad=True)
            grad = torch.arange(2.0 * sum(sizes)).view(-1, 2)
            gather(x, sizes, ranks).backward(grad)
            assert torch.equal(x.grad, grad.split(list(sizes))[ranks.rank] * ranks.size)
            assert torch.equal(grad, torch.arange(2.0 * sum(sizes)).view(-1, 2)), "written in place"
    finally:
        dist.reduce_scatter_tensor = there


@case_of_two_ranks
def distributed_data_parallel_gives_the_gradients_of_one_process() -> None:
    ranks = here()
    for sizes in SIZES[ranks.size]:
        for options in ({}, {"static_graph": True}, {"find_unused_parameters": True}):
            model, everyones = Meets(), batches(sizes)
            if "find_unused_parameters" in options:
                model.idle = nn.Linear(2, 2)
            whole, expected = of_one_process(model, torch.cat(everyones))
            ddp = DistributedDataParallel(model, **options)
            for _ in range(2):
                model.zero_grad()
                y = ddp(everyones[ranks.rank])
                weighted(y, sizes).backward()
                assert_exact({"y": y.detach()}, {"y": whole.split(list(sizes))[ranks.rank]})
                assert_exact(gradients(model), expected)


def weighted(y: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """The rank's mean loss times n * size / N; a sum, so that 0 samples have a loss of 0."""
    return y.square().sum() * len(sizes) / sum(sizes)


@case_of_two_ranks
def accumulated_gradients_without_synchronisation_are_those_of_one_process() -> None:
    ranks = here()
    for static in (False, True):
        model = Meets()
        steps = [(sizes, batches(sizes)) for sizes in SIZES[ranks.size]]
        expected: dict[str, Tensor] = {}
        for _, everyones in steps:
            _, grads = of_one_process(model, torch.cat(everyones))
            expected = {name: grad + expected.get(name, 0) for name, grad in grads.items()}
        ddp = DistributedDataParallel(model, static_graph=static)
        if static:  # torch's own rule: the first step of a static graph has to be synchronised
            weighted(ddp(steps[0][1][ranks.rank]), steps[0][0]).backward()
        model.zero_grad()
        for sizes, everyones in steps[:-1]:
            with ddp.no_sync():
                weighted(ddp(everyones[ranks.rank]), sizes).backward()
        sizes, everyones = steps[-1]
        weighted(ddp(everyones[ranks.rank]), sizes).backward()
        assert_exact(gradients(model), expected)


@case_of_two_ranks
def compiled_forward_and_backward_are_those_of_one_process() -> None:
    ranks = here()
    torch._dynamo.utils.counters.clear()
    model = Meets(process_group=dist.new_group())
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for n in (3, 4, 5, 7):
        sizes = (n,) * ranks.size
        everyones = batches(sizes)
        whole, expected = of_one_process(model, torch.cat(everyones))
        for forward in (compiled, DistributedDataParallel(compiled)):
            model.zero_grad()
            y = forward(everyones[ranks.rank])
            weighted(y, sizes).backward()
            actual = gradients(model)
            if forward is compiled:
                for grad in actual.values():
                    dist.all_reduce(grad)
                    grad /= ranks.size
            assert_exact({"y": y.detach()}, {"y": whole.split(list(sizes))[ranks.rank]})
            assert_exact(actual, expected)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert graphs == 2, f"one for 3 samples, one for all numbers of them, got {graphs}"


@case_of_two_ranks
def inductor_keeps_the_gather_and_its_backward() -> None:
    """With products alone, which take no compiler of C++."""
    ranks = here()

    def products(x: Tensor, weight: Tensor) -> Tensor:
        return x @ gather(x @ weight, [len(x)] * ranks.size, ranks, FACTS).T

    compiled = torch.compile(products, fullgraph=True, dynamic=True)
    for n in (3, 5):
        x, weight, grad = torch.randn(n, 4), torch.randn(4, 4, requires_grad=True), torch.randn(n, 2 * n)
        eager = products(x, weight)
        y = compiled(x, weight)
        (expected,) = torch.autograd.grad(eager, weight, grad)
        HANDED.clear()
        (actual,) = torch.autograd.grad(y, weight, grad)
        torch.testing.assert_close(y, eager)
        torch.testing.assert_close(actual, expected)
        assert Counter(HANDED) == Counter({"scatter": 2 * n * 4, "scatter padding": 0})


@case_of_two_ranks
def a_compiled_graph_raises_on_every_rank_if_samples_or_facts_differ() -> None:
    ranks = here()
    model = Meets()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
    n = 2 + (ranks.rank == 0)
    said = sentence_of(lambda: compiled(torch.randn(n, 4, dtype=torch.float64)))
    assert said == (
        "x: expected the same number of samples on every rank, as ranks 0 and 1 assumed "
        "(a compiled graph does), got 3 on rank 0 and 2 on rank 1"
    ), said
    # One rank compiled, the others not.
    forward = compiled if ranks.rank == 0 else model
    said = sentence_of(lambda: forward(torch.randn(n, 4, dtype=torch.float64)))
    assert "as rank 0 assumed" in said
    assert len(forward(torch.randn(5, 4, dtype=torch.float64))) == 5

    @torch.compile(fullgraph=True, backend="aot_eager", dynamic=True)
    def of_other_facts(x: Tensor) -> Tensor:
        return gather(
            x, [len(x)] * ranks.size, ranks, {"attend": "both", "x: number of positions": x.shape[1]}
        )

    said = sentence_of(lambda: of_other_facts(torch.randn(2, 5 + ranks.rank)))
    assert said.startswith("x: expected the same number of positions on every rank, got 5 on rank 0 and 6")
    assert len(of_other_facts(torch.randn(2, 5))) == 2 * ranks.size


@case_of_two_ranks
def opcheck_passes_on_both_ops() -> None:
    ranks = here()
    for sizes in ((2,) * ranks.size, SIZES[ranks.size][1]):
        x = torch.randn(sizes[ranks.rank], 3, requires_grad=True)
        names, numbers = ("nhead", [4]) if len(set(sizes)) == 1 else (None, [])
        opcheck(
            torch.ops.batchformer.all_gather_samples.default,
            (x, sizes, ranks.rank, ranks.group_name, names, numbers),
        )
        grad = torch.randn(sum(sizes), 3, requires_grad=True)
        opcheck(
            torch.ops.batchformer.reduce_scatter_samples.default, (grad, sizes, ranks.rank, ranks.group_name)
        )


@case
def the_others_of_a_rank_that_stays_away_get_an_error_within_the_timeout() -> None:
    size = dist.get_world_size()

    def agrees(ranks: Ranks, _: Tensor) -> None:
        agree(ranks, 2, FACTS, CPU)

    def gathers(ranks: Ranks, x: Tensor) -> None:
        gather(x, [2] * size, ranks)

    for call in (agrees, gathers):
        group = dist.new_group(timeout=timedelta(seconds=PATIENCE))
        start = time.monotonic()
        if dist.get_rank() != 0:
            with pytest.raises(RuntimeError):
                call(ranks_of(group), torch.ones(2, 2))
            assert time.monotonic() - start < 3 * PATIENCE
        dist.barrier()


@case_of_two_ranks
def the_others_of_a_rank_that_runs_no_backward_get_an_error_within_the_timeout() -> None:
    group = dist.new_group(timeout=timedelta(seconds=PATIENCE))
    x = torch.ones(2, 2, requires_grad=True)
    y = gather(x, [2] * dist.get_world_size(), ranks_of(group))
    if dist.get_rank() != 0:
        start = time.monotonic()
        with pytest.raises(RuntimeError):
            y.sum().backward()
        assert time.monotonic() - start < 3 * PATIENCE
    dist.barrier()


@case
def the_others_of_a_rank_that_died_get_an_error_at_once() -> None:
    ranks = here()
    if ranks.rank == ranks.size - 1:
        os._exit(0)
    start = time.monotonic()
    with pytest.raises(RuntimeError):
        gather(torch.ones(2, 2), [2] * ranks.size, ranks)
    assert time.monotonic() - start < 30
