"""Every table that can, trained on a GPU for a few steps."""

from dataclasses import replace

import pytest
import torch

from examples.tables.arms import BASELINE, BATCHFORMER, SOFTENED
from examples.tables.catalogue import TABLES
from examples.tables.results import Results
from examples.tables.running import run_all
from examples.tables.table import CUDA, QUICK, Job

CASES = [
    pytest.param(table, system, id=f"{table.name}-{system}")
    for table in TABLES.values()
    if CUDA in table.devices
    for system in table.systems
]


@pytest.mark.parametrize("device", ["cuda"], indirect=True)
@pytest.mark.parametrize(("table", "system"), CASES)
def test_a_table_trains_on_a_gpu(table, system, device, tmp_path, quiet):
    arms = [arm for arm in table.arms_of(system) if arm in (BASELINE, BATCHFORMER, SOFTENED)]
    seen = []

    def train(job):
        before = torch.cuda.memory_stats().get("allocation.all.allocated", 0)
        outcome = table.train(job)
        seen.append(torch.cuda.memory_stats()["allocation.all.allocated"] - before)
        return outcome

    wanted = [Job(system, arm, 0, QUICK, device=device) for arm in arms]
    found = run_all(replace(table, train=train), wanted, Results(tmp_path, table, device), 1, quiet)
    for result in found:
        assert set(result.outcome.metrics) == set(table.columns)
        assert result.outcome.diverged is None
        assert result.settings["device"] == CUDA
    assert min(seen) > 100  # it did train there


@pytest.mark.parametrize("device", ["cuda"], indirect=True)
def test_two_runs_on_a_gpu_give_the_same_numbers_bit_by_bit(device, tmp_path, quiet):
    table = TABLES["classification"]
    wanted = Job(table.systems[0], BATCHFORMER, 3, QUICK, device=device)
    one, other = (
        run_all(table, [wanted], Results(tmp_path / name, table, device), 1, quiet) for name in "ab"
    )
    assert one[0].outcome == other[0].outcome
