"""Detectors of transformers: what the table of families does not measure.

There both streams are equal; here the second one is what torch's layer makes of the first.
"""

import copy

import pytest
import torch
import transformers as T
from torch import nn

import batchformer as bf
from attach_oracle import EQUAL, assert_stock_step, equal_streams, refused, related
from families import detectors
from families.detectors import BATCH, IMAGES, LABELS, MASK, N

HYBRID_LAYER, PROJECTION = "model.encoder.aifi.0.layers.0", "model.backbone.projector.scale_layers.0"
BACKBONES = {
    "TableTransformer": "model.backbone.conv_encoder.model",
    "DabDetr": "model.backbone.conv_encoder.model",
    "RTDetr": "model.backbone.model",
    "DFine": "model.backbone.model",
    "Deimv2": "model.conv_encoder.model",
    "Deimv2 lite": "model.conv_encoder.model",
    "LwDetr": "model.backbone.backbone.embeddings",
    "RfDetr": "model.backbone.backbone.embeddings",
}


@pytest.mark.parametrize(("name", "backbone"), BACKBONES.items(), ids=BACKBONES)
def test_the_backbone_sees_every_image_once(name, backbone):
    model, images = detectors.CASES[name].make(), []
    model.get_submodule(backbone).register_forward_pre_hook(lambda module, args: images.append(args[0]))
    bf.attach(model, wrapped=False)
    assert len(model(pixel_values=IMAGES, pixel_mask=MASK).logits) == 2 * N
    assert torch.equal(*images, IMAGES)


def lw_detr():
    return detectors.lw_detr(scales=[2.0])


@pytest.mark.parametrize(
    ("make", "place"),
    [(lambda: detectors.hybrid("RTDetr"), HYBRID_LAYER), (lw_detr, PROJECTION)],
    ids=["RTDetr", "LwDetr"],
)
def test_the_second_stream_is_the_stock_model_of_related_tokens(make, place):
    model = make()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()  # its statistics would be of both streams
    stock = copy.deepcopy(model)
    attachment = bf.attach(model, wrapped=False, dropout=0.0)

    def relate(module, args, output):
        tokens = output if output.dim() == 3 else output.flatten(2).transpose(1, 2)  # [N, L, C]
        y = related(attachment, tokens)
        return y if output.dim() == 3 else y.transpose(1, 2).reshape(output.shape)

    batch = {"pixel_values": IMAGES, "pixel_mask": MASK}
    outputs, first = model(**batch), stock(**batch)
    stock.get_submodule(place).register_forward_hook(relate)
    second = stock(**batch)
    for name in ("logits", "pred_boxes"):
        expected = torch.cat([first[name], second[name]])
        torch.testing.assert_close(outputs[name], expected, rtol=1e-4, atol=1e-5)
    assert not torch.equal(first.logits, second.logits)


def test_rf_detr_segments_both_streams():
    """Its matcher draws as many points as there are images, so the stock model gets them twice by hand."""
    model = detectors.rf_detr("ForInstanceSegmentation")
    stock = copy.deepcopy(model)
    attachment = equal_streams(bf.attach(model, **EQUAL))
    torch.manual_seed(1)
    outputs = model(**BATCH)
    torch.manual_seed(1)
    twice = {"pixel_values": torch.cat([IMAGES, IMAGES]), "pixel_mask": torch.cat([MASK, MASK])}
    expected = stock(**twice, labels=LABELS + LABELS)
    torch.testing.assert_close(outputs.pred_masks, expected.pred_masks)
    assert_stock_step(outputs.loss, expected.loss, model, stock, attachment)


def test_denoising_queries_are_of_both_streams():
    model = detectors.hybrid("RTDetr", num_denoising=6)
    bf.attach(model)
    outputs = model(**BATCH)
    assert len(outputs.denoising_meta_values["dn_positive_idx"]) == 2 * N
    groups = outputs.denoising_meta_values["dn_num_group"]
    counts = [groups * count for count in detectors.COUNTS]
    assert [len(each) for each in outputs.denoising_meta_values["dn_positive_idx"]] == counts + counts


def test_a_layer_of_a_hybrid_encoder_by_its_path_is_refused():
    with refused(ValueError, saying="after=1"):
        bf.attach(detectors.hybrid("RTDetr"), after="model.encoder.aifi.0.layers.1")


def test_a_hybrid_encoder_without_layers_is_refused():
    with refused(ValueError, saying="has 0 blocks"):
        bf.attach(detectors.hybrid("RTDetr", encoder_layers=0))


class Renamed(nn.Module):
    """A model of one's own around a detector."""

    def __init__(self):
        super().__init__()
        self.detector = detectors.detr("DabDetr")

    def forward(self, x):
        return self.detector(x).logits


def test_a_model_whose_images_have_another_name_is_refused():
    model = Renamed().train()
    bf.attach(model, wrapped=False)
    with refused(ValueError, saying="of that name"):
        model(IMAGES)


@pytest.mark.parametrize("name", ["GroundingDino", "MMGroundingDino", "OmDetTurbo"])
def test_detectors_that_pair_images_with_texts_are_not_recognised(name):
    with torch.device("meta"):
        model = getattr(T, f"{name}ForObjectDetection")(getattr(T, f"{name}Config")())
    with refused(ValueError, saying="known family"):
        bf.attach(model)
