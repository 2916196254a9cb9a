"""The classification table: timm's DeiT on letters, with BatchFormerV2 after a block."""

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import top_k_accuracy_score
from timm.models.vision_transformer import VisionTransformer
from timm.utils import accuracy

import batchformer as bf
from examples.tables import classification
from examples.tables.arms import ALONE, ARMS, BASELINE, BATCHFORMER, insert
from examples.tables.draws import generator
from examples.tables.letters import CLASSES, in_every_face
from examples.tables.optimization import Optimization
from examples.tables.table import QUICK, Job

pytestmark = pytest.mark.usefixtures("one_thread")

SMALLEST = classification.TABLE.systems[0]


def made(arm: str = BASELINE, system: str = SMALLEST) -> tuple[torch.nn.Module, bf.Attachment | None]:
    chosen = classification.settings(Job(system, arm, 0))
    torch.manual_seed(0)
    model = classification.deit(chosen["width"], chosen["depth"])
    return model, insert(model, arm, after=chosen["after"])


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_runs_and_gives_both_metrics(arm):
    outcome = classification.train(Job(SMALLEST, arm, 0, QUICK))
    assert tuple(outcome.metrics) == classification.TABLE.columns
    assert 0 <= outcome.metrics["top 1"] <= outcome.metrics["top 5"] <= 100
    assert (outcome.entropy is None) == (arm in (BASELINE, ALONE))
    if arm == "uniform":
        assert outcome.entropy == pytest.approx(1)


@pytest.fixture
def losses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The losses of all steps of the test."""
    seen: list[float] = []
    step = Optimization.step

    def watched(self: Optimization, loss: torch.Tensor) -> None:
        seen.append(loss.item())
        step(self, loss)

    monkeypatch.setattr(Optimization, "step", watched)
    return seen


def test_the_same_seed_gives_the_same_numbers_and_another_gives_others(losses):
    same, again = (classification.train(Job(SMALLEST, BATCHFORMER, 3, QUICK)) for _ in "ab")
    classification.train(Job(SMALLEST, BATCHFORMER, 4, QUICK))
    assert same == again
    assert losses[:4] == losses[4:8]
    assert all(one != other for one, other in zip(losses[:4], losses[8:], strict=True))


def test_all_arms_start_from_the_same_weights():
    stock = made()[0].state_dict()
    for arm in ARMS[1:]:
        weights = made(arm)[0].state_dict()
        for name, weight in stock.items():
            assert torch.equal(weight, weights[name]), (arm, name)


@pytest.mark.parametrize("system", classification.TABLE.systems)
def test_the_model_is_timms_with_blocks_behind_the_place(system):
    model, attachment = made(BATCHFORMER, system)
    chosen = classification.settings(Job(system, BATCHFORMER, 0))
    assert isinstance(model, VisionTransformer)
    assert model.patch_embed.num_patches == 36
    assert len(model.blocks) == chosen["depth"] > chosen["after"] + 1
    assert (chosen["after"] + 1) / chosen["depth"] == 9 / 12  # the place in the paper
    (module,) = attachment.inserted
    assert isinstance(module, bf.BatchFormerV2)
    images = torch.rand(4, 1, 24, 24)
    assert model.patch_embed(images).shape == (4, 36, chosen["width"])
    assert model(images).shape == (8, CLASSES)
    assert model.eval()(images).shape == (4, CLASSES)


def test_positions_are_as_large_as_the_tokens_at_the_start():
    model, _ = made()
    tokens = model.patch_embed(torch.rand(16, 1, 24, 24))
    assert 1 / 3 < model.pos_embed.std() / tokens.std() < 3


def test_three_sizes_grow():
    sizes = [
        sum(parameter.numel() for parameter in made(system=system)[0].parameters())
        for system in classification.TABLE.systems
    ]
    assert sizes == sorted(set(sizes))
    assert len(sizes) == 3


def test_the_loss_is_that_of_smoothed_labels_over_both_streams(losses):
    images = in_every_face(torch.arange(CLASSES), 1, generator(0, "training"), torch.arange(1))
    for arm in (BASELINE, BATCHFORMER):
        model, attachment = made(arm)
        chosen = {**classification.settings(Job(SMALLEST, arm, 0, QUICK)), "steps": 1}
        x, y = next(classification.batches(images, 1, chosen["batch_size"], 0))
        torch.manual_seed(5)
        logits = model.train()(x)
        chance = F.log_softmax(logits, 1)
        targets = y.repeat(len(logits) // len(y))
        own = chance.gather(1, targets[:, None])[:, 0]
        expected = -(0.9 * own + 0.1 * chance.mean(1)).mean().item()
        # No criterion followed that forward, so the training starts from a new model.
        model, attachment = made(arm)
        torch.manual_seed(5)
        classification.fit(model, attachment, images, chosen, 0)
        assert losses.pop() == pytest.approx(expected, rel=1e-5)


def test_top_1_and_top_5_agree_with_scikit_learn():
    draws = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(500, 12, generator=draws), torch.randint(12, (500,), generator=draws)
    for place, value in zip((1, 5), accuracy(logits, labels, topk=(1, 5)), strict=True):
        expected = top_k_accuracy_score(labels, logits, k=place, labels=range(12))
        assert value.item() == pytest.approx(100 * expected)


def test_twice_the_steps_is_what_a_lengthened_run_has():
    job = Job(SMALLEST, BASELINE, 0)
    longer = classification.settings(Job(SMALLEST, BASELINE, 0, lengthened=True))
    assert longer == {**classification.settings(job), "steps": 2 * classification.settings(job)["steps"]}
