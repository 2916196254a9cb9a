"""Models of transformers, timm and torchvision, and PEFT around them: right, or an error of ours."""

import contextlib
import copy

import pytest
import timm
import torch
import torch.nn.functional as F
import transformers as T
from timm.models import VisionTransformer
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.models.resnet import BasicBlock, ResNet
from transformers.trainer_pt_utils import LabelSmoother

import batchformer as bf
from attach_oracle import (
    EQUAL,
    KINDS,
    OURS,
    assert_stock_step,
    equal_streams,
    is_reached,
    mean_of,
    refused,
    related,
    said_of,
    unless_refused,
)
from families.detectors import hybrid
from families.images import CLASSES, IMAGES, LABELS, TINY, N

WORDS = torch.randint(1, 20, (N, 6))


def vit_config(layers=9, **options):
    return T.ViTConfig(**TINY, num_hidden_layers=layers, image_size=32, patch_size=8, **options)


def vit(layers=9):
    return T.ViTForImageClassification(vit_config(layers))


def bert():
    config = T.BertConfig(**TINY, num_hidden_layers=1, vocab_size=20, hidden_dropout_prob=0.0)
    config.attention_probs_dropout_prob = 0.0
    return T.BertForSequenceClassification(config)


def resnet():
    return ResNet(BasicBlock, [1, 1, 1, 1], num_classes=CLASSES)


def timm_vit(depth=9):
    return VisionTransformer(
        img_size=32, patch_size=8, embed_dim=32, depth=depth, num_heads=4, num_classes=CLASSES
    )


# transformers


TAKE_LABELS = {
    "ViT": (vit, {"pixel_values": IMAGES}, {}),
    "ViT, before the classifier": (vit, {"pixel_values": IMAGES}, {"before": "classifier"}),
    "BERT, before the classifier": (bert, {"input_ids": WORDS}, {"before": "classifier"}),
}
COUNTS = [{}, {"num_items_in_batch": torch.tensor(8)}, {"num_items_in_batch": 8}]
BY_MODEL = pytest.mark.parametrize(("make", "given", "where"), TAKE_LABELS.values(), ids=TAKE_LABELS)


@BY_MODEL
@pytest.mark.parametrize("count", COUNTS, ids=["", "a tensor of items", "a number of items"])
def test_models_that_take_labels_give_the_stock_loss(make, given, where, count):
    stock = make().train()
    model = copy.deepcopy(stock)
    attachment = equal_streams(bf.attach(model, **where, **EQUAL))
    loss, expected = (each(**given, labels=LABELS, **count).loss for each in (model, stock))
    assert_stock_step(loss, expected, model, stock, attachment)


@BY_MODEL
def test_models_that_take_labels_give_the_mean_over_both_streams(make, given, where):
    model = make().train()
    bf.attach(model, dropout=0.0, **where).wrap(F.cross_entropy)  # so that labels may be left out
    logits = model(**given).logits.chunk(2)
    assert not torch.allclose(*logits)
    expected = mean_of(F.cross_entropy, logits, LABELS)
    torch.testing.assert_close(model(**given, labels=LABELS).loss, expected)


@pytest.mark.parametrize("layout", [None, "LNC"])
def test_xlnet_has_the_sequence_first(layout):
    without = {"vocab_size": 20, "dropout": 0.0, "summary_last_dropout": 0.0}
    config = T.XLNetConfig(d_model=16, n_layer=2, n_head=2, d_inner=8, num_labels=CLASSES, **without)
    torch.manual_seed(0)
    stock = T.XLNetForSequenceClassification(config).train()
    model = copy.deepcopy(stock)
    attachment = equal_streams(bf.attach(model, after="transformer.layer.1", layout=layout, **EQUAL))
    loss, expected = (each(input_ids=WORDS, labels=LABELS).loss for each in (model, stock))
    assert_stock_step(loss, expected, model, stock, attachment)


@BY_MODEL
@pytest.mark.parametrize("count", COUNTS[:2], ids=["", "a tensor of items"])
def test_smoothed_labels_of_the_trainer_give_the_stock_loss(make, given, where, count):
    stock = make().train()
    model = copy.deepcopy(stock)
    attachment = equal_streams(bf.attach(model, **where, **EQUAL))
    loss = attachment.wrap(LabelSmoother(0.1))(model(**given), LABELS, **count)
    expected = LabelSmoother(0.1)(stock(**given), LABELS, **count)
    assert_stock_step(loss, expected, model, stock, attachment)


@pytest.mark.parametrize("samples", [1, N])
def test_smoothed_labels_of_the_trainer_have_to_be_wrapped(samples):
    model = vit().train()
    bf.attach(model)
    with refused(RuntimeError):
        LabelSmoother(0.1)(model(pixel_values=IMAGES[:samples]), LABELS[:samples]).backward()


def test_a_list_of_layers_is_no_place():
    with refused(ValueError):
        bf.attach(vit(), after="vit.layers", layout="NLC")


@pytest.mark.parametrize(
    ("make", "inputs"),
    [
        (
            lambda: T.ViTMAEForPreTraining(
                T.ViTMAEConfig(
                    **TINY,
                    num_hidden_layers=9,
                    image_size=32,
                    patch_size=8,
                    decoder_hidden_size=32,
                    decoder_num_hidden_layers=1,
                    decoder_num_attention_heads=4,
                    decoder_intermediate_size=32,
                )
            ),
            {"noise": torch.rand(N, 16)},
        ),
        (
            lambda: T.ViTForMaskedImageModeling(vit_config(encoder_stride=8)),
            {"bool_masked_pos": torch.rand(N, 16) < 0.5},
        ),
    ],
    ids=["ViTMAE", "masked image modelling"],
)
def test_models_that_reconstruct_images_are_refused_or_right(make, inputs):
    stock = make().train()
    model = copy.deepcopy(stock)
    with unless_refused():
        attachment = equal_streams(bf.attach(model, **EQUAL))
        loss, expected = (each(pixel_values=IMAGES, **inputs).loss for each in (model, stock))
        assert_stock_step(loss, expected, model, stock, attachment)


def test_rt_detr_gives_the_loss_of_both_streams_or_is_refused():
    stock, images = hybrid("RTDetr").train(), torch.randn(2, 3, 64, 64)
    model = copy.deepcopy(stock)
    boxes = torch.rand(2, 3, 4) * 0.2 + 0.4
    labels = [{"class_labels": torch.randint(CLASSES, (3,)), "boxes": each} for each in boxes]
    expected = stock(pixel_values=images, labels=labels).loss
    doubled = copy.deepcopy(stock)(pixel_values=images.repeat(2, 1, 1, 1), labels=labels + labels).loss
    torch.testing.assert_close(doubled, expected)
    with unless_refused():
        place = "model.backbone.model.embedder"
        attachment = equal_streams(bf.attach(model, after=place, layout="NCHW", **EQUAL))
        loss = model(pixel_values=images, labels=labels).loss
        torch.testing.assert_close(loss, expected)
        loss.backward()
        assert is_reached(attachment)


def step_of(model, loss):
    """A function that does a step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def step():
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return step


def test_a_llama_that_pools_the_originals_fails_or_is_warned_of():
    config = T.LlamaConfig(**TINY, num_hidden_layers=2, num_key_value_heads=4, vocab_size=20, pad_token_id=0)
    model = T.LlamaForSequenceClassification(config).train()
    with contextlib.suppress(*KINDS):  # torch's will do, too
        bf.attach(model, after="model.layers.1", layout="NLC", dropout=0.0)
        assert said_of(step_of(model, lambda: model(input_ids=WORDS, labels=LABELS).loss), times=4)


CLIP_PLACES = {
    "images": {"before": "visual_projection"},
    "images, after a layer": {"after": "vision_model.encoder.layers.0", "layout": "NLC"},
    "both": {"before": ["visual_projection", "text_projection"]},
}


@pytest.mark.parametrize("where", CLIP_PLACES.values(), ids=CLIP_PLACES)
def test_clip_does_not_take_the_related_copy_for_a_negative(where):
    tiny = {name: value for name, value in TINY.items() if name != "num_labels"} | {"num_hidden_layers": 1}
    text = tiny | {"vocab_size": 20, "max_position_embeddings": 8, "eos_token_id": 19}
    vision = tiny | {"image_size": 32, "patch_size": 16}
    model = T.CLIPModel(T.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).train()
    bf.attach(model, dropout=0.0, **where)
    with refused():
        model(pixel_values=IMAGES, input_ids=WORDS, return_loss=True).loss.backward()


# timm and torchvision


def by_torchvision():
    model = resnet()
    bf.attach(model, before="fc")
    model.fc = nn.Linear(512, CLASSES)
    return model


def by_timm():
    model = timm.create_model("resnet10t", num_classes=3)
    bf.attach(model, before="fc")
    model.reset_classifier(CLASSES)
    return model


def checkpointed_stages():
    model = timm.create_model("resnet10t", num_classes=CLASSES)
    model.set_grad_checkpointing()
    bf.attach(model, after="layer3")
    return model


@pytest.mark.parametrize("make", [by_torchvision, by_timm, checkpointed_stages])
def test_a_place_that_does_not_run_is_said_when_the_forward_ends(make):
    model = make()
    with refused(RuntimeError):
        model(IMAGES)
    assert len(model.eval()(IMAGES)) == N


@pytest.mark.parametrize("make", [timm_vit, vit], ids=["timm", "transformers"])
def test_a_vision_transformer_of_fewer_blocks_asks_for_the_place(make):
    model = make(6)
    with pytest.raises(ValueError, match=OURS) as caught:
        bf.attach(model)
    assert "after" in str(caught.value)
    assert "[8]" not in str(caught.value)


def test_intermediate_features_in_training_are_refused():
    model = timm_vit()
    bf.attach(model)
    with refused():
        model.forward_intermediates(IMAGES)
    assert len(model.eval().forward_intermediates(IMAGES)[0]) == N


def test_a_feature_extractor_of_an_attached_model_does_not_double_in_evaluation():
    model = resnet()
    bf.attach(model, before="fc")
    with unless_refused():
        extractor = create_feature_extractor(model, ["fc"]).eval()
        assert len(extractor(IMAGES)["fc"]) == N


def test_the_children_of_a_resnet_in_a_sequence_do_not_lose_the_insertion():
    model = resnet()
    model.fc = nn.Sequential(nn.Flatten(), model.fc)
    bf.attach(model, after="layer4", layout="NCHW")
    with unless_refused():
        assert len(nn.Sequential(*model.children())(IMAGES)) == 2 * N


@pytest.mark.parametrize("where", [{"before": "fc"}, {"after": "layer3"}], ids=["before", "after"])
@pytest.mark.parametrize("outputs", ["both", "originals"])
def test_a_resnet_gives_the_stock_loss(where, outputs):
    stock = resnet()
    model = copy.deepcopy(stock)
    attachment = equal_streams(bf.attach(model, outputs=outputs, **where, **EQUAL))
    loss = attachment.wrap(nn.CrossEntropyLoss())(model(IMAGES), LABELS)
    torch.testing.assert_close(loss, F.cross_entropy(stock(IMAGES), LABELS))
    loss.backward()
    assert is_reached(attachment)


# PEFT


IN_PEFT = pytest.mark.filterwarnings("ignore::FutureWarning")  # PEFT asks transformers by an old name


def adapted(saved, **where):
    """A stock ViT, an attached one inside of LoRA, and what is attached to it."""
    peft = pytest.importorskip("peft")
    stock = vit().train()
    model = copy.deepcopy(stock)
    attachment = bf.attach(model, dropout=0.0, **where)
    config = peft.LoraConfig(target_modules=["q_proj", "v_proj"], modules_to_save=saved)
    return stock, peft.get_peft_model(model, config).train(), attachment


@IN_PEFT
def test_a_module_that_an_adapter_freezes_is_said_once():
    _, model, _ = adapted(["classifier"])
    said = said_of(step_of(model, lambda: model(pixel_values=IMAGES, labels=LABELS).loss), times=6)
    assert len(said) == 1


@IN_PEFT
def test_a_module_that_an_adapter_saves_is_trained():
    _, model, _ = adapted(["classifier", "batchformer"])
    trained = {name: p for name, p in model.named_parameters() if "batchformer" in name and p.requires_grad}
    assert trained
    step = step_of(model, lambda: model(pixel_values=IMAGES, labels=LABELS).loss)
    assert said_of(step, times=3) == []
    assert all(bool(p.grad.abs().sum() > 0) for p in trained.values())


@IN_PEFT
@pytest.mark.filterwarnings("ignore:batchformer")  # it is frozen
def test_a_classifier_that_an_adapter_copies_gets_both_streams_once():
    stock, model, attachment = adapted(["classifier"], before="classifier")
    features = stock.vit(IMAGES).last_hidden_state[:, 0]
    both = [stock.classifier(each) for each in (features, related(attachment, features))]
    expected = mean_of(F.cross_entropy, both, LABELS)
    for _ in range(2):
        torch.testing.assert_close(model(pixel_values=IMAGES, labels=LABELS).loss, expected)
