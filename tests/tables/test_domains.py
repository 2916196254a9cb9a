"""Domain generalization: which family is held out, and the average of the weights."""

import copy

import pytest
import torch
import torch.nn.functional as F

from examples.glyphs.alphabet import FACES, FAMILIES
from examples.tables import domains
from examples.tables.arms import ALONE, BASELINE, BATCHFORMER, insert
from examples.tables.draws import generator
from examples.tables.letters import fit, in_every_face
from examples.tables.network import ConvNet
from examples.tables.optimization import Optimization, Recipe
from examples.tables.table import QUICK, Job

pytestmark = pytest.mark.usefixtures("one_thread")

RECIPE = Recipe(steps=4, batch_size=12, learning_rate=0.1, weight_decay=1e-3)
AVERAGE = domains.Average(0.5, statistics=6)


def job(system: str, arm: str, seed: int = 0) -> Job:
    return Job(system, arm, seed, QUICK, changes=(("steps", 2), ("statistics", 2)))


def small(arm: str):
    images = in_every_face(torch.arange(5), 1, generator(0, "training"))
    torch.manual_seed(0)
    model = ConvNet(5)
    return model, insert(model, arm, before="classifier"), images


def test_no_training_image_is_of_the_family_that_is_tested(monkeypatch: pytest.MonkeyPatch):
    drawn = []

    def recorded(letters, each, draws, faces):
        drawn.append({FACES[face] for face in faces.tolist()})
        return in_every_face(letters, each, draws, faces)

    monkeypatch.setattr(domains, "in_every_face", recorded)
    monkeypatch.setattr(domains, "trained", lambda model, *_: model.eval())
    domains.train(job(domains.ERM, BASELINE))
    assert len(drawn) == 8
    for family, training, test in zip(FAMILIES, drawn[::2], drawn[1::2], strict=True):
        assert test == set(FAMILIES[family])
        assert training == set(FACES) - test


@pytest.mark.parametrize("arm", [BASELINE, BATCHFORMER])
def test_training_without_an_average_is_that_of_the_other_tables(arm: str):
    model, attachment, images = small(arm)
    here = domains.trained(model, attachment, images, RECIPE, 0)
    model, attachment, images = small(arm)
    fit(model, arm, attachment, F.cross_entropy, images, RECIPE, 0)
    assert not here.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, here.state_dict()[name]), name


@pytest.mark.parametrize("arm", [BASELINE, BATCHFORMER])
def test_the_average_is_that_of_the_weights_after_each_of_the_last_steps(
    arm: str, monkeypatch: pytest.MonkeyPatch
):
    after: list[dict[str, torch.Tensor]] = []
    model, attachment, images = small(arm)
    step = Optimization.step

    def watched(optimization, loss):
        step(optimization, loss)
        after.append({name: parameter.detach().clone() for name, parameter in model.named_parameters()})

    monkeypatch.setattr(Optimization, "step", watched)
    averaged = domains.trained(model, attachment, images, RECIPE, 0, AVERAGE)
    assert len(after) == 4
    found = dict(averaged.named_parameters())
    assert found.keys() == after[0].keys()
    assert any("batchformer" in name for name in found) == (arm == BATCHFORMER)
    for name, value in found.items():
        torch.testing.assert_close(value, (after[2][name] + after[3][name]) / 2)
        assert not torch.equal(value, after[3][name]), name


def test_the_averaged_model_has_statistics_of_its_own_weights_and_is_in_evaluation():
    model, attachment, images = small(BATCHFORMER)
    averaged = domains.trained(model, attachment, images, RECIPE, 0, AVERAGE)
    assert not any(module.training for module in averaged.modules())
    assert averaged(images.x[:3]).shape == (3, 5)
    norm = averaged.features[1]
    assert norm.num_batches_tracked == AVERAGE.statistics
    again = copy.deepcopy(averaged)
    batches = [x for x, _ in domains.batches(images, AVERAGE.statistics, RECIPE.batch_size, 0)]
    means = torch.stack([again.features[0](x).mean((0, 2, 3)) for x in batches])
    torch.testing.assert_close(norm.running_mean, means.mean(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("system", "arm"), [(domains.ERM, BASELINE), (domains.AVERAGED, BATCHFORMER)])
def test_a_run_gives_every_family_and_their_mean(system: str, arm: str):
    outcome = domains.train(job(system, arm))
    assert tuple(outcome.metrics) == domains.TABLE.columns == (*FAMILIES, "Mean")
    assert outcome.metrics["Mean"] == pytest.approx(sum(outcome.metrics[family] for family in FAMILIES) / 4)
    assert (outcome.entropy is None) == (arm in (BASELINE, ALONE))


def test_one_seed_gives_the_same_weights_every_time():
    first, second = (domains.trained(*small(BATCHFORMER), RECIPE, 0, AVERAGE).state_dict() for _ in "ab")
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
