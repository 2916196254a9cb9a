"""The tables on scenes: every system and arm runs, and the outputs of a perfect model get perfect scores."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from examples.glyphs.scenes import CANVAS, LETTERS, STUFF, scenes
from examples.tables import detection, panoptic
from examples.tables.arms import ALONE, ARMS, BASELINE, BATCHFORMER, UNIFORM
from examples.tables.average_precision import LARGE, SMALL, average_precision
from examples.tables.detectors import adapt_backbone
from examples.tables.draws import generator
from examples.tables.panoptic_quality import panoptic_quality
from examples.tables.table import QUICK, Job, Table

pytestmark = pytest.mark.usefixtures("one_thread")
SURE = 20.0  # a logit


def run(table: Table, system: str, arm: str, seed: int = 0):
    return table.train(Job(system, arm, seed, QUICK))


@pytest.mark.parametrize("system", detection.SYSTEMS)
def test_every_detector_runs_in_every_arm_and_gives_every_column(system: str):
    outcomes = {arm: run(detection.TABLE, system, arm) for arm in ARMS}
    for arm, outcome in outcomes.items():
        assert tuple(outcome.metrics) == detection.TABLE.columns
        assert (outcome.entropy is None) == (arm in (BASELINE, ALONE))
    assert 0.9 < outcomes[BATCHFORMER].entropy < 1
    assert outcomes[UNIFORM].entropy == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("arm", [BASELINE, BATCHFORMER])
def test_the_segmenter_runs_and_gives_every_column_the_same_each_time(arm: str):
    outcome, again = (run(panoptic.TABLE, "DETR", arm) for _ in "ab")
    assert tuple(outcome.metrics) == panoptic.TABLE.columns
    assert (outcome.entropy is None) == (arm in (BASELINE, ALONE))
    assert outcome == again


def test_the_same_seed_trains_to_the_same_numbers_and_another_to_others():
    one, same, other = (run(detection.TABLE, "Deformable DETR", BATCHFORMER, seed) for seed in (0, 0, 1))
    assert one == same
    assert one.entropy != other.entropy


@pytest.mark.parametrize(("table", "steps"), [(detection, "steps"), (panoptic, "steps_of_head")])
def test_twice_the_steps_are_twice_the_steps_of_all_that_is_trained(table, steps: str):
    usual, lengthened = (
        table.settings(Job(table.TABLE.systems[0], BASELINE, 0, lengthened=longer))
        for longer in (False, True)
    )
    assert lengthened == usual | {"steps": 2 * usual["steps"], steps: 2 * usual[steps]}


def test_all_of_a_backbone_is_trained_and_it_has_its_own_statistics():
    model = detection.detector("Detr")
    assert all(parameter.requires_grad for parameter in model.parameters())
    norms = [module for module in model.model.backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    model.train()(pixel_values=torch.randn(2, 1, CANVAS, CANVAS))
    assert len(norms) > 5
    assert all(norm.running_mean.abs().sum() > 0 for norm in norms)
    frozen = [name for name, module in model.named_modules() if "Frozen" in type(module).__name__]
    assert not frozen
    adapt_backbone(model.model.backbone)  # a second call changes nothing
    assert len(norms) == sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


@pytest.mark.parametrize("kind", detection.SYSTEMS.values())
def test_a_detector_that_finds_everything_has_full_precision(kind: str, monkeypatch: pytest.MonkeyPatch):
    drawn = scenes(12, generator(0, "found"))

    def perfect(model: nn.Module, images: torch.Tensor):
        assert len(images) == len(drawn)
        logits = torch.full((len(drawn), 10, len(LETTERS) + (kind == "Detr")), -SURE)
        logits[..., -1] = SURE / 2 if kind == "Detr" else -SURE  # no object
        boxes = torch.full((len(drawn), 10, 4), 0.5)
        for number, target in enumerate(detection.targets(drawn)):
            for query, (label, box) in enumerate(zip(target["class_labels"], target["boxes"], strict=True)):
                logits[number, query, label] = SURE
                boxes[number, query] = box
        yield SimpleNamespace(logits=logits, pred_boxes=boxes)

    monkeypatch.setattr(detection, "outputs", perfect)
    found = detection.predictions(type(f"{kind}ForObjectDetection", (nn.Module,), {})(), drawn)
    wanted = [{"boxes": scene.boxes, "labels": scene.labels} for scene in drawn.found]
    assert average_precision(found, wanted) == pytest.approx(dict.fromkeys(detection.TABLE.columns, 100.0))


def test_a_segmenter_that_cuts_out_everything_has_full_quality(monkeypatch: pytest.MonkeyPatch):
    drawn = scenes(40, generator(0, "cut out"))

    def perfect(model: nn.Module, images: torch.Tensor):
        logits = torch.full((len(drawn), 10, len(LETTERS) + len(STUFF) + 1), -SURE)
        logits[..., -1] = SURE / 2  # no object
        masks = torch.full((len(drawn), 10, CANVAS, CANVAS), -SURE)
        for number, scene in enumerate(drawn.found):
            target = panoptic.targets(scene)
            for query, (label, mask) in enumerate(zip(target["class_labels"], target["masks"], strict=True)):
                logits[number, query, label] = SURE
                masks[number, query][mask.bool()] = SURE
        yield SimpleNamespace(logits=logits, pred_masks=masks)

    monkeypatch.setattr(panoptic, "outputs", perfect)
    found = panoptic.predictions(nn.Module(), drawn)
    wanted = torch.stack([panoptic.segmentation(scene) for scene in drawn.found])
    assert torch.equal(found[..., 0], wanted[..., 0])
    measured = panoptic_quality(found, wanted, panoptic.THINGS, panoptic.GROUNDS)
    assert measured == pytest.approx(dict.fromkeys(panoptic.TABLE.columns, 100.0))


def test_the_targets_of_a_segmenter_are_the_whole_image():
    for scene in scenes(20, generator(0, "targets")).found:
        target = panoptic.targets(scene)
        assert torch.equal(target["masks"].sum(0), torch.ones(CANVAS, CANVAS))
        assert len(target["class_labels"]) == len(scene.labels) + len(scene.ground.unique())
        assert ((target["boxes"] >= 0) & (target["boxes"] <= 1)).all()


def test_the_limits_of_sizes_part_the_letters_into_thirds():
    boxes = torch.cat([scene.boxes for scene in scenes(400, generator(0, "sizes")).found])
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    shares = [(areas < SMALL).float().mean(), (areas > LARGE).float().mean()]
    assert shares == pytest.approx([1 / 3, 1 / 3], abs=0.05)
