"""Samples of other ranks, with 2 and 3 processes on gloo; and what one process alone makes of them."""

import functools
import json
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import ranks_worker
from batchformer import ranks as of_ranks
from batchformer.disagreement import Report, digest, pack, refuse, unpack
from batchformer.ops.op import mix
from batchformer.ranks import Ranks, gather, ranks_of


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> Callable[[int], list[dict[str, str]]]:
    """By rank what went wrong in each case, of some number of ranks, which run once."""

    @functools.cache
    def outcomes(size: int) -> list[dict[str, str]]:
        folder = tmp_path_factory.mktemp("ranks")
        torch.multiprocessing.spawn(ranks_worker.run, (size, str(folder)), nprocs=size)
        return [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(size)]

    return outcomes


EVERY_CASE = [(size, case) for size, cases in ranks_worker.CASES.items() for case in cases]


@pytest.mark.parametrize(("size", "case"), EVERY_CASE, ids=[f"{size}: {case}" for size, case in EVERY_CASE])
def test_on_every_rank(outcomes, size, case):
    assert not any(each[case] for each in outcomes(size)), "\n".join(each[case] for each in outcomes(size))


@pytest.fixture
def world_of_one():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


@pytest.fixture
def _nothing_said(monkeypatch):
    monkeypatch.setattr(of_ranks, "_alone_was_said", False)


@pytest.mark.usefixtures("_nothing_said")
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_without_a_process_group_a_process_is_alone_and_says_so_once(compiled):
    look = torch.compile(ranks_of, fullgraph=True, backend="eager") if compiled else ranks_of
    with pytest.warns(UserWarning, match="gather_distributed: there is no process group"):
        assert look(None) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert look(None) is None


@pytest.mark.usefixtures("world_of_one", "_nothing_said")
def test_a_world_of_one_is_none_and_says_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ranks_of(None) is None
        assert ranks_of(dist.group.WORLD) is None


def test_a_graph_of_another_default_group_is_compiled_anew(monkeypatch):
    monkeypatch.setattr(of_ranks, "_alone_was_said", True)

    @torch.compile(fullgraph=True, backend="eager")
    def looked_up(x):
        ranks = ranks_of(None)
        return x if ranks is None else x + ranks.size

    assert looked_up(torch.zeros(())) == 0
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=1, world_size=5)
    try:
        assert looked_up(torch.zeros(())) == 5
    finally:
        dist.destroy_process_group()
    assert looked_up(torch.zeros(())) == 0


@pytest.mark.usefixtures("world_of_one")
def test_ranks_of_another_group_are_refused():
    with pytest.raises(RuntimeError, match=r"process_group: expected rank 1 of 2 as .*, got rank 0 of 1"):
        gather(torch.ones(1, 1), [1, 1], Ranks(1, 2, dist.group.WORLD.group_name))


@pytest.mark.usefixtures("world_of_one")
def test_another_number_of_samples_than_agreed_on_is_refused():
    with pytest.raises(ValueError, match="x: expected 3 samples as the ranks agreed on, got 2"):
        gather(torch.ones(2, 1), [3], Ranks(0, 1, dist.group.WORLD.group_name))


def test_what_is_no_group_is_refused():
    with pytest.raises(ValueError, match=r"process_group: expected None or .*, got 'gloo'"):
        ranks_of("gloo")


def test_equal_seeds_of_ranks_become_different_ones_in_range():
    seeds = torch.tensor([0, 1, 2**62, 2**63 - 2])
    mixed = torch.stack([mix(seed, rank) for seed in seeds for rank in range(64)]).view(4, 64)
    assert mixed.dtype == torch.int64
    assert mixed.min() >= 0
    assert all(len(row.unique()) == 64 for row in mixed)
    assert mix(seeds[1], 5) == mix(seeds[1], 5)
    compiled = torch.compile(mix, fullgraph=True, backend="aot_eager")
    assert compiled(seeds[1], 5) == mix(seeds[1], 5)


def test_mixed_seeds_of_neighbours_differ_in_many_bits():
    seed = torch.tensor(12345)
    for rank in range(1, 16):
        bits = bin(int(mix(seed, rank)) ^ int(mix(seed, rank - 1))).count("1")
        assert bits > 8


def test_a_digest_is_the_same_in_every_process():
    assert digest({"nhead": "4", "attend": "both"}) == digest({"attend": "both", "nhead": "4"}) == DIGEST
    assert digest({"nhead": "4"}) != digest({"nhead": "8"})


DIGEST = -7015151761986500834


def test_packed_facts_come_back():
    facts = {"nhead": 4, "x: dtype": "torch.float32", "x: positions; pad": 7, "empty": ""}
    assert unpack(*pack(facts)) == facts
    assert unpack(*pack({})) == {}


def test_of_many_ranks_a_few_are_named():
    reports = [Report(1, False, None, {"nhead": str(4 + (rank == 9))}) for rank in range(64)]
    with pytest.raises(ValueError, match=r"got 4 on ranks 0, 1, 2, 3 and 59 more and 5 on rank 9$"):
        refuse(reports)
    reports = [Report(1, False, None, {"nhead": str(rank)}) for rank in range(64)]
    with pytest.raises(
        ValueError, match=r"got 0 on rank 0, 1 on rank 1, 2 on rank 2, 3 on rank 3 and 60 more$"
    ):
        refuse(reports)
