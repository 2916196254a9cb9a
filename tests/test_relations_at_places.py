"""Who attends to whom at the places of attached models, which stay as they were."""

import copy
import random

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
import transformers as T
from torch import nn
from transformers import BatchEncoding

import batchformer as bf
import stand_ins
from attach_nets import CLASSES, WIDTH, Blocks, Net, Normed, X, Y
from batchformer.modules import relations as of_encoder
from families.images import IMAGES, LABELS, TINY

N = 4


def timm_deit():
    return timm.models.VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=9, num_heads=4)


def torchvision_vit():
    return torchvision.models.VisionTransformer(32, 8, 9, 4, 32, 32, dropout=0.1)


def transformers_vit():
    return T.ViTForImageClassification(T.ViTConfig(**TINY, num_hidden_layers=9, image_size=32, patch_size=8))


def detr(kind, **more):
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 1, 1]}
    small = {
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32,
        "num_queries": 5,
        "dropout": 0.0,  # of N rows it drops others than of the 2N that a doubled batch has
        "attention_dropout": 0.0,
        "use_timm_backbone": False,
        "use_pretrained_backbone": False,
        "backbone": None,
        "backbone_config": T.ResNetConfig(**sizes, layer_type="basic", **more),
    }
    return getattr(T, f"{kind}ForObjectDetection")(getattr(T, f"{kind}Config")(**small))


def nested():
    mask = torch.zeros(N, 16, 16, dtype=torch.bool)
    mask[1, :, 10:] = True  # padding
    return stand_ins.Nested(torch.randn(N, 3, 16, 16), mask)


BEFORE = {"before": "fc"}
MODELS = {  # the model, options of attach(), what it takes
    "a classifier by path": (Normed, BEFORE, X),
    "a block by path": (Blocks, {"after": "blocks.1", "layout": "NLC"}, torch.randn(N, 3, WIDTH)),
    "DeiT of timm": (timm_deit, {}, (IMAGES,)),
    "ViT of torchvision": (torchvision_vit, {}, IMAGES),
    "ViT of transformers": (transformers_vit, {}, {"pixel_values": IMAGES, "labels": LABELS}),
    "Detr": (
        lambda: detr("Detr"),
        {},
        BatchEncoding(
            {"pixel_values": torch.randn(N, 3, 64, 96), "pixel_mask": torch.ones(N, 64, 96).long()}
        ),
    ),
    "DeformableDetr": (
        lambda: detr("DeformableDetr", out_features=["stage2", "stage3", "stage4"]),
        {},
        {"pixel_values": torch.randn(N, 3, 64, 96)},
    ),
    "DETR of its authors": (stand_ins.Detr, {}, nested()),
    "RIDE": (stand_ins.Ride, {}, torch.randn(N, 8)),
    "MoCo v2": (stand_ins.MoCo, {}, (torch.randn(N, 3, 8, 8), torch.randn(N, 3, 8, 8))),
    "CGE": (stand_ins.GraphFull, {}, ([torch.randn(N, WIDTH), LABELS, LABELS, LABELS],)),
}


def called(model, inputs):
    if isinstance(inputs, (dict, BatchEncoding)):
        return model(**inputs)
    return model(*(inputs if isinstance(inputs, tuple) else (inputs,)))


def arriving(attachment, inputs):
    """The samples that the module of the first place gets in training: [N, L, C]."""
    seen = []
    (module,) = attachment.inserted
    handle = module.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach().clone()))
    with torch.no_grad():
        called(attachment._model[0], inputs)
    handle.remove()
    x = seen[0]
    return module.tokens(x) if isinstance(module, bf.BatchFormerV2) else x[:, None]


def over_positions(module, tokens):
    """The mean of the matrices at each position."""
    return np.mean([bf.relations(module, tokens[:, each]) for each in range(tokens.shape[1])], axis=0)


def state(model):
    """All that a forward might change, by value."""
    tensors = {name: tensor.clone() for name, tensor in model.state_dict(keep_vars=False).items()}
    flags = [module.training for module in model.modules()]
    names = [sorted(vars(module)) for module in model.modules()]
    hooks = [[*module._forward_hooks, *module._forward_pre_hooks] for module in model.modules()]
    return tensors, (flags, names, hooks)


def assert_same(before, after):
    assert before[1] == after[1]
    for name, tensor in before[0].items():
        assert torch.equal(tensor, after[0][name]), name


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize(("make", "options", "inputs"), MODELS.values(), ids=MODELS)
def test_they_are_those_of_what_arrives_and_the_model_stays_as_it_was(make, options, inputs, training):
    model = make().train(training)
    attachment = bf.attach(model, **options)
    before, random_state = state(model), torch.get_rng_state()
    relations = bf.relations(attachment, inputs)
    assert_same(before, state(model))
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not any(parameter.grad is not None for parameter in model.parameters())
    attachment.train()  # in evaluation as in a training without dropout
    tokens = arriving(attachment, inputs)
    assert relations.shape == (4 if not isinstance(model, stand_ins.Ride) else 1, N, N)
    np.testing.assert_allclose(relations, over_positions(*attachment.inserted, tokens), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("outputs", ["both", "originals"])
def test_a_step_around_them_is_the_step_without(outputs):
    grads = []
    for asked in (False, True):
        torch.manual_seed(0)
        model = Normed()
        attachment = bf.attach(model, before="fc", outputs=outputs)
        criterion = attachment.wrap(F.cross_entropy)
        logits = model(X)
        if asked:
            bf.relations(attachment, X)
        loss = criterion(logits, Y)
        if asked:
            bf.relations(attachment, X[:3])
        loss.backward()
        grads.append([loss, *(parameter.grad for parameter in model.parameters()), *model.buffers()])
    assert all(map(torch.equal, *grads))


class Restless(nn.Module):
    """All that a forward may change: values in place and anew, attributes, and every random state."""

    def __init__(self):
        super().__init__()
        self.fc, self.momentum = nn.Linear(6, CLASSES), nn.Linear(6, 6).requires_grad_(False)
        self.register_buffer("queue", torch.zeros(3))
        self.register_buffer("steps", torch.zeros(1), persistent=False)
        self.kept, self.bank = None, torch.zeros(2)

    def forward(self, x):
        self.queue += 1
        self.steps = self.steps + 1
        self.bank.add_(1)
        self.momentum.weight.data = self.momentum.weight.data * 0.9
        self.momentum.bias.data.mul_(0.9)
        self.kept, self.new = x, random.random() + np.random.rand()
        return self.fc(F.dropout(x))


def test_what_a_forward_changes_is_put_back():
    model = Restless()
    attachment = bf.attach(model, before="fc", nhead=2)
    tensors, rest = state(model)
    before = (model.queue, model.steps, *model.momentum.parameters(), model.bank)
    values = [tensor.clone() for tensor in before]
    memory = [tensor.data_ptr() for tensor in before]
    states = random.getstate(), np.random.get_state()[1].tolist()
    assert bf.relations(attachment, X).shape == (2, N, N)
    assert_same((tensors, rest), state(model))
    after = (model.queue, model.steps, *model.momentum.parameters(), model.bank)
    assert all(new is old for new, old in zip(after, before, strict=True))
    assert all(map(torch.equal, after, values))
    assert [tensor.data_ptr() for tensor in after] == memory
    assert model.kept is None
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states


def test_a_forward_that_fails_leaves_the_model_as_it_was():
    model = Normed()
    attachment = bf.attach(model, before="fc")
    before = state(model)
    with pytest.raises(RuntimeError, match="shapes"):
        bf.relations(attachment, torch.randn(N, 7))
    assert_same(before, state(model))
    assert model(X).shape == (2 * N, CLASSES)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_the_originals_arrive_at_a_second_place(training):
    model = Blocks().train(training)
    places = {"after": ["blocks.0", "blocks.2"], "layout": "NLC"}
    attachment = bf.attach(model, **places, shared=False)
    x = torch.randn(N, 3, WIDTH)
    relations = [bf.relations(attachment, x, place) for place in (0, 1)]
    attachment.remove()
    for number, blocks in enumerate((1, 3)):
        tokens = nn.Sequential(*model.blocks[:blocks])(x)
        expected = over_positions(attachment.inserted[number], tokens)
        np.testing.assert_allclose(relations[number], expected, rtol=1e-4)


@pytest.mark.parametrize("norm_first", [False, True], ids=["post_norm", "pre_norm"])
@pytest.mark.parametrize("layout", ["NLC", "LNC", "NCHW", "NHWC"])
def test_a_position_is_chosen_and_the_mean_is_over_all(layout, norm_first, monkeypatch):
    monkeypatch.setattr(of_encoder, "_MOST_ELEMENTS", 2 * N * 2 * WIDTH)  # two positions at once
    is_map, shape = len(layout) == 4, {"N": N, "L": 15, "C": WIDTH, "H": 3, "W": 5}
    x = torch.randn([shape[axis] for axis in layout])
    attachment = bf.attach(
        nn.Sequential(nn.Identity()), after="0", layout=layout, dim=WIDTH, norm_first=norm_first
    )
    (module,) = attachment.inserted
    tokens = torch.einsum(f"{layout}->{'NHWC' if is_map else 'NLC'}", x).reshape(N, 15, WIDTH)
    np.testing.assert_allclose(
        bf.relations(attachment, x), over_positions(module, tokens), rtol=1e-5, atol=1e-7
    )
    expected = bf.relations(module, tokens[:, 13])
    for position in (13, (2, 3)) if is_map else (13,):
        np.testing.assert_array_equal(bf.relations(attachment, x, position=position), expected)


def test_of_several_layers_it_is_the_first():
    attachment = bf.attach(Net(), before="fc", num_layers=2)
    features = attachment._model[0].stem(X).relu()
    expected = bf.relations(attachment.inserted[0].encoder.layers[0], features)
    np.testing.assert_allclose(bf.relations(attachment, X), expected, rtol=1e-5)


def test_what_comes_behind_the_place_may_change_it_in_place():
    model = nn.Sequential(nn.Linear(6, WIDTH), nn.Sequential(nn.ReLU(inplace=True), nn.Linear(WIDTH, 5)))
    attachment = bf.attach(model, before="1")
    expected = bf.relations(attachment.inserted[0], model[0](X).detach())
    np.testing.assert_allclose(bf.relations(attachment, X), expected, rtol=1e-5)


def test_autocast_has_its_way_with_the_model_alone():
    attachment = bf.attach(Net(), before="fc")
    expected = bf.relations(attachment, X)
    with torch.autocast("cpu", torch.bfloat16):
        relations = bf.relations(attachment, X)
    assert relations.dtype == np.float32
    np.testing.assert_allclose(relations, expected, rtol=0.05)


class Stem(nn.Module):
    """A part of one's own, as torch 2.9 does not compile its layers by themselves."""

    def __init__(self, linear):
        super().__init__()
        self.linear = linear

    def forward(self, x):
        return self.linear(x)


def test_a_compiled_part_runs_without_its_graph():
    model = Net()
    model.stem = Stem(model.stem)
    attachment = bf.attach(model, before="fc")
    expected = bf.relations(attachment, X)
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    model.stem.compile(backend=backend)
    for _ in range(2):
        assert model(X).shape == (2 * N, CLASSES)
        assert len(graphs) == 1
        np.testing.assert_array_equal(bf.relations(attachment, X), expected)
    assert len(graphs) == 1


def test_a_copy_has_relations_of_its_own():
    model = Net()
    attachment = bf.attach(model, before="fc")
    copied = copy.deepcopy(model)
    nn.init.normal_(copied.stem.weight, std=3.0)
    relations = bf.relations(copied.batchformer, X)
    assert not np.allclose(relations, bf.relations(attachment, X))
    expected = bf.relations(copied.batchformer.inserted[0], copied.stem(X).relu())
    np.testing.assert_allclose(relations, expected, rtol=1e-5)


def test_an_algorithm_of_domainbed_predicts():
    algorithm = stand_ins.ERM()
    attachment = bf.attach(algorithm)
    x = torch.randn(N, 8)
    expected = bf.relations(attachment.inserted[0], algorithm.featurizer(x))
    np.testing.assert_allclose(bf.relations(attachment, x), expected, rtol=1e-5)
