"""Classifiers of timm and torchvision, attached without a word: what the table of families does not ask."""

import pytest
import torch
import torch.nn.functional as F
from timm import models as M
from timm.models.resnet import BasicBlock
from torch import nn
from torchvision.models import SqueezeNet
from torchvision.models.segmentation.fcn import FCN, FCNHead

import batchformer as bf
from attach_oracle import assert_step, mean_of, refused, related
from families.images import CLASSES, IMAGES, LABELS, N
from families.timm_classifiers import CASES


def attached(name="timm's ResNet", **options):
    torch.manual_seed(0)
    model = CASES[name].make().train()
    return model, bf.attach(model, dropout=0.0, **options)


def places(model):
    return [place.path for place in bf.attach(model)._family.streams._places]


def test_the_related_stream_is_what_the_module_makes_of_the_features():
    model, attachment = attached()
    features = model.forward_head(model.forward_features(IMAGES), pre_logits=True)
    streams = [F.linear(x, *model.fc.parameters()) for x in (features, related(attachment, features))]
    loss = attachment.wrap(F.cross_entropy)(model(IMAGES), LABELS)
    assert_step(loss, mean_of(F.cross_entropy, streams, LABELS), model, attachment)


def test_maps_are_related_at_each_position():
    model = SqueezeNet("1_1", CLASSES, dropout=0.0)
    attachment = bf.attach(model, dropout=0.0)
    maps = model.features(F.interpolate(IMAGES, 64))  # [N, 512, 3, 3]
    tokens = maps.flatten(2).transpose(1, 2)  # [N, 9, 512]
    of_tokens = torch.stack([related(attachment, tokens[:, at]) for at in range(tokens.shape[1])], dim=2)
    conv = model.classifier[1]
    streams = [
        F.conv2d(x, conv.weight, conv.bias).relu().mean((2, 3)) for x in (maps, of_tokens.view_as(maps))
    ]
    loss = attachment.wrap(F.cross_entropy)(model(F.interpolate(IMAGES, 64)), LABELS)
    assert_step(loss, mean_of(F.cross_entropy, streams, LABELS), model, attachment)


def test_both_heads_of_a_distilled_model_share_one_module_and_see_both_streams():
    model, attachment = attached("LeViT, distilled")
    model.set_distilled_training(True)
    assert [len(logits) for logits in model(IMAGES)] == [2 * N, 2 * N]
    assert len(attachment.inserted) == 1


def test_a_layer_of_a_head_that_gives_as_many_numbers_as_there_are_classes_is_no_classifier():
    config = {"depths": (1, 1), "dims": (8, 16)}
    model = M.MetaFormer(**config, num_classes=64, use_mlp_head=True)
    assert model.head.fc.fc1.out_features == 64
    assert places(model) == ["head.fc.fc2"]


def test_heads_of_two_widths_have_a_module_each():
    _, attachment = attached("CrossViT, heads of two widths")
    assert [module.dim for module in attachment.inserted] == [16, 32]


@pytest.mark.parametrize("name", ["LeViT, distilled", "RepViT, a batch norm in both heads"])
def test_the_statistics_of_a_batch_norm_in_the_head_are_of_the_originals_alone(name):
    model, attachment = attached(name)
    stock = CASES[name].make().train()
    stock.load_state_dict(attachment.stock_state_dict())
    model(IMAGES), stock(IMAGES)
    buffers = dict(model.named_buffers())
    for path, buffer in stock.named_buffers():
        torch.testing.assert_close(buffers[path], buffer)


def test_features_and_head_may_be_called_one_after_the_other():
    model, attachment = attached()
    logits = model.forward_head(model.forward_features(IMAGES))
    whole = attachment.wrap(F.cross_entropy)(model(IMAGES), LABELS)
    torch.testing.assert_close(attachment.wrap(F.cross_entropy)(logits, LABELS), whole)


def test_a_linear_classifier_of_maps_is_refused():
    model = M.SwinTransformer(img_size=32, embed_dim=16, depths=(1,), num_heads=(2,), global_pool="")
    bf.attach(model)
    with refused(ValueError, saying=r"\[N, 16\]"):
        model(IMAGES)


@pytest.mark.parametrize("name", ["timm's ResNet", "CrossViT, heads of two widths"])
def test_a_model_of_features_needs_a_classifier_first(name):
    model = CASES[name].make()
    model.reset_classifier(0)
    with refused(ValueError, saying="reset_classifier"):
        bf.attach(model)
    model.reset_classifier(CLASSES)
    assert bf.attach(model)


def test_blocks_with_batch_norms_are_not_doubled_in_between():
    model = M.Xcit(img_size=32, patch_size=16, embed_dim=16, depth=9, num_heads=2)
    assert places(model) == ["head"]


def test_a_width_that_four_heads_do_not_divide_has_fewer():
    model = M.ResNet(BasicBlock, (1, 1, 1, 1), CLASSES, channels=(8, 8, 8, 18))
    assert bf.attach(model).inserted[0].encoder.self_attn.num_heads == 2
    with pytest.raises(ValueError, match="nhead: expected a divisor of dim=18, got 4"):
        bf.attach(M.ResNet(BasicBlock, (1, 1, 1, 1), CLASSES, channels=(8, 8, 8, 18)), nhead=4)


def test_the_last_layer_of_a_classifier_of_the_users_own_is_the_place():
    model = SqueezeNet("1_1", CLASSES)
    model.classifier = nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 8), nn.ReLU(), nn.Linear(8, CLASSES)
    )
    assert places(model) == ["classifier.4"]


def test_segmentation_is_not_taken_for_classification():
    with refused(ValueError, saying="known family"):
        bf.attach(FCN(nn.Conv2d(3, 16, 1), FCNHead(16, CLASSES)))
