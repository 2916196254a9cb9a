"""Losses that contrast the samples of a batch: the related copy of a sample is never a negative of it."""

import copy
import dataclasses
import itertools

import pytest
import torch
import torch.nn.functional as F
import transformers as T
from lightly.loss import BarlowTwinsLoss, NTXentLoss
from torch import nn

import batchformer as bf
from attach_nets import BOTH_MODES, N, Net, X, attached, plain, streams
from attach_oracle import EQUAL, assert_step, assert_stock_step, equal_streams, is_reached, refused, related
from families.contrastive import INPUTS, clip, siglip

VIEWS = torch.randn(2, N, 6, generator=torch.Generator().manual_seed(0))  # whatever was drawn before
PAIRINGS = {"all": [(0, 0), (0, 1), (1, 0), (1, 1)], "aligned": [(0, 0), (1, 1)]}
BOTH_PAIRINGS = pytest.mark.parametrize("pairings", PAIRINGS)


def nt_xent(first, second):
    views = F.normalize(torch.cat([first, second]))
    similarity = (views @ views.T / 0.5).fill_diagonal_(-torch.inf)
    return F.cross_entropy(similarity, torch.arange(len(views)).roll(len(first)))


def of_both_views(z):
    return nt_xent(*z.chunk(2))


def vicreg(first, second):
    spread = sum(F.relu(1 - (z.var(0) + 1e-4).sqrt()).mean() for z in (first, second))
    return F.mse_loss(first, second), spread


def byol(p1, p2, z1, z2):
    return -(F.cosine_similarity(p1, z2.detach()) + F.cosine_similarity(p2, z1.detach())).mean()


def mean_over(loss, model, attachment, pairings, views=VIEWS):
    both = [streams(model, attachment, view) for view in views]
    losses = [loss(both[0][i], both[1][j]) for i, j in PAIRINGS[pairings]]
    return sum(losses) / len(losses)


LOSSES = {
    "NT-Xent": nt_xent,
    "lightly's NT-Xent": NTXentLoss(),
    "Barlow Twins": BarlowTwinsLoss(),
    "VICReg, summed": lambda first, second: sum(vicreg(first, second)),
}


@BOTH_MODES
@BOTH_PAIRINGS
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_each_stream_of_a_view_is_paired_with_those_of_the_other(loss, pairings, outputs):
    model, attachment = attached(pairings=pairings, outputs=outputs)
    criterion = attachment.wrap(copy.deepcopy(loss), targets=[])
    expected = mean_over(loss, model, attachment, pairings)
    assert_step(criterion(*map(model, VIEWS)), expected, model, attachment)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_with_equal_streams_the_loss_is_that_of_the_stock_model(loss):
    stock = Net()
    model = copy.deepcopy(stock)
    attachment = equal_streams(bf.attach(model, before="fc", **EQUAL))
    wrapped = attachment.wrap(copy.deepcopy(loss), targets=[])
    assert_stock_step(wrapped(*map(model, VIEWS)), loss(*map(stock, VIEWS)), model, stock, attachment)


@BOTH_MODES
def test_one_tensor_of_both_views_is_judged_in_each_stream(outputs):
    model, attachment = attached(outputs=outputs)
    loss = attachment.wrap(of_both_views, targets=[])(model(VIEWS.flatten(0, 1)))
    both = streams(model, attachment, VIEWS.flatten(0, 1))
    assert_step(loss, sum(map(of_both_views, both)) / 2, model, attachment)


def test_two_views_out_of_one_batch_are_paired_as_of_two():
    model, attachment = attached(outputs="originals")
    loss = attachment.wrap(nt_xent, targets=[])(*model(VIEWS.flatten(0, 1)).chunk(2))
    both = [each.chunk(2) for each in streams(model, attachment, VIEWS.flatten(0, 1))]
    losses = [nt_xent(one[0], other[1]) for one, other in itertools.product(both, both)]
    assert_step(loss, sum(losses) / 4, model, attachment)


class Siamese(nn.Module):
    """SimSiam: both views in one forward, two outputs of each, one without a gradient."""

    def __init__(self):
        super().__init__()
        self.stem, self.head, self.predictor = nn.Linear(6, 16), nn.Linear(16, 5), nn.Linear(5, 5)

    def forward(self, first, second):
        z1, z2 = (self.head(self.stem(view)) for view in (first, second))
        return self.predictor(z1), self.predictor(z2), z1.detach(), z2.detach()


@pytest.mark.parametrize("outputs", ["both", "originals"])
def test_cosines_with_a_stopped_gradient_are_paired(outputs):
    model = Siamese()
    attachment = bf.attach(model, before="head", outputs=outputs, dropout=0.0)
    cosine = attachment.wrap(nn.CosineSimilarity(dim=1), targets=[])
    p1, p2, z1, z2 = model(*VIEWS)
    features = [[f, related(attachment, f)] for f in map(model.stem, VIEWS)]
    first, second = ([plain(model.head, each) for each in view] for view in features)
    losses = [
        byol(model.predictor(z1), model.predictor(z2), z1, z2) for z1, z2 in itertools.product(first, second)
    ]
    assert_step(-(cosine(p1, z2) + cosine(p2, z1)).mean(), sum(losses) / 4, model, attachment)


def test_what_comes_from_one_view_stays_in_one_stream():
    model, attachment = attached()
    z1, z2 = map(model, VIEWS)
    p1, p2 = 2 * z1, 2 * z2
    seen = []
    attachment.wrap(lambda p1, z1, z2, p2: seen.append((p1, z1, z2, p2)) or byol(p1, p2, z1, z2), targets=[])(
        p1, z1, z2, p2
    )
    assert len(seen) == 4
    assert all(torch.equal(p, 2 * z) and torch.equal(q, 2 * y) for p, z, y, q in seen)


def test_the_mean_is_taken_of_each_tensor_and_float_of_a_result():
    model, attachment = attached()

    def criterion(first, second):
        loss, spread = vicreg(first, second)
        return {
            "loss": loss,
            "terms": (spread, loss.item()),
            "name": "vicreg",
            "rows": torch.tensor(len(first)),
        }

    result = attachment.wrap(criterion, targets=[])(*map(model, VIEWS))
    assert_step(
        result["loss"],
        mean_over(lambda *z: vicreg(*z)[0], model, attachment, "all"),
        model,
        attachment,
    )
    assert result["terms"][1] == pytest.approx(result["loss"].item())
    assert (result["name"], result["rows"]) == ("vicreg", N)


class ByHand(nn.Module):
    def forward(self, z):
        z = F.normalize(z)
        return of_both_views(bf.original(z)) + 3 * of_both_views(bf.related(z))


@pytest.mark.parametrize("make", [ByHand, lambda: ByHand().forward], ids=["a module", "a function"])
@BOTH_MODES
def test_a_criterion_that_takes_the_streams_apart_gets_both(make, outputs):
    model, attachment = attached(outputs=outputs)
    views = VIEWS.flatten(0, 1)
    loss = attachment.wrap(make(), targets=[])(model(views))
    original, related = streams(model, attachment, views)
    assert_step(loss, of_both_views(original) + 3 * of_both_views(related), model, attachment)


def test_a_mean_over_samples_is_the_mean_over_both_streams():
    model, attachment = attached()

    def entropy(logits):
        return -(logits.softmax(1) * logits.log_softmax(1)).sum(1).mean()

    loss = attachment.wrap(entropy, targets=[])(model(X))
    assert_step(loss, entropy(torch.cat(streams(model, attachment, X))), model, attachment)


def test_the_state_of_a_criterion_is_that_of_a_step_of_the_stock_one():
    """A memory bank, which grows, and a centre, which moves."""
    torch.manual_seed(0)
    stock = Net()
    model = copy.deepcopy(stock)
    attachment = equal_streams(bf.attach(model, before="fc", **EQUAL))
    for make in (lambda: NTXentLoss(memory_bank_size=(16, 5)), BatchNormed, Counts):
        torch.manual_seed(3)
        theirs = make()
        ours = attachment.wrap(copy.deepcopy(theirs), targets=[])
        for _ in range(3):
            expected = theirs(*map(stock, VIEWS))
            loss = ours(*map(model, VIEWS))
            torch.testing.assert_close(loss, expected)
            loss.backward()
        for (name, buffer), other in zip(theirs.named_buffers(), ours.buffers(), strict=True):
            torch.testing.assert_close(other, buffer, msg=name)


class BatchNormed(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(5, affine=False)

    def forward(self, first, second):
        return (self.norm(first) * self.norm(second)).mean()


class Counts(nn.Module):
    """A centre that is replaced, and a tensor that is no buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("centre", torch.zeros(5))
        self.steps = torch.zeros(())

    def forward(self, first, second):
        loss = F.mse_loss(first - self.centre, second)
        self.centre = 0.9 * self.centre + 0.1 * second.detach().mean(0)
        self.steps += 1
        assert self.steps <= 3
        return loss


class Bank:
    """As it stands in many scripts: a ring with a pointer, in no module."""

    def __init__(self):
        self.rows, self.pointer, self.seen = torch.zeros(32, 5), 0, []

    def __call__(self, first, second):
        self.rows[self.pointer : self.pointer + len(second)] = second.detach()
        self.pointer = (self.pointer + len(second)) % len(self.rows)
        self.seen.append(len(second))
        return F.mse_loss(first, second) + self.rows.square().mean()


class BankInAModule(nn.Module):
    def __init__(self):
        super().__init__()
        self.bank = Bank()
        self.register_buffer("rows", torch.zeros(32, 5))
        self.pointer = 0

    forward = Bank.__call__

    @property
    def seen(self):
        return self.bank.seen


@pytest.mark.parametrize("make", [Bank, BankInAModule])
def test_numbers_and_lists_of_a_criterion_are_those_of_the_call_with_the_originals(make):
    model = Net()
    criterion = make()
    wrapped = bf.attach(model, before="fc", dropout=0.0).wrap(criterion, targets=[])
    for _ in range(3):
        wrapped(*map(model, VIEWS)).backward()
    assert criterion.pointer == 3 * N % 32
    rows = criterion.rows.any(dim=1)
    assert rows[: 3 * N].all()
    assert not rows[3 * N :].any()
    if make is Bank:
        assert criterion.seen == [N] * 3


def test_a_criterion_is_itself_again_when_the_attachment_is_removed():
    _, attachment = attached()
    criterion = attachment.wrap(NTXentLoss(), targets=[])
    with refused(ValueError, saying="not wrapped"):
        attachment.wrap(criterion, targets=[])
    attachment.remove()
    assert "forward" not in vars(criterion)
    assert not criterion._forward_pre_hooks


def test_the_forward_that_a_criterion_has_of_its_own_runs_and_comes_back():
    model, attachment = attached()
    criterion = NTXentLoss()
    of_its_class = criterion.forward
    own = criterion.forward = lambda *views: 100 * of_its_class(*views)
    views = [*map(model, VIEWS)]
    expected = attachment.wrap(lambda *views: own(*views), targets=[])(*views)
    torch.testing.assert_close(attachment.wrap(criterion, targets=[])(*views), expected)
    attachment.remove()
    assert criterion.forward is own


def test_an_attachment_is_removed_also_where_somebody_took_its_forward_out():
    model, attachment = attached()
    criterion = attachment.wrap(NTXentLoss(), targets=[])
    del criterion.forward
    attachment.remove()
    assert "batchformer" not in dict(model.named_children())
    assert not criterion._forward_pre_hooks


def test_a_wrapped_criterion_is_copied_and_called_without_doubled_outputs_as_it_is():
    model, attachment = attached()
    criterion = attachment.wrap(NTXentLoss(), targets=[])
    copied = copy.deepcopy(criterion)
    torch.testing.assert_close(copied(*map(model, VIEWS)), criterion(*map(model, VIEWS)))
    model.eval()
    torch.testing.assert_close(criterion(*map(model, VIEWS)), NTXentLoss()(*map(model, VIEWS)))


def test_autocast_gives_the_pairings_too():
    model, attachment = attached()
    with torch.autocast("cpu", torch.bfloat16):
        loss = attachment.wrap(nt_xent, targets=[])(*map(model, VIEWS))
    expected = mean_over(nt_xent, model, attachment, "all")
    torch.testing.assert_close(loss.float(), expected, rtol=0.05, atol=0.05)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch's compiler, at a graph break
def test_a_compiled_model_or_step_gives_the_pairings_too():
    model, attachment = attached()
    criterion = attachment.wrap(nt_xent, targets=[])
    expected = mean_over(nt_xent, model, attachment, "all")
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(criterion(*map(compiled, VIEWS)), expected)
    step = torch.compile(lambda *views: criterion(*map(model, views)), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(step(*VIEWS), expected)
    by_hand = attachment.wrap(ByHand().forward, targets=[])
    step = torch.compile(lambda x: by_hand(model(x)), backend="aot_eager")
    torch.testing.assert_close(step(VIEWS[0]), by_hand(model(VIEWS[0])))


SIMILARITIES = {
    "product": lambda a, b: a @ b.T,
    "scaled, turned": lambda a, b: (b @ a.T / 0.5).T,
    "cosine": lambda a, b: F.cosine_similarity(a[:, None], b[None], dim=-1),
    "einsum": lambda a, b: torch.einsum("nd,md->nm", a, b),
    "batched product": lambda a, b: (a[None] @ b[None].mT)[0],
    "sum of products": lambda a, b: (a.unsqueeze(1) * b).sum(2),
    "turned sum of products": lambda a, b: (b.unsqueeze(1) * a).sum(2).T,
    "distances": lambda a, b: -torch.cdist(a, b),
    "distances by products": lambda a, b: -torch.cdist(a, b, compute_mode="use_mm_for_euclid_dist"),
    "differences": lambda a, b: -(a[:, None] - b[None]).square().sum(-1),
}


@pytest.mark.parametrize("classes", [5, 2 * N], ids=["", "as wide as long"])
@pytest.mark.parametrize("between", SIMILARITIES.values(), ids=SIMILARITIES)
def test_similarities_of_both_streams_are_taken_apart_or_refused(between, classes):
    model, attachment = attached(Net(classes))
    first, second = map(model, VIEWS)
    labels = torch.arange(N)
    loss = attachment.wrap(F.cross_entropy, targets=[])(between(first, second), labels)
    expected = mean_over(lambda a, b: F.cross_entropy(between(a, b), labels), model, attachment, "all")
    assert_step(loss, expected, model, attachment)
    with refused(ValueError, saying="similarities between them"):
        attachment.wrap(F.cross_entropy)(between(first, second), labels)


def test_distances_to_prototypes_are_refused_with_targets():
    model, attachment = attached()
    queries, prototypes = model(torch.randn(6, 6)), model(torch.randn(2, 6))
    with refused(ValueError, saying="similarities between them"):
        attachment.wrap(F.cross_entropy)(-torch.cdist(queries, prototypes), torch.arange(6) % 2)


def test_what_several_heads_give_together_is_no_matrix_of_pairs():
    model, attachment = attached(Net(2 * N))
    outputs = model(X)
    gated = outputs * outputs.sigmoid() + outputs.mean(1, keepdim=True)
    loss = attachment.wrap(F.cross_entropy)(gated, torch.arange(N))
    torch.testing.assert_close(loss, F.cross_entropy(gated, torch.arange(N).repeat(2)))


def test_features_of_another_network_are_no_targets():
    model, attachment = attached()
    other = nn.Linear(6, 5)
    contrast = SIMILARITIES["product"]

    def info_nce(first, second):
        return F.cross_entropy(contrast(first, second), torch.arange(len(first)))

    outputs, features = model(VIEWS[0]), other(VIEWS[1])
    with refused(ValueError, saying="features of another network alone"):
        attachment.wrap(info_nce)(outputs, features)
    loss = attachment.wrap(info_nce, targets=[])(outputs, features)
    both = streams(model, attachment, VIEWS[0])
    torch.testing.assert_close(loss, sum(info_nce(each, features) for each in both) / 2)


# CLIP


def towers(make=clip, **options):
    torch.manual_seed(0)
    stock = make().train()
    model = copy.deepcopy(stock)
    return stock, model, bf.attach(model, dropout=0.0, **options)


def embeddings(model, attachment):
    """Of both streams of each tower, in float32, computed by hand."""
    number = len(attachment.inserted) - 1
    images = model.vision_model(INPUTS["pixel_values"]).pooler_output
    texts = model.text_model(INPUTS["input_ids"]).pooler_output
    both = [[images, related(attachment, images)], [texts, related(attachment, texts, number)]]
    heads = (model.visual_projection, model.text_projection)
    return [
        [F.normalize(F.linear(each, head.weight)) for each in pair]
        for pair, head in zip(both, heads, strict=True)
    ]


def clip_loss(logits):
    labels = torch.arange(len(logits))
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def clip_by_hand(model, attachment, pairings):
    images, texts = embeddings(model, attachment)
    losses = [clip_loss(model.logit_scale.exp() * texts[j] @ images[i].T) for i, j in PAIRINGS[pairings]]
    return sum(losses) / len(losses)


@BOTH_PAIRINGS
@pytest.mark.parametrize("width", [32, 48])
@pytest.mark.parametrize("return_dict", [True, False])
def test_clip_returns_the_mean_over_the_pairings(pairings, width, return_dict):
    _, model, attachment = towers(lambda: clip(width=width), pairings=pairings)
    assert len(attachment.inserted) == (1 if width == 32 else 2)
    output = model(**INPUTS, return_dict=return_dict)
    assert type(output) is (T.models.clip.modeling_clip.CLIPOutput if return_dict else tuple)
    assert_step(output[0], clip_by_hand(model, attachment, pairings), model, attachment)


@BOTH_PAIRINGS
def test_what_a_user_computes_from_the_outputs_of_clip_is_paired(pairings):
    _, model, attachment = towers(pairings=pairings)
    inputs = INPUTS | {"return_loss": None}

    def of_embeds(images, texts, scale):
        return clip_loss(scale * texts @ images.T)

    def of_logits(per_image, per_text):
        labels = torch.arange(N)
        return (F.cross_entropy(per_image, labels) + F.cross_entropy(per_text, labels)) / 2

    expected = clip_by_hand(model, attachment, pairings)
    output = model(**inputs)
    loss = attachment.wrap(of_embeds)(output.image_embeds, output.text_embeds, model.logit_scale.exp())
    assert_step(loss, expected, model, attachment)
    loss = attachment.wrap(of_logits)(output.logits_per_image, output.logits_per_text)
    torch.testing.assert_close(loss, expected)
    towers_alone = [
        F.normalize(model.get_image_features(INPUTS["pixel_values"]).pooler_output),
        F.normalize(model.get_text_features(INPUTS["input_ids"]).pooler_output),
    ]
    loss = attachment.wrap(of_embeds)(*towers_alone, model.logit_scale.exp())
    torch.testing.assert_close(loss, expected)
    with refused(RuntimeError, saying="a wrapped one"):
        clip_loss(model(**inputs).logits_per_text).backward()


def test_prompts_of_classes_are_as_many_as_they_are():
    """Fine-tuning by names of classes: N images, and a text for each class."""
    _, model, attachment = towers()
    labels = torch.tensor([0, 1, 2, 1])
    output = model(pixel_values=INPUTS["pixel_values"], input_ids=INPUTS["input_ids"][:3])
    loss = attachment.wrap(F.cross_entropy)(output.logits_per_image, labels)
    images, _ = embeddings(model, attachment)
    texts = model.text_model(INPUTS["input_ids"][:3]).pooler_output
    both = [
        F.normalize(model.text_projection.weight @ each.T, dim=0)
        for each in (texts, related(attachment, texts))
    ]
    losses = [
        F.cross_entropy(model.logit_scale.exp() * image @ text, labels)
        for image, text in itertools.product(images, both)
    ]
    assert_step(loss, sum(losses) / 4, model, attachment)


def test_a_tower_may_be_frozen():
    for make in (clip, siglip):
        _, model, attachment = towers(make)
        model.vision_model.requires_grad_(False)
        model(**INPUTS).loss.backward()
        assert is_reached(attachment)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch's compiler, at a graph break
def test_clip_is_compiled_checkpointed_and_copied_as_other_models():
    _, model, attachment = towers()
    expected = model(**INPUTS).loss
    torch.testing.assert_close(copy.deepcopy(model)(**INPUTS).loss, expected)
    checkpointing = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    getattr(model, f"{checkpointing}_checkpointing_enable")()
    model(**INPUTS).loss.backward()
    getattr(model, f"{checkpointing}_checkpointing_disable")()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for _ in range(2):
        loss = compiled(**INPUTS).loss
        torch.testing.assert_close(loss, expected)
        loss.backward()
    assert is_reached(attachment)
    hidden = torch.compile(model, backend="aot_eager", fullgraph=True)(**INPUTS | {"return_loss": None})
    with refused(ValueError, saying="of samples or of pairs"):
        attachment.wrap(F.cross_entropy)(hidden.logits_per_image, torch.arange(N))


def test_what_has_another_loss_is_no_clip_of_ours():
    class Another(T.CLIPModel):
        def forward(self, **inputs):
            return super().forward(**inputs)

    with refused(ValueError, saying="known family"):
        bf.attach(Another(clip().config))
    siglip_alone = siglip()
    del siglip_alone.vision_model.head
    with refused(ValueError, saying="known family"):
        bf.attach(siglip_alone)


@dataclasses.dataclass(frozen=True)
class Result:
    loss: torch.Tensor
    name: str


class Holder:
    def __init__(self, loss):
        self.loss = loss


def test_the_mean_is_taken_of_what_a_dataclass_holds_and_an_unknown_holder_is_refused():
    model, attachment = attached()
    loss = NTXentLoss()
    views = [*map(model, VIEWS)]
    expected = attachment.wrap(lambda *views: loss(*views), targets=[])(*views)
    result = attachment.wrap(lambda *views: Result(loss(*views), "contrast"), targets=[])(*views)
    torch.testing.assert_close(result.loss, expected)
    assert result.name == "contrast"
    with refused(TypeError, saying="got a Holder"):
        attachment.wrap(lambda *views: Holder(loss(*views)), targets=[])(*views)


def test_a_criterion_that_raises_in_a_later_call_keeps_its_buffers():
    calls = itertools.count()

    class Raising(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("queue", torch.zeros(3))

        def forward(self, z):
            self.queue.add_(1.0)
            if next(calls) > 0:
                raise KeyError("in a later call")
            return z.sum()

    model, attachment = attached()
    criterion = attachment.wrap(Raising(), targets=[])
    queue = criterion.queue
    with pytest.raises(KeyError):
        criterion(model(VIEWS[0]))
    assert criterion.queue is queue
    assert torch.equal(queue, torch.ones(3))


def test_a_wrapper_that_somebody_put_around_its_forward_stays():
    model, attachment = attached()
    criterion = attachment.wrap(NTXentLoss(), targets=[])
    ours = criterion.forward
    theirs = criterion.forward = lambda *views: 2 * ours(*views)
    attachment.remove()
    assert criterion.forward is theirs
    views = [*map(model, VIEWS)]
    torch.testing.assert_close(criterion(*views), 2 * NTXentLoss()(*views))
