"""Detectors of torchvision, beyond the cases of tests/families: losses, sizes of batches, places by path."""

import copy

import pytest
import torch
from torch import nn
from torchvision.models import detection

import batchformer as bf
from attach_oracle import EQUAL, equal_streams, is_reached, refused
from families import torchvision_detectors as models

INPUTS = models.INPUTS


def total(model, images=INPUTS["images"], targets=INPUTS["targets"]):
    return models.total(model(images, copy.deepcopy(targets)))


def attached(make=models.rcnn, **options):
    model = make().train()
    return model, bf.attach(model, **options)


def with_stock(make):
    stock = make().train()
    model = copy.deepcopy(stock)
    return model, stock, equal_streams(bf.attach(model, **EQUAL))


@pytest.mark.parametrize("make", [models.rcnn, models.retinanet, models.fcos, models.ssdlite])
def test_each_loss_of_images_without_boxes_is_the_stock_one(make):
    model, stock, _ = with_stock(make)
    empty = [models.target(*size, 0) for size in models.SIZES]
    losses, stock_losses = (each(INPUTS["images"], empty) for each in (model, stock))
    torch.testing.assert_close(losses, stock_losses)


@pytest.mark.parametrize("make", [models.rcnn, models.retinanet])
def test_one_image_gives_the_stock_loss(make):
    model, stock, attachment = with_stock(make)
    loss, stock_loss = (total(each, *(value[:1] for value in INPUTS.values())) for each in (model, stock))
    torch.testing.assert_close(loss, stock_loss)
    loss.backward()
    assert is_reached(attachment)


@pytest.mark.parametrize("make", [models.retinanet, models.fcos])
def test_each_loss_is_the_mean_over_that_of_each_stream(make):
    model, _ = attached(make, dropout=0.0)
    for name, parameter in model.named_parameters():
        if name.startswith("head") and parameter.dim() > 1:
            nn.init.kaiming_normal_(parameter)  # that of the model hardly looks at the maps
    stock, related_alone = copy.deepcopy(model), copy.deepcopy(model)
    stock.batchformer.remove()
    for module in related_alone.batchformer.inserted:
        module.two_stream = False
    both, originals, related = (
        each(INPUTS["images"], copy.deepcopy(INPUTS["targets"])) for each in (model, stock, related_alone)
    )
    # A hundred times what assert_close lets pass; by chance one of the losses may be nearer in both streams.
    assert max(abs(related[name] / loss - 1) for name, loss in originals.items()) > 1e-4
    torch.testing.assert_close(both, {name: (loss + related[name]) / 2 for name, loss in originals.items()})


def test_the_backbone_sees_every_image_once_and_the_heads_both_streams():
    model, _ = attached()
    rows = []
    for path in ("backbone.body", "backbone.fpn.inner_blocks.0", "rpn.anchor_generator", "rpn.head.conv"):
        model.get_submodule(path).register_forward_hook(
            lambda module, args, output, path=path: rows.append((path, len(next(iter(leaves_of(output))))))
        )
    total(model)
    assert dict(rows) == {
        "backbone.body": 3,
        "backbone.fpn.inner_blocks.0": 6,
        "rpn.anchor_generator": 6,
        "rpn.head.conv": 6,
    }


def leaves_of(output):
    return output.values() if isinstance(output, dict) else [output]


def test_two_steps_of_sgd_move_the_module_and_the_losses_are_finite():
    model, attachment = attached()
    before = copy.deepcopy(attachment.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(2):
        loss = total(model)
        assert loss.isfinite()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all(not torch.equal(value, before[name]) for name, value in attachment.state_dict().items())


def test_a_copy_trains_its_own_module():
    model, attachment = attached(models.fcos)
    copied = copy.deepcopy(model)
    total(copied).backward()
    assert is_reached(copied.batchformer)
    assert all(parameter.grad is None for parameter in model.parameters())
    attachment.remove()
    assert "compute_loss" not in vars(model)


def test_the_related_stream_trains_alone():
    model, attachment = attached(two_stream=False)
    total(model).backward()
    assert is_reached(attachment)


def test_low_precision_reaches_the_module():
    model, attachment = attached()
    with torch.autocast("cpu", torch.bfloat16):
        loss = total(model)
    loss.backward()
    assert is_reached(attachment)


def test_a_second_place_behind_the_pyramid_transforms_the_related_maps_of_the_first():
    places = ["backbone.fpn.inner_blocks.3", "backbone.fpn.layer_blocks.0"]
    model, attachment = attached(after=places, shared=False)
    streams = []
    for module in attachment.inserted:
        module.register_forward_hook(
            lambda module, args, given, y: streams.append(given["streams"]), with_kwargs=True
        )
    total(model)
    assert streams == [1, 2]


def test_a_class_made_from_a_detector_is_one():
    class Ours(detection.FasterRCNN):
        pass

    model, attachment = attached(lambda: models.rcnn(Ours))
    total(model).backward()
    assert is_reached(attachment)


@pytest.mark.parametrize("where", [{"before": "roi_heads.box_head.fc6"}, {"after": "rpn.head.conv"}])
def test_a_place_behind_the_backbone_is_refused(where):
    with refused(ValueError):
        bf.attach(models.rcnn(), **where)


def test_a_place_in_a_detector_inside_of_another_model_is_refused():
    with refused(ValueError, saying="targets have to be doubled"):
        bf.attach(nn.ModuleDict({"detector": models.rcnn()}), after="detector.backbone.body.1")


def test_more_targets_than_images_are_refused():
    model, _ = attached()
    with refused(ValueError, saying="each of the 2 images, got 3"):
        total(model, INPUTS["images"][:2])


def test_the_backbone_alone_is_refused_in_training():
    model, _ = attached()
    with refused(RuntimeError, saying="backbone alone"):
        model.backbone(torch.rand(2, 3, 64, 64))
    assert len(model.eval().backbone(torch.rand(2, 3, 64, 64))["0"]) == 2
