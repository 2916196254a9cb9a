"""What attach() says of itself: the families that it knows, and where it went in."""

import logging

import timm
import torch
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

import batchformer as bf
import stand_ins
from attach_nets import Net, attached
from attach_oracle import refused


def test_every_family_is_listed_with_its_names_place_and_options():
    listed = bf.families()
    by_name = {name: each for each in listed for name in each.names}
    assert by_name["vit"].place == "after block 8"
    assert by_name["vit"] is by_name["deit"]
    assert "after" in by_name["deit"].options
    assert not by_name["balanced_softmax"].recognised
    assert all(each.models and each.place and each.about for each in listed)
    assert str(by_name["vit"]).startswith("vit, deit: blocks after patch embeddings (timm, ")


def test_each_name_is_in_the_docstring():
    for each in bf.families():
        for name in each.names:
            assert f'"{name}"' in bf.attach.__doc__


def test_a_wrong_name_is_answered_with_the_nearest_and_with_what_the_model_is():
    with refused(ValueError, saying="; the nearest are 'detr'"):
        bf.attach(Net(), "dert")
    with refused(ValueError, saying="; without a name this one is recognised as 'torchvision'$"):
        bf.attach(ResNet(BasicBlock, [1, 1, 1, 1]), "balanced")


def test_a_list_of_layers_called_linears_does_not_make_a_ride():
    model = nn.Module()
    model.backbone = nn.Module()
    model.backbone.linears = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])
    with refused(ValueError, saying="of a known family"):
        bf.attach(model)


def test_an_attachment_says_what_it_is():
    model = timm.create_model("vit_tiny_patch16_224", embed_dim=48, depth=9, num_classes=5)
    said = repr(bf.attach(model, nhead=4, outputs="originals"))
    parameters = sum(p.numel() for p in model.batchformer.parameters())
    for fact in (
        "family='vit'",
        "two_stream=True",
        "outputs='originals'",
        f"{parameters:,} parameters",
        "after 'blocks.8' (Block): tokens [N, L, 48]",
    ):
        assert fact in said
    assert said in repr(model).replace("\n  ", "\n")


def test_an_attachment_says_each_place():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1))
    said = repr(bf.attach(model, after=["0", "1"]))
    assert "after '0' (Conv2d): maps [N, 8, H, W]\n" in said
    assert "after '1' (Conv2d): maps [N, 8, H, W]\n" in said


def test_an_attachment_says_what_is_to_be_wrapped():
    _, attachment = attached()
    assert "to do: criterion = attachment.wrap(criterion)" in repr(attachment)
    attachment.wrap(nn.CrossEntropyLoss())
    assert "criteria wrapped: 1" in repr(attachment)
    attachment.remove()
    assert "removed" in repr(attachment)
    assert "nothing to wrap" in repr(bf.attach(stand_ins.GraphFull()))
    assert "duplicate()" in repr(attached(wrapped=False)[1])
    assert "one stream" in repr(attached(two_stream=False)[1])


def test_attaching_is_logged_once_and_forwards_are_not(caplog):
    with caplog.at_level(logging.DEBUG, logger="batchformer"):
        model, attachment = attached()
        attachment.wrap(nn.CrossEntropyLoss())(model(torch.randn(4, 6)), torch.tensor([0, 1, 2, 1]))
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert caplog.records[0].getMessage().startswith("attached to Net: family='before', two_stream=True")
    assert "before 'fc' (Linear): features [N, 16]" in caplog.records[0].getMessage()
