"""The names of attach(): those of now, those of before, and those that nobody takes."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import batchformer as bf
import stand_ins
from attach_nets import BOTH_MODES, WIDTH, N, Net, X, Y, attached, plain, streams
from attach_oracle import assert_step, mean_of, refused, related


@BOTH_MODES
def test_the_option_says_whose_rows_the_model_returns(outputs):
    model, attachment = attached(outputs=outputs)
    logits = model(X)
    assert len(logits) == (2 * N if outputs == "both" else N)
    expected = mean_of(F.cross_entropy, streams(model, attachment, X), Y)
    assert_step(attachment.wrap(nn.CrossEntropyLoss())(logits, Y), expected, model, attachment)


def test_outputs_that_do_not_exist_are_refused():
    with refused(ValueError, saying="originals"):
        attached(outputs="related")


def test_the_old_name_of_the_outputs_works_and_says_the_new_one():
    with pytest.warns(DeprecationWarning, match="outputs"):
        model, _ = attached(rejoin=True)
    assert len(model(X)) == N


@pytest.mark.parametrize(
    "make", [lambda **options: attached(**options)[1].inserted[0], lambda **o: bf.BatchFormer(WIDTH, **o)]
)
def test_the_old_name_of_the_control_works_and_says_the_new_one(make):
    with pytest.warns(DeprecationWarning, match="alone"):
        old = make(attend="self")
    new = make(attend="alone")
    new.load_state_dict(old.state_dict())
    for module in (old, new):
        module.encoder.eval()
    x = torch.randn(N, WIDTH)
    assert torch.equal(new(x)[0], old(x)[0])
    assert torch.allclose(new(x)[0][N], new(x[:1])[0][1], atol=1e-6)


def test_as_published_balanced_softmax_weighs_the_sum_of_both_streams_by_one_and_a_half():
    network = stand_ins.DotProductClassifier()
    attachment = bf.attach(network, "balanced_softmax", as_published=True, dropout=0.0)
    features = torch.randn(N, stand_ins.WIDTH)
    loss = attachment.wrap(nn.CrossEntropyLoss())(network(features)[0], Y)
    logits = [plain(network.fc, each) for each in (features, related(attachment, features))]
    torch.testing.assert_close(loss, 3 * mean_of(F.cross_entropy, logits, Y))
    of_function = attachment.wrap(F.cross_entropy)(network(features)[0], Y)
    torch.testing.assert_close(of_function, loss)


def test_ride_with_one_stream_has_the_related_one():
    model = stand_ins.Ride()
    attachment = bf.attach(model, "ride", two_stream=False, dropout=0.0)
    x = torch.randn(N, 8)
    features = related(attachment, plain(model.backbone.stem, x))
    logits = [
        F.normalize(features, dim=1) @ F.normalize(head.weight, dim=0) for head in model.backbone.linears
    ]
    torch.testing.assert_close(model(x)["output"], torch.stack(logits, 1).mean(1))


def test_an_argument_that_nothing_takes_is_refused_in_the_name_of_attach():
    with pytest.raises(TypeError, match=r"^attach\(\) got an unexpected keyword argument 'heads'"):
        bf.attach(Net(), before="fc", heads=2)


def test_targets_that_are_doubled_by_hand_need_a_word():
    model, attachment = attached(wrapped=False)
    loss = F.cross_entropy(model(X), bf.duplicate(Y))
    assert_step(loss, mean_of(F.cross_entropy, streams(model, attachment, X), Y), model, attachment)
    model, _ = attached()
    loss = F.cross_entropy(model(X), bf.duplicate(Y))
    with refused(RuntimeError):
        loss.backward()


def test_a_penalty_on_the_logits_beside_the_criterion_is_no_mistake():
    model, attachment = attached()
    logits = model(X)
    loss = attachment.wrap(nn.CrossEntropyLoss())(logits, Y) + logits.square().mean()
    expected = mean_of(
        lambda o, y: F.cross_entropy(o, y) + o.square().mean(), streams(model, attachment, X), Y
    )
    assert_step(loss, expected, model, attachment)
