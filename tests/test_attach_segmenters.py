"""Models that segment by masks: streams that differ, labels as loaders give them, and what is refused."""

import copy

import pytest
import torch

import batchformer as bf
from attach_oracle import EQUAL, equal_streams, is_reached, refused
from families import segmenters
from families.images import N
from families.segmenters import CASES, INPUTS, SIZE, TEXTS

HEADS = {name: case for name, case in CASES.items() if case.criterion is None}
KEYS = ("mask_labels", "class_labels")


def loss_of(model, inputs):
    torch.manual_seed(1)
    return model(**copy.deepcopy(inputs)).loss.squeeze()


@pytest.mark.parametrize("case", HEADS.values(), ids=HEADS)
def test_the_loss_is_the_mean_over_streams_that_differ(case):
    stock = case.make().train()
    both, alone = copy.deepcopy(stock), copy.deepcopy(stock)
    attachment = bf.attach(both, dropout=0.0)
    for parameter in attachment.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    bf.attach(alone, dropout=0.0, two_stream=False).load_state_dict(attachment.state_dict())
    original, related = loss_of(stock, case.inputs), loss_of(alone, case.inputs)
    assert (original - related).abs() > 1e-3
    torch.testing.assert_close(loss_of(both, case.inputs), (original + related) / 2)


@pytest.mark.parametrize("collate", [tuple, torch.stack])
@pytest.mark.parametrize("make", [segmenters.mask2former, lambda: segmenters.maskformer(segmenters.swin)])
def test_masks_and_classes_are_of_images_in_a_tuple_and_in_a_tensor_too(make, collate):
    inputs = INPUTS | {key: collate(INPUTS[key]) for key in KEYS}
    stock = make().train()
    model = copy.deepcopy(stock)
    attachment = equal_streams(bf.attach(model, **EQUAL))
    loss = loss_of(model, inputs)
    torch.testing.assert_close(loss, loss_of(stock, INPUTS))
    loss.backward()
    assert is_reached(attachment)


def test_a_batch_of_one_image_is_not_taken_for_its_own_negative():
    inputs = {key: value[:1] for key, value in (INPUTS | TEXTS).items()}
    stock = segmenters.oneformer().train()
    model = copy.deepcopy(stock)
    equal_streams(bf.attach(model, **EQUAL))
    torch.testing.assert_close(loss_of(model, inputs), loss_of(stock, inputs))


def test_a_copy_contrasts_by_itself_and_the_original_has_its_loss_back():
    stock = segmenters.oneformer().train()
    model = copy.deepcopy(stock)
    attachment = equal_streams(bf.attach(model, **EQUAL))
    copied = copy.deepcopy(model)
    attachment.remove()
    assert "loss_contrastive" not in vars(model.criterion)
    inputs = INPUTS | TEXTS
    torch.testing.assert_close(loss_of(copied, inputs), loss_of(stock, inputs))
    copied.batchformer.remove()
    assert "loss_contrastive" not in vars(copied.criterion)
    assert torch.equal(loss_of(copied, inputs), loss_of(stock, inputs))


def test_oneformer_encodes_the_texts_of_an_image_once():
    model = segmenters.oneformer().train()
    bf.attach(model)
    seen = []
    model.model.text_mapper.text_encoder.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    loss_of(model, INPUTS | TEXTS)
    assert seen == [TEXTS["text_inputs"].shape[:2].numel()]


def test_oneformer_without_texts_has_no_contrastive_term():
    stock = segmenters.oneformer(is_training=False).train()
    model = copy.deepcopy(stock)
    equal_streams(bf.attach(model, **EQUAL))
    inputs = INPUTS | {"task_inputs": TEXTS["task_inputs"]}
    try:
        expected = loss_of(stock, inputs)
    except AttributeError:
        pytest.skip("OneFormer of transformers before 5.23 has no loss without texts")
    torch.testing.assert_close(loss_of(model, inputs), expected)


@pytest.mark.parametrize("after", [9, [10], "layers.9", None])
def test_eomt_has_both_streams_before_its_queries(after):
    model = segmenters.eomt(num_blocks=3 if after is None else 2)
    with refused(ValueError, saying="block"):
        bf.attach(model, after=after)


def test_eomt_takes_further_blocks_behind_the_queries():
    stock = segmenters.eomt().train()
    model = copy.deepcopy(stock)
    equal_streams(bf.attach(model, after=[3, 9], **EQUAL))
    torch.testing.assert_close(loss_of(model, INPUTS), loss_of(stock, INPUTS))


def test_eomt_returns_the_originals_alone_and_keeps_the_loss_of_both_streams():
    both = segmenters.eomt().train()
    originals = copy.deepcopy(both)
    attachment = bf.attach(both, dropout=0.0)
    bf.attach(originals, outputs="originals", dropout=0.0).load_state_dict(attachment.state_dict())
    expected, output = (model(**copy.deepcopy(INPUTS)) for model in (both, originals))
    assert torch.equal(output.masks_queries_logits, expected.masks_queries_logits[:N])
    torch.testing.assert_close(loss_of(originals, INPUTS), loss_of(both, INPUTS))


def test_a_block_of_the_pixel_decoder_is_named_by_its_index():
    model = segmenters.mask2former()
    with refused(ValueError, saying="after=1"):
        bf.attach(model, after="model.pixel_level_module.decoder.encoder.layers.1")
    bf.attach(model, after=1)


def test_a_segmenter_without_labels_in_training_is_not_trained_on_one_stream():
    model = segmenters.mask2former().train()
    bf.attach(model)
    with refused(RuntimeError, saying="wrapped"):
        model(torch.randn(2, 3, SIZE, SIZE)).masks_queries_logits.sum().backward()
