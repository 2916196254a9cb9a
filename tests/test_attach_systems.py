"""The other systems, as small models with their names and calling conventions, against arithmetic by hand."""

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch import nn

import batchformer as bf
import stand_ins
from stand_ins import CLASSES, WIDTH

N = 6
X, Y = torch.randn(N, 8), torch.tensor([0, 1, 2, 1, 3, 0])
QUERIES, KEYS = torch.randn(2, 4, 3, 8, 8)
IMAGES, LABELS = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 1])


def related(attachment, features):
    """What the module makes of features [N, C]."""
    return attachment.inserted[0].encoder(features.unsqueeze(1)).squeeze(1)


def reaches_the_module(attachment):
    return all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in attachment.parameters())


# RIDE


def ride_step(model, criterion):
    """As RIDE's trainer: a view of the logits in extra_info, a meter after the loss."""
    output = model(X)
    if isinstance(output, dict):
        extra_info = {"logits": output["logits"].transpose(0, 1)}
        output = output["output"]
    else:
        extra_info = {"logits": model.backbone.logits}
    before = dict(extra_info)
    loss = criterion(output_logits=output, target=Y, extra_info=extra_info)
    assert extra_info == before or all(extra_info[k] is before[k] for k in before), (
        "changed the trainer's dict"
    )
    assert len(output.argmax(1)) == len(Y), "the meter"
    return loss


@pytest.mark.parametrize("returns_feat", [True, False], ids=["dict", "list of logits"])
def test_ride_gives_the_loss_of_both_streams_for_every_expert(returns_feat):
    model = stand_ins.Ride(returns_feat=returns_feat)
    attachment = bf.attach(model, "ride", dropout=0.0)
    criterion = attachment.wrap(stand_ins.RideLoss())
    features = model.backbone.stem(X)
    both = torch.cat([features, related(attachment, features)])
    logits = [F.normalize(both, dim=1) @ F.normalize(head.weight, dim=0) for head in model.backbone.linears]
    expected = stand_ins.RideLoss()(torch.stack(logits).mean(0), torch.cat([Y, Y]), {"logits": logits})
    for _ in range(2):
        loss = ride_step(model, criterion)
        torch.testing.assert_close(loss, expected)
    loss.backward()
    assert reaches_the_module(attachment)


def test_ride_as_published_has_the_related_stream_alone():
    model = stand_ins.Ride()
    attachment = bf.attach(model, "ride", two_stream=False, dropout=0.0)
    features = related(attachment, model.backbone.stem(X))
    logits = [
        F.normalize(features, dim=1) @ F.normalize(head.weight, dim=0) for head in model.backbone.linears
    ]
    expected = stand_ins.RideLoss()(torch.stack(logits).mean(0), Y, {"logits": logits})
    torch.testing.assert_close(ride_step(model, attachment.wrap(stand_ins.RideLoss())), expected)


@pytest.mark.parametrize(("width", "heads"), [(48, 1), (128, 1), (192, 4), (512, 4)])
def test_ride_has_the_official_heads_and_on_cifar_the_official_initialisation(width, heads):
    encoder = bf.attach(stand_ins.Ride(width), "ride").inserted[0].encoder
    assert encoder.self_attn.num_heads == heads
    if heads == 1:  # Kaiming: a normal distribution of standard deviation sqrt(2 / C)
        assert 0.9 < encoder.linear1.weight.std() / (2 / width) ** 0.5 < 1.1
    else:  # torch's: uniform
        assert encoder.linear1.weight.abs().max() <= width**-0.5


# Balanced Softmax


@pytest.mark.parametrize("parallel", [True, False], ids=["DataParallel", "plain"])
def test_balanced_softmax_gives_the_mean_over_both_streams(parallel):
    classifier = stand_ins.DotProductClassifier()
    fc = classifier.fc
    network = nn.DataParallel(classifier) if parallel else classifier
    attachment = bf.attach(network, "balanced_softmax", dropout=0.0)
    criterion = attachment.wrap(nn.CrossEntropyLoss())
    features = torch.randn(N, WIDTH, requires_grad=True)
    logits, memory = network(features, None)
    assert memory is None
    assert (logits.argmax(1) == Y).shape == Y.shape
    old, new = fc(features), fc(related(attachment, features))
    expected = (F.cross_entropy(old, Y) + F.cross_entropy(new, Y)) / 2
    torch.testing.assert_close(criterion(logits, Y), expected)


def test_balanced_softmax_as_published_weighs_the_sum_of_both_by_one_and_a_half_and_puts_the_related_first():
    network, seen = stand_ins.DotProductClassifier(), []
    attachment = bf.attach(network, "balanced_softmax", as_published=True, dropout=0.0)

    class Criterion(nn.CrossEntropyLoss):
        def forward(self, logits, labels):
            seen.append(logits)
            return super().forward(logits, labels)

    features = torch.randn(N, WIDTH)
    loss = attachment.wrap(Criterion())(network(features)[0], Y)
    old, new = network.fc(features), network.fc(related(attachment, features))
    torch.testing.assert_close(loss, 1.5 * (F.cross_entropy(old, Y) + F.cross_entropy(new, Y)))
    torch.testing.assert_close(seen[0], torch.cat([new, old]))
    network.eval()
    torch.testing.assert_close(Criterion()(network(features)[0], Y), F.cross_entropy(old, Y))


# MoCo and PaCo


def pooled(encoder, images):
    """The pooled features without the hooks on the pooling."""
    return encoder.conv1(images).relu().mean((2, 3))


def head(encoder, features):
    """The projection without the hooks on the whole of it."""
    return F.normalize(encoder.fc[2](encoder.fc[1](encoder.fc[0](features))), dim=1)


@pytest.mark.parametrize(
    ("pairings", "pairs"), {"all": ["oo", "or", "ro", "rr"], "aligned": ["oo", "rr"]}.items()
)
def test_moco_v2_pairs_queries_and_keys_of_the_streams(pairings, pairs):
    torch.manual_seed(4)
    model = stand_ins.MoCo()
    attachment = bf.attach(model, "moco_v2", pairings=pairings, dropout=0.0)
    queue = model.queue.clone()
    torch.manual_seed(5)
    logits, labels = model(QUERIES, KEYS)
    torch.manual_seed(5)
    order = torch.randperm(4)
    q, k = pooled(model.encoder_q, QUERIES), pooled(model.encoder_k, KEYS)
    queries = {"o": head(model.encoder_q, q), "r": head(model.encoder_q, related(attachment, q))}
    keys = {"o": head(model.encoder_k, k)}
    keys["r"] = head(model.encoder_k, related(attachment, k[order]))[order.argsort()]  # of the shuffled batch
    expected = torch.cat(
        [
            torch.cat([(queries[i] * keys[j]).sum(1, keepdim=True), queries[i] @ queue], 1) / 0.1
            for i, j in pairs
        ]
    )
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(model.queue[:, :8], torch.cat([keys["o"], keys["r"]]).T)
    assert int(model.queue_ptr) == 8
    F.cross_entropy(logits, labels).backward()
    assert reaches_the_module(attachment)


@pytest.mark.parametrize("preset", ["moco_v2", "moco_v3", "paco"])
def test_the_momentum_encoder_neither_averages_nor_freezes_the_module(preset):
    model = {"moco_v2": stand_ins.MoCo, "moco_v3": stand_ins.MoCoV3, "paco": stand_ins.PaCo}[preset]()
    attachment = bf.attach(model, preset)
    before = [p.clone() for p in attachment.parameters()]
    if preset == "moco_v2":
        model(QUERIES, KEYS)
    elif preset == "moco_v3":
        model(QUERIES, KEYS, 0.9)
    else:
        model(QUERIES, KEYS, LABELS)
    assert all(p.requires_grad for p in attachment.parameters())
    assert all(torch.equal(p, old) for p, old in zip(attachment.parameters(), before, strict=True))


@pytest.mark.parametrize("as_published", [False, True], ids=["trained", "as published"])
@pytest.mark.parametrize("pairings", ["all", "aligned"])
def test_moco_v3_takes_the_losses_of_the_pairings_each_with_its_own_negatives(pairings, as_published):
    model = stand_ins.MoCoV3()
    plain = copy.deepcopy(model)
    attachment = bf.attach(model, "moco_v3", pairings=pairings, as_published=as_published, dropout=0.0)
    loss = model(QUERIES, KEYS, 0.9)
    for base, momentum in zip(
        plain.base_encoder.parameters(), plain.momentum_encoder.parameters(), strict=True
    ):
        momentum.data = momentum.data * 0.9 + base.data * 0.1

    def streams(encoder, images, predictor=None):
        features = pooled(encoder, images)
        both = [encoder.fc(features), encoder.fc(related(attachment, features))]
        return [predictor(each) for each in both] if predictor else both

    losses = []
    for x, other in ((QUERIES, KEYS), (KEYS, QUERIES)):
        for i, q in enumerate(streams(plain.base_encoder, x, plain.predictor)):
            for j, k in enumerate(streams(plain.momentum_encoder, other)):
                if pairings == "all" or i == j:
                    losses.append(plain.contrastive_loss(q, k))
    expected = sum(losses) if as_published else 2 * sum(losses) / len(losses)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert reaches_the_module(attachment) is not as_published
    assert model.base_encoder.conv1.weight.grad.abs().sum() > 0


def test_paco_captures_both_streams_and_gets_labels_for_both():
    torch.manual_seed(4)
    model = stand_ins.PaCo()
    attachment = bf.attach(model, "paco", dropout=0.0)
    criterion = attachment.wrap(stand_ins.PaCoLoss())
    torch.manual_seed(5)
    features, labels, logits = model(QUERIES, KEYS, LABELS)
    assert (logits.argmax(1) == LABELS).shape == LABELS.shape, "the meter"
    loss = criterion(features, labels, logits)
    torch.manual_seed(5)
    order = torch.randperm(4)
    q, k = pooled(model.encoder_q, QUERIES), pooled(model.encoder_k, KEYS)
    both = torch.cat([q, related(attachment, q)])
    keys = torch.cat(
        [head(model.encoder_k, k), head(model.encoder_k, related(attachment, k[order]))[order.argsort()]]
    )
    expected = stand_ins.PaCoLoss()(
        torch.cat([head(model.encoder_q, both), keys, model.queue.T]),
        torch.cat([LABELS] * 4 + [model.queue_l]),
        model.linear(both),
    )
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert reaches_the_module(attachment)
    model.eval()
    torch.testing.assert_close(model(QUERIES), model.linear(pooled(model.encoder_q, QUERIES)))


# DomainBed and SWAD


@pytest.mark.parametrize("swad", [True, False], ids=["SWAD", "DomainBed"])
def test_domains_attend_to_one_another_and_the_update_takes_the_mean_over_both_streams(swad):
    algorithm = stand_ins.SwadERM() if swad else stand_ins.ERM()
    attachment = bf.attach(algorithm, "swad" if swad else "domainbed", dropout=0.0)
    algorithm.optimizer.add_param_group({"params": attachment.parameters()})
    xs, ys = X.chunk(3), Y.chunk(3)
    features = algorithm.featurizer(X)
    weight, bias = algorithm.classifier.weight, algorithm.classifier.bias
    logits = F.linear(torch.cat([features, related(attachment, features)]), weight, bias)
    expected = F.cross_entropy(logits, torch.cat([Y, Y])).item()
    before = [p.clone() for p in algorithm.parameters()]
    loss = (
        algorithm.update(x=[*xs], y=[*ys], step=3) if swad else algorithm.update([*zip(xs, ys, strict=True)])
    )
    assert loss["loss"] == pytest.approx(expected, rel=1e-5)
    assert not any(torch.equal(p, old) for p, old in zip(algorithm.parameters(), before, strict=True))


def test_a_copy_of_an_algorithm_updates_itself():
    algorithm = stand_ins.ERM()
    bf.attach(algorithm, "domainbed")
    other = copy.deepcopy(algorithm)
    other.update([(X, Y)])
    other.batchformer.remove()
    assert "update" not in vars(other)
    assert "update" in vars(algorithm)


def test_an_algorithm_that_takes_the_rows_apart_by_domain_is_refused():
    with pytest.raises(ValueError, match="for 'domainbed' featurizer, classifier and the update of ERM"):
        bf.attach(stand_ins.CORAL(), "domainbed")


# CGE


def test_cge_doubles_features_and_targets_before_everything_else():
    model = stand_ins.GraphFull()
    attachment = bf.attach(model, "cge", dropout=0.0)
    features = torch.randn(N, WIDTH)
    batch = [features, Y, Y, Y]
    loss, _ = model(batch)
    scores = torch.cat([features, related(attachment, features)]) @ model.pairs
    torch.testing.assert_close(loss, F.cross_entropy(scores, torch.cat([Y, Y])))
    assert len(batch[0]) == len(batch[3]) == N, "the caller's list"


# Vision transformers


@pytest.mark.parametrize("after", [None, [0, 5, 8]], ids=["official", "three"])
def test_a_vision_transformer_follows_the_authors_rule(after):
    """First insertion: cat([x, BF(x)]); later ones: split, BF on the second half, cat."""
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=CLASSES).double()
    plain = copy.deepcopy(model)
    attachment = bf.attach(model, after=after, dropout=0.0)
    encoder = attachment.inserted[0].encoder

    x = plain.patch_embed(IMAGES.double())
    x = plain.norm_pre(plain.pos_drop(plain._pos_embed(x)))
    for number, block in enumerate(plain.blocks):
        x = block(x)
        if number == (after or [8])[0]:
            x = torch.cat([x, encoder(x)])
        elif number in (after or []):
            x = torch.cat([x[:4], encoder(x[4:])])
    torch.testing.assert_close(model(IMAGES.double()), plain.forward_head(plain.norm(x)))


def test_mixup_distillation_ema_and_checkpointing_of_timm_work():
    model = timm.create_model("deit_tiny_distilled_patch16_224", img_size=32, num_classes=CLASSES)
    attachment = bf.attach(model)
    model.set_distilled_training(True)
    model.set_grad_checkpointing(True)
    ema = ModelEmaV3(model, decay=0.5)
    soft = F.one_hot(LABELS, CLASSES).float() * 0.9 + 0.02
    criterion = attachment.wrap(lambda outputs, y: sum(F.cross_entropy(each, y) for each in outputs))
    criterion(model(IMAGES), soft).backward()
    assert reaches_the_module(attachment)
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    optimizer = create_optimizer_v2(model, "adamw", lr=1e-3, weight_decay=0.05)
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    ours = dict(attachment.named_parameters())
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(names)
    assert {name for name, p in ours.items() if id(p) in decayed} == {
        n for n, p in ours.items() if p.dim() > 1
    }
    optimizer.step()
    ema.update(model)
    assert torch.equal(ema.module.eval()(IMAGES).isfinite().all(), torch.tensor(True))
    assert ema.module.batchformer is not attachment


def test_the_rows_of_a_vision_transformer_can_be_rejoined():
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=CLASSES)
    attachment = bf.attach(model, "vit", outputs="originals")
    logits = model(IMAGES)
    assert len(logits) == len(LABELS)
    attachment.wrap(nn.CrossEntropyLoss())(logits, LABELS).backward()
    assert reaches_the_module(attachment)
