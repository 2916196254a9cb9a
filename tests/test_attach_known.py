"""What attach() says of itself: the families that it knows, and where it went in."""

import logging

import pytest
import timm
import torch
from torch import nn

import batchformer as bf
from attach_nets import Net, attached


def test_every_family_is_listed_with_its_names_place_and_options():
    listed = bf.families()
    by_name = {name: each for each in listed for name in each.names}
    assert by_name["deit"].place == "after block 8"
    assert by_name["vit"] is by_name["deit"]
    assert "after" in by_name["deit"].options
    assert not by_name["balanced_softmax"].recognised
    assert all(each.models and each.place for each in listed)


def test_each_name_is_in_the_docstring_and_in_the_error():
    with pytest.raises(ValueError, match=r"^preset: expected") as caught:
        bf.attach(Net(), "dert")
    for each in bf.families():
        for name in each.names:
            assert f'"{name}"' in bf.attach.__doc__
            assert repr(name) in str(caught.value)


def test_an_attachment_says_what_it_is():
    model = timm.create_model("vit_tiny_patch16_224", embed_dim=48, depth=9, num_classes=5)
    said = repr(bf.attach(model, nhead=4, outputs="originals"))
    parameters = sum(p.numel() for p in model.batchformer.parameters())
    for fact in (
        "family='deit'",
        "two_stream=True",
        "outputs='originals'",
        f"{parameters:,} parameters",
        "at 'blocks.8', Block: NLC, C=48",
    ):
        assert fact in said
    assert said in repr(model).replace("\n  ", "\n")


def test_an_attachment_says_each_place():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1))
    said = repr(bf.attach(model, after=["0", "1"]))
    assert "at '0', Conv2d: NCHW, C=8\n" in said
    assert "at '1', Conv2d: NCHW, C=8\n" in said


def test_attaching_is_logged_once_and_forwards_are_not(caplog):
    with caplog.at_level(logging.DEBUG, logger="batchformer"):
        model, attachment = attached()
        attachment.wrap(nn.CrossEntropyLoss())(model(torch.randn(4, 6)), torch.tensor([0, 1, 2, 1]))
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert caplog.records[0].getMessage().startswith("attached to Net: family='before', two_stream=True")
    assert "at 'fc', Linear: NC, C=16" in caplog.records[0].getMessage()
