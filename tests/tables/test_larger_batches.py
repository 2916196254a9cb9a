"""The table of larger batches: which arm has which samples, and two processes compared with one."""

import pytest
import torch

from examples.tables import larger_batches
from examples.tables.arms import BASELINE, BATCHFORMER
from examples.tables.larger_batches import GATHERED, ONE, REMEMBERED, TABLE, TWO, train
from examples.tables.letters import batches
from examples.tables.long_tailed.data import long_tailed_letters
from examples.tables.optimization import DivergenceError
from examples.tables.table import QUICK, Job

pytestmark = pytest.mark.usefixtures("one_thread")


def attached(monkeypatch: pytest.MonkeyPatch, arm: str) -> dict[str, object]:
    """The options of an arm's module."""
    found: dict[str, object] = {}
    insert = larger_batches.insert

    def watched(model, kind, **options):
        found.update(options, kind=kind)
        return insert(model, kind, **options)

    monkeypatch.setattr(larger_batches, "insert", watched)
    train(Job(ONE, arm, 0, QUICK))
    return found


@pytest.mark.parametrize("arm", REMEMBERED)
def test_an_arm_remembers_as_many_samples_as_its_name_says(arm, monkeypatch):
    found = attached(monkeypatch, arm)
    kind, size = arm.removesuffix(" remembered").split(", ")
    assert found == {"kind": kind, "before": "classifier", "memory_bank_size": int(size)}


def test_each_system_has_the_arms_that_it_can_have():
    assert not {*GATHERED} & {*TABLE.arms_of(ONE)}
    assert not {*REMEMBERED} & {*TABLE.arms_of(TWO)}
    assert {BASELINE, BATCHFORMER} <= {*TABLE.arms_of(ONE)} & {*TABLE.arms_of(TWO)}
    assert all({first, second} <= {*TABLE.arms} for first, second in TABLE.contrasts)


def test_two_processes_train_and_the_first_tells_what_they_learned():
    found = train(Job(TWO, GATHERED[0], 0, QUICK, changes=(("steps", 3),)))
    assert set(found.metrics) == set(TABLE.columns)
    assert all(0 <= value <= 100 for value in found.metrics.values())
    assert 0 < found.entropy <= 1


def test_processes_take_the_parts_of_one_batch(monkeypatch):
    """Their rows together are those of one process with the whole batch."""
    seen: dict[int, list[torch.Tensor]] = {}

    class Network(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, x):
            seen.setdefault(rank, []).append(x.clone())
            return self.model(x)

    monkeypatch.setattr(larger_batches, "DistributedDataParallel", Network)
    job = Job(TWO, BASELINE, 0, QUICK, changes=(("steps", 2),))
    for rank in (0, 1):
        larger_batches.train_rank(job, rank)
    chosen = TABLE.settings(job)
    images, _ = long_tailed_letters(0, chosen["most"], chosen["imbalance"])
    for step, (x, _) in enumerate(batches(images, 2, 2 * chosen["batch_size"], 0)):
        assert torch.equal(torch.cat([seen[0][step], seen[1][step]]), x)


def test_a_run_of_two_processes_that_diverges_says_so():
    job = Job(TWO, BATCHFORMER, 0, QUICK, changes=(("learning_rate", 1e30),))
    with pytest.raises(DivergenceError, match="expected a finite number"):
        train(job)
