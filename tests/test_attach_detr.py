"""The DETR family against the official two-stream arithmetic, written down a second time here.

The first stream is the stock network's. The second is the same network with what torch's own encoder layer,
over the batch at every position, makes of the tokens at each insertion. Then the outputs of both are put one
behind the other, and go to the criterion with the targets twice.
"""

import copy

import pytest
import torch
import transformers
from torch import nn

import batchformer as bf
import stand_ins

N = 3


def official_encoders(attachment: bf.Attachment) -> list[nn.Module]:
    """torch.nn.TransformerEncoderLayer(C, 4, C) with the weights of what is inserted."""
    encoders = []
    for module in attachment.inserted:
        encoder = nn.TransformerEncoderLayer(module.dim, 4, module.dim, dropout=0.0).double()
        encoder.load_state_dict(module.encoder.state_dict())
        encoders.append(encoder)
    return encoders


def second_stream(stock: nn.Module, layers: list[nn.Module], encoders: list[nn.Module], layout: str) -> None:
    """Put an encoder over the batch behind each layer of a stock network."""

    def insert(encoder):
        def hook(layer, args, output):
            tokens = output[0] if isinstance(output, tuple) else output
            over_batch = tokens.transpose(0, 1) if layout == "LNC" else tokens  # [N, L, C]
            related = encoder(over_batch)
            related = related.transpose(0, 1) if layout == "LNC" else related
            return (related, *output[1:]) if isinstance(output, tuple) else related

        return hook

    for number, layer in enumerate(layers):
        layer.register_forward_hook(insert(encoders[number if len(encoders) > 1 else 0]))


def compare(model, forward, layers_of, layout, after, shared, loss_of):
    """Loss, outputs and gradients with the attachment, and by the official arithmetic."""
    model = model.double().train()
    plain = copy.deepcopy(model)
    attachment = bf.attach(model, after=after, shared=shared, wrapped=False, dropout=0.0)
    encoders = official_encoders(attachment)
    indices = [0] if after is None else after

    actual = forward(model)
    loss = loss_of(attachment, actual)
    loss.backward()

    related = copy.deepcopy(plain)
    first = forward(plain)
    second_stream(related, [layers_of(related)[i] for i in indices], encoders, layout)
    second = forward(related)
    both = {name: torch.cat([first[name], second[name]]) for name in first}
    expected = loss_of(None, both)
    expected.backward()

    assert len(actual["pred_logits"]) == 2 * N
    for name in both:
        torch.testing.assert_close(actual[name], both[name], rtol=0, atol=1e-10)
    assert abs(loss - expected) < 1e-6
    assert abs(loss - expected) < 1e-10 * abs(expected)
    for module, encoder in zip(attachment.inserted, encoders, strict=True):
        for (name, p), q in zip(module.encoder.named_parameters(), encoder.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, rtol=0, atol=1e-9, msg=name)
    parameters = zip(plain.named_parameters(), related.parameters(), strict=True)
    for (name, p), q in parameters:  # each stream has a copy of its own here
        grads = [each.grad for each in (p, q) if each.grad is not None]
        if grads:
            torch.testing.assert_close(
                model.get_parameter(name).grad, sum(grads), rtol=0, atol=1e-8, msg=name
            )

    model.eval()
    assert all(torch.equal(value, forward(plain.eval())[name]) for name, value in forward(model).items())
    attachment.remove()
    assert model.state_dict().keys() == plain.state_dict().keys()


# In their authors' code


def nested():
    mask = torch.zeros(N, 16, 16, dtype=torch.bool)
    mask[1, :, 10:] = mask[2, 12:] = True  # padding
    return stand_ins.Nested(torch.randn(N, 3, 16, 16).double(), mask)


STOCK = {
    "DETR": (stand_ins.Detr, lambda m: m.transformer.encoder.layers, "LNC"),
    "DETR panoptic": (stand_ins.DetrSegm, lambda m: m.detr.transformer.encoder.layers, "LNC"),
    "Deformable DETR": (stand_ins.DeformableDetr, lambda m: m.transformer.encoder.layers, "NLC"),
}
INSERTIONS = {
    "official": (None, True),
    "every layer": ([0, 1, 2], True),
    "two apart": ([0, 2], False),
    "a later one": ([1], True),
}


@pytest.mark.parametrize(("after", "shared"), INSERTIONS.values(), ids=INSERTIONS)
@pytest.mark.parametrize(("make", "layers_of", "layout"), STOCK.values(), ids=STOCK)
def test_stock_networks_give_the_loss_of_the_official_arithmetic(make, layers_of, layout, after, shared):
    samples = nested()
    labels = torch.randint(stand_ins.CLASSES, (N, stand_ins.QUERIES))
    targets = [{"labels": each, "boxes": torch.rand(stand_ins.QUERIES, 4).double()} for each in labels]

    def loss_of(attachment, outputs):
        criterion = stand_ins.SetCriterion()
        if attachment is None:
            losses = criterion(outputs, targets + targets)
        else:
            losses = attachment.wrap(criterion)(outputs, targets)
        return sum(losses[name] * criterion.weight_dict[name] for name in losses)

    compare(make(), lambda model: model(samples), layers_of, layout, after, shared, loss_of)


def test_the_backbone_sees_every_image_once():
    model, rows = stand_ins.Detr(), []
    model.backbone[0].register_forward_hook(lambda module, args, output: rows.append(len(output)))
    bf.attach(model, "detr")
    assert len(model.double()(nested())["pred_logits"]) == 2 * N
    assert rows == [N]


class OtherLayer(stand_ins.EncoderLayer):
    """An encoder layer of somebody's own, with an argument that nobody knows."""

    def forward(self, src, src_mask=None, src_key_padding_mask=None, pos=None, scale=1.0):
        return super().forward(src, src_mask, src_key_padding_mask, pos)


@pytest.mark.parametrize("known", [True, False], ids=["stock layers", "other layers"])
def test_layers_up_to_the_insertion_run_on_the_originals_alone_if_their_arguments_are_known(known):
    model, rows = stand_ins.Detr(), []
    if not known:
        for layer in model.transformer.encoder.layers:
            layer.__class__ = OtherLayer
    for layer in model.transformer.encoder.layers:
        layer.norm1.register_forward_hook(lambda module, args, output: rows.append(output.shape[1]))
    attachment = bf.attach(model.double(), after=1, dropout=0.0)
    outputs = model(nested())
    assert rows == ([N, N, 2 * N] if known else [2 * N] * 3)
    assert len(outputs["pred_logits"]) == 2 * N
    attachment.eval()
    assert len(model(nested())["pred_logits"]) == N


def test_other_layers_give_the_same_as_stock_layers():
    model, samples = stand_ins.Detr().double(), nested()
    other = copy.deepcopy(model)
    for layer in other.transformer.encoder.layers:
        layer.__class__ = OtherLayer
    attachments = [bf.attach(each, after=1, dropout=0.0) for each in (model, other)]
    attachments[1].load_state_dict(attachments[0].state_dict())
    actual, expected = (each(samples)["pred_logits"] for each in (other, model))
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


# In transformers


def config(kind, **changed):
    backbone = transformers.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16, 24, 32],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=changed.pop("out_features", ["stage1", "stage2", "stage3", "stage4"]),
    )
    small = {
        "use_timm_backbone": False,
        "use_pretrained_backbone": False,
        "backbone": None,
        "backbone_config": backbone,
        "d_model": 32,
        "encoder_layers": 3,
        "decoder_layers": 2,
        "encoder_attention_heads": 8,
        "decoder_attention_heads": 8,
        "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32,
        "num_queries": 6,
        "num_labels": 5,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "activation_dropout": 0.0,
    }
    return getattr(transformers, f"{kind}Config")(**(small | changed))


DEFORMABLE = {"out_features": ["stage2", "stage3", "stage4"], "num_feature_levels": 4}
TRANSFORMERS = {
    "Detr": ("DetrForObjectDetection", "Detr", {}),
    "Detr segmentation": ("DetrForSegmentation", "Detr", {}),
    "ConditionalDetr": ("ConditionalDetrForObjectDetection", "ConditionalDetr", {}),
    "ConditionalDetr segmentation": ("ConditionalDetrForSegmentation", "ConditionalDetr", {}),
    "DeformableDetr, one level": (
        "DeformableDetrForObjectDetection",
        "DeformableDetr",
        {"out_features": ["stage4"], "num_feature_levels": 1},
    ),
    "DeformableDetr, four levels": ("DeformableDetrForObjectDetection", "DeformableDetr", DEFORMABLE),
    "DeformableDetr, refined": (
        "DeformableDetrForObjectDetection",
        "DeformableDetr",
        DEFORMABLE | {"with_box_refine": True},
    ),
    "DeformableDetr, two stages": (
        "DeformableDetrForObjectDetection",
        "DeformableDetr",
        DEFORMABLE | {"with_box_refine": True, "two_stage": True, "two_stage_num_proposals": 6},
    ),
}


def inner(model):
    """The encoder-decoder inside of the heads."""
    return next(m for m in model.modules() if type(m).__name__.endswith("DetrModel"))


@pytest.mark.parametrize(("after", "shared"), list(INSERTIONS.values())[:3], ids=list(INSERTIONS)[:3])
@pytest.mark.parametrize(("head", "kind", "changed"), TRANSFORMERS.values(), ids=TRANSFORMERS)
def test_transformers_networks_give_the_outputs_of_the_official_arithmetic(
    head, kind, changed, after, shared
):
    model = getattr(transformers, head)(config(kind, **changed))
    images, mask = torch.randn(N, 3, 64, 64).double(), torch.ones(N, 64, 64, dtype=torch.long)
    mask[2, :, 48:] = 0  # padding

    def forward(model):
        outputs = model(pixel_values=images, pixel_mask=mask)
        names = {"pred_logits": "logits", "pred_boxes": "pred_boxes", "pred_masks": "pred_masks"}
        return {name: outputs[theirs] for name, theirs in names.items() if theirs in outputs}

    def loss_of(attachment, outputs):
        return sum(value.square().mean() for value in outputs.values())

    compare(model, forward, lambda m: inner(m).encoder.layers, "NLC", after, shared, loss_of)


@pytest.mark.parametrize("auxiliary", [False, True], ids=["plain", "auxiliary"])
@pytest.mark.parametrize(("head", "kind", "changed"), TRANSFORMERS.values(), ids=TRANSFORMERS)
def test_transformers_compute_the_loss_of_both_streams(head, kind, changed, auxiliary):
    """The loss that the model returns is its own loss of both streams' outputs, for the labels twice."""
    model = getattr(transformers, head)(config(kind, auxiliary_loss=auxiliary, **changed)).train()
    attachment = bf.attach(model, dropout=0.0)
    images = torch.randn(N, 3, 64, 64)
    labels = [
        {
            "class_labels": torch.tensor([1, 2]),
            "boxes": 0.3 + 0.2 * torch.rand(2, 4),
            "masks": (torch.rand(2, 64, 64) > 0.5).float(),
        }
        for _ in range(N)
    ]
    seen = []
    loss_function = model.loss_function
    model.loss_function = lambda logits, labels, *rest: (
        seen.append((logits, labels)) or loss_function(logits, labels, *rest)
    )
    outputs = model(images, labels=labels)
    assert outputs.loss.isfinite()
    assert [each["boxes"] for each in seen[0][1]] == [each["boxes"] for each in labels + labels]
    outputs.loss.backward()
    assert len(outputs.logits) == 2 * N
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in attachment.parameters())
    model.eval()
    assert len(model(images, labels=labels).logits) == N


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")
@pytest.mark.parametrize("kind", ["Detr", "DeformableDetr"])
def test_gradient_checkpointing_of_transformers_gives_the_same_gradients(kind):
    model = getattr(transformers, f"{kind}ForObjectDetection")(config(kind)).train()
    bf.attach(model, after=[0, 1], wrapped=False, dropout=0.0)
    images, grads = torch.randn(N, 3, 64, 64), []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()  # its name in all releases
        model.zero_grad()
        model(images).logits.square().sum().backward()
        grads.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    assert all(torch.equal(grads[0][name], grads[1][name]) for name in grads[0])


@pytest.mark.parametrize("kind", ["Detr", "ConditionalDetr", "DeformableDetr"])
def test_transformers_train_under_autocast(kind):
    model = getattr(transformers, f"{kind}ForObjectDetection")(config(kind)).train()
    attachment = bf.attach(model)
    labels = [{"class_labels": torch.tensor([1]), "boxes": torch.full((1, 4), 0.4)}] * N
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(torch.randn(N, 3, 64, 64), labels=labels).loss
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in attachment.parameters())


def test_what_transformers_save_is_the_stock_model(tmp_path):
    model = transformers.DetrForObjectDetection(config("Detr"))
    attachment = bf.attach(model)
    model.save_pretrained(tmp_path, state_dict=attachment.stock_state_dict())
    stock, info = transformers.DetrForObjectDetection.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    images = torch.randn(N, 3, 64, 64)
    assert torch.equal(stock.eval()(images).logits, model.eval()(images).logits)


def test_positional_arguments_of_transformers_are_doubled_as_well():
    model = transformers.DetrForObjectDetection(config("Detr")).train()
    bf.attach(model, wrapped=False, dropout=0.0)
    images, mask = torch.randn(N, 3, 64, 64), torch.ones(N, 64, 64, dtype=torch.long)
    assert torch.equal(model(images, mask).logits, model(pixel_values=images, pixel_mask=mask).logits)


def test_past_the_backbone_transformers_are_refused_in_training():
    model = transformers.DetrForObjectDetection(config("Detr")).train()
    bf.attach(model)
    with pytest.raises(ValueError, match="inputs_embeds: expected None in training"):
        model(torch.randn(N, 3, 64, 64), inputs_embeds=torch.randn(N, 4, 32))
    with pytest.raises(RuntimeError, match="got one of a part of it"):
        model.model(torch.randn(N + 2, 3, 64, 64))


def test_the_initialisation_is_detrs():
    for model in (stand_ins.Detr(), transformers.DetrForObjectDetection(config("Detr"))):
        encoder = bf.attach(model).inserted[0].encoder
        channels = encoder.linear1.in_features
        bound = (6 / (channels + 3 * channels)) ** 0.5  # in_proj is one matrix [3C, C]
        assert 0.95 * bound < encoder.self_attn.in_proj_weight.abs().max() <= bound
        bound = (6 / (2 * channels)) ** 0.5  # 1.7 times that of nn.Linear
        assert 0.95 * bound < encoder.linear1.weight.abs().max() <= bound
