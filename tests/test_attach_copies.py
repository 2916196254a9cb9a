"""Copies and exports of an attached model, and the way back."""

import copy
import pickle
import re
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import batchformer as bf
import stand_ins
from attach_nets import (
    BOTH_KINDS,
    BOTH_MODES,
    N,
    Net,
    Normed,
    X,
    Y,
    attached,
    plain,
    streams,
)
from attach_oracle import OURS, assert_step, mean_of, refused, related, unless_refused


def test_a_copy_of_a_place_belongs_to_the_same_attachment():
    model, attachment = attached()
    model.fc = copy.deepcopy(model.fc)
    loss = attachment.wrap(nn.CrossEntropyLoss())(model(X), Y)
    assert_step(loss, mean_of(F.cross_entropy, streams(model, attachment, X), Y), model, attachment)
    attachment.remove()
    assert len(model(X)) == N


@dataclass
class Run:
    """What a training library keeps, the criterion first."""

    criterion: object
    model: nn.Module


@BOTH_MODES
@BOTH_KINDS
@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda run: pickle.loads(pickle.dumps(run))], ids=["copied", "pickled"]
)
def test_a_model_and_its_criterion_are_copied_together(copied, make, outputs):
    model, attachment = attached(outputs=outputs)
    run = copied(Run(attachment.wrap(make()), model))
    attachment.remove()
    theirs = run.model.batchformer
    expected = mean_of(F.cross_entropy, streams(run.model, theirs, X), Y)
    assert_step(run.criterion(run.model(X), Y), expected, run.model, theirs)


class WithCriterion(nn.Module):
    """A model and its criterion, as in a module of Lightning."""

    def __init__(self, model, *where, criterion_first, **options):
        super().__init__()
        if criterion_first:
            self.criterion = nn.CrossEntropyLoss()
        self.model = model
        attachment = bf.attach(self.model, *where, dropout=0.0, **options)
        if not criterion_first:
            self.criterion = nn.CrossEntropyLoss()
        attachment.wrap(self.criterion)


CRITERION_FIRST = pytest.mark.parametrize("criterion_first", [True, False])


@CRITERION_FIRST
def test_a_copied_criterion_goes_by_the_mode_of_the_copied_model(criterion_first):
    classifier = stand_ins.DotProductClassifier()
    whole = WithCriterion(classifier, "balanced_softmax", as_published=True, criterion_first=criterion_first)
    copied = copy.deepcopy(whole)
    x = torch.randn(N, stand_ins.WIDTH)
    expected = whole.criterion(whole.model(x)[0], Y)
    whole.eval()
    torch.testing.assert_close(copied.criterion(copied.model(x)[0], Y), expected)


@CRITERION_FIRST
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # the compiler looks at the logits'
def test_a_copied_criterion_goes_by_the_copied_model_in_a_compiled_graph(criterion_first):
    copied = copy.deepcopy(WithCriterion(Net(), before="fc", criterion_first=criterion_first))
    expected = copied.criterion(copied.model(X), Y)
    torch.testing.assert_close(
        copied.criterion(torch.compile(copied.model, backend="aot_eager")(X), Y), expected
    )


@BOTH_KINDS
def test_a_pickled_pair_of_model_and_criterion_works_together(make):
    model, attachment = attached()
    model, criterion = pickle.loads(pickle.dumps((model, attachment.wrap(make()))))
    expected = mean_of(F.cross_entropy, streams(model, model.batchformer, X), Y)
    assert_step(criterion(model(X), Y), expected, model, model.batchformer)


def test_after_removal_the_stock_state_dict_is_the_models():
    model, attachment = attached()
    attachment.remove()
    stock = attachment.stock_state_dict()
    assert stock.keys() == model.state_dict().keys()
    assert all(torch.equal(stock[name], value) for name, value in model.state_dict().items())


def test_the_children_of_the_model_in_a_sequence_do_not_lose_the_insertion():
    model, _ = attached(Normed())
    with unless_refused():
        assert len(nn.Sequential(*model.children())(X)) == 2 * N


@pytest.mark.filterwarnings("ignore")
def test_a_trace_of_the_model_in_training_is_refused():
    model, _ = attached()
    with refused():
        torch.jit.trace(model, X, check_trace=False)


@pytest.mark.filterwarnings("ignore")
def test_an_export_to_onnx_of_the_model_in_training_is_refused():
    pytest.importorskip("onnxscript")
    model, _ = attached()
    with pytest.raises(RuntimeError) as caught:  # the exporter's, which stands on ours
        torch.onnx.export(model, (X,), training=torch.onnx.TrainingMode.TRAINING)
    error, causes = caught.value, []
    while error:
        causes.append(str(error))
        error = error.__cause__ or error.__context__
    assert any(re.match(OURS, cause) for cause in causes)


@pytest.mark.filterwarnings("ignore")
def test_preparing_for_quantised_training_works_or_is_refused():
    model, _ = attached()
    model.qconfig = torch.ao.quantization.get_default_qat_qconfig("fbgemm")
    with unless_refused():
        prepared = torch.ao.quantization.prepare_qat(model)
        prepared.apply(torch.ao.quantization.disable_fake_quant)
        loss = prepared.batchformer.wrap(nn.CrossEntropyLoss())(prepared(X), Y)
        features = prepared.stem(X).relu()
        both = [plain(prepared.fc, each) for each in (features, related(prepared.batchformer, features))]
        torch.testing.assert_close(loss, mean_of(F.cross_entropy, both, Y))
