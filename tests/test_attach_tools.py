"""What people do with a model that has an attachment: copies, averages, DDP, compiling, checkpointing."""

import copy
import io

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.optim.swa_utils import AveragedModel, update_bn
from torch.utils.checkpoint import checkpoint

import batchformer as bf
import ddp_worker
from attach_oracle import refused

X, Y = torch.randn(6, 8), torch.tensor([0, 1, 2, 1, 3, 0])
TOKENS = torch.randn(6, 3, 16)


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.fc = nn.Linear(8, 32), nn.BatchNorm1d(32), nn.Linear(32, 5)

    def forward(self, x):
        return self.fc(self.norm(self.stem(x)).relu())


class Blocks(nn.Module):
    def __init__(self, *, checkpointed: bool = False) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 16)) for _ in range(3))
        self.checkpointed = checkpointed

    def forward(self, x):
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.checkpointed else block(x)
        return x


@pytest.fixture
def attached():
    model = Classifier()
    return model, bf.attach(model, before="fc", dropout=0.0)


def copies(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return [copy.deepcopy(model), torch.load(buffer, weights_only=False)]


def test_a_copy_has_hooks_and_a_module_of_its_own(attached):
    model, attachment = attached
    model.norm.eval()
    for other in copies(model):
        theirs = other.batchformer
        assert theirs is not attachment
        assert torch.equal(other(X), model(X))
        with torch.no_grad():
            theirs.inserted[0].encoder.linear1.weight.add_(1)
        assert not torch.equal(other(X), model(X))
        theirs.remove()
        assert other(X).shape == (6, 5)
        assert model(X).shape == (12, 5)


def test_removing_from_the_model_leaves_its_copy_alone(attached):
    model, attachment = attached
    other = copy.deepcopy(model)
    attachment.remove()
    assert other(X).shape == (12, 5)
    assert model(X).shape == (6, 5)


def test_a_copy_can_be_made_in_the_middle_of_a_step():
    model = Classifier()
    attachment = bf.attach(model, before="fc", outputs="originals")
    criterion = attachment.wrap(nn.CrossEntropyLoss())
    logits = model(X)
    other = copy.deepcopy(model)
    criterion(logits, Y).backward()
    assert other(X).shape == (6, 5)


def test_an_average_of_weights_has_the_module_in_training_and_not_in_evaluation(attached):
    model, _ = attached
    averaged = AveragedModel(model)
    averaged.update_parameters(model)
    names = [name for name, _ in model.named_parameters()]
    assert [name for name, _ in averaged.module.named_parameters()] == names
    update_bn([X], averaged)  # in training mode
    assert averaged.eval()(X).shape == (6, 5)
    stock = Classifier()
    stock.load_state_dict(averaged.module.batchformer.stock_state_dict(), strict=True)
    assert torch.equal(stock.eval()(X), averaged(X))


def test_batch_norms_become_synchronised_ones(attached):
    model, _ = attached
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert isinstance(converted.norm, nn.SyncBatchNorm)
    converted.norm.eval()  # it runs on CUDA alone
    assert converted(X).shape == (12, 5)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # the compiler looks at the logits'
@pytest.mark.parametrize("make", ["before", "after", "after two"])
def test_the_model_compiles_in_one_graph_and_follows_the_mode_and_the_batch(make):
    model, x = (Classifier(), X) if make == "before" else (Blocks(), TOKENS)
    where = {
        "before": {"before": "fc"},
        "after": {"after": "blocks.1", "layout": "NLC"},
        "after two": {"after": ["blocks.0", "blocks.1"], "layout": "NLC"},
    }
    bf.attach(model, dropout=0.0, wrapped=False, **where[make])
    compiled = torch.compile(model, fullgraph=True)
    for samples in (6, 4, 5):
        torch.testing.assert_close(compiled(x[:samples]), model(x[:samples]))
    model.eval()
    torch.testing.assert_close(compiled(x), model(x))
    assert len(compiled(x)) == 6


def test_checkpointed_blocks_give_the_same_gradients():
    torch.manual_seed(2)
    plain, checkpointed = Blocks(), Blocks(checkpointed=True)
    for model in (plain, checkpointed):
        bf.attach(model, after=["blocks.0", "blocks.2"], layout="NLC", wrapped=False)
    checkpointed.load_state_dict(plain.state_dict())
    grads = []
    for model in (plain, checkpointed):
        torch.manual_seed(3)
        model(TOKENS).square().sum().backward()
        grads.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


class OfTwoBatches(Classifier):
    def forward(self, x, more):
        return super().forward(x), super().forward(more)


@pytest.mark.parametrize("outputs", ["both", "originals"])
@pytest.mark.parametrize("how", ["compiled backbone", "no_grad", "pseudo labels inside"])
def test_a_second_batch_with_twice_the_samples_is_a_batch_of_its_own(how, outputs):
    model = OfTwoBatches()
    bf.attach(model, before="fc", outputs=outputs)
    first, second = X[:3], X
    if how == "compiled backbone":
        model.stem = torch.compile(model.stem, backend="aot_eager")
    with torch.set_grad_enabled(how == "compiled backbone"):
        found = model(first, second)
    if how == "pseudo labels inside":
        normal = model.forward
        model.forward = lambda x, more: (torch.no_grad()(lambda: normal(x, x))()[0], normal(x, more)[1])
        found = model(first, second)
    rows = 2 if outputs == "both" else 1
    assert [len(each) for each in found] == [3 * rows, 6 * rows]
    model.eval()
    wanted = model(first, second)[1]
    model.train()
    model.norm.eval()  # the batch's statistics otherwise
    torch.testing.assert_close(model(first, second)[1][:6], wanted)


def test_autocast_doubles_what_it_computes_in_low_precision(attached):
    model, attachment = attached
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(X)
        loss = attachment.wrap(nn.CrossEntropyLoss())(logits, Y)
    loss.backward()
    assert logits.shape == (12, 5)
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in attachment.parameters())


@pytest.mark.filterwarnings("ignore")
def test_distributed_data_parallel_averages_the_gradients_of_the_module(tmp_path):
    torch.multiprocessing.spawn(ddp_worker.train_attached, (2, str(tmp_path / "store")), nprocs=2)


@pytest.mark.filterwarnings("ignore")
def test_keys_of_both_streams_go_back_to_the_process_and_the_row_that_they_came_from(tmp_path):
    torch.multiprocessing.spawn(ddp_worker.unshuffle_both_streams, (2, str(tmp_path / "store")), nprocs=2)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # the compiler looks at the logits'
def test_a_compiled_model_is_the_stock_model_after_removal(attached):
    model, attachment = attached
    compiled = torch.compile(model)
    assert len(compiled(X)) == 12
    attachment.remove()
    assert len(compiled(X)) == 6
    torch.testing.assert_close(compiled(X), model(X))


def test_a_step_compiles_in_one_graph_with_its_criterion():
    model = Classifier()
    attachment = bf.attach(model, before="fc", dropout=0.0)
    criterion = attachment.wrap(nn.CrossEntropyLoss())
    compiled = torch.compile(lambda x, y: criterion(model(x), y), fullgraph=True)
    for samples in (6, 4):
        expected = criterion(model(X[:samples]), Y[:samples])
        torch.testing.assert_close(compiled(X[:samples], Y[:samples]), expected)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # the compiler looks at the logits'
def test_a_compiled_model_gives_its_criterion_the_rows_to_rejoin():
    model = Classifier()
    attachment = bf.attach(model, before="fc", outputs="originals", dropout=0.0)
    criterion, compiled = attachment.wrap(nn.CrossEntropyLoss()), torch.compile(model, fullgraph=True)
    for samples in (6, 4):
        expected = criterion(model(X[:samples]), Y[:samples])
        logits = compiled(X[:samples])
        assert len(logits) == samples
        torch.testing.assert_close(criterion(logits, Y[:samples]), expected)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_a_vectorised_model_is_refused_unless_the_script_doubles_its_targets():
    models = [Classifier().requires_grad_(True) for _ in range(2)]
    for model in models:
        model.norm = nn.Identity()
    for wrapped in (True, False):
        copied = copy.deepcopy(models)
        attachments = [bf.attach(model, before="fc", dropout=0.0, wrapped=wrapped) for model in copied]
        parameters, _ = torch.func.stack_module_state(copied)
        criterion = (
            attachments[0].wrap(nn.functional.cross_entropy) if wrapped else nn.functional.cross_entropy
        )

        def loss(parameters, model=copied[0], criterion=criterion, wrapped=wrapped):
            targets = Y if wrapped else bf.duplicate(Y)
            return criterion(torch.func.functional_call(model, parameters, (X,)), targets)

        if wrapped:
            with pytest.raises(RuntimeError, match=r"expected a call outside of torch\.vmap"):
                torch.vmap(loss)(parameters)
        else:
            torch.vmap(loss)(parameters).sum().backward()
            assert all(each.grad.abs().sum() > 0 for each in parameters.values() if each.dim() == 3)


def test_a_transform_of_gradients_takes_both_streams_and_refuses_the_originals():
    for outputs in ("both", "originals"):
        model = Classifier()
        model.norm = nn.Identity()
        criterion = bf.attach(model, before="fc", dropout=0.0, outputs=outputs).wrap(nn.CrossEntropyLoss())
        parameters = dict(model.named_parameters())

        def loss(parameters, model=model, criterion=criterion):
            return criterion(torch.func.functional_call(model, parameters, (X,)), Y)

        if outputs == "originals":
            with pytest.raises(RuntimeError, match=r'expected "both" inside of torch\.func'):
                torch.func.grad(loss)(parameters)
            continue
        loss(parameters).backward()
        grads = torch.func.grad(loss)(parameters)
        torch.testing.assert_close(grads, {name: each.grad for name, each in parameters.items()})


def test_a_model_without_values_is_trained():
    model = Classifier().to("meta")
    criterion = bf.attach(model, before="fc").wrap(nn.CrossEntropyLoss())
    criterion(model(X.to("meta")), Y.to("meta")).backward()
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = Classifier()
        criterion = bf.attach(model, before="fc").wrap(nn.CrossEntropyLoss())
        criterion(model(torch.randn(6, 8)), torch.zeros(6, dtype=torch.int64)).backward()
        assert model.stem.weight.grad.shape == model.stem.weight.shape


def test_the_stock_state_dict_has_the_versions_of_its_modules():
    model = Classifier()
    attachment = bf.attach(model, before="fc")
    state, stock = attachment.stock_state_dict(), Classifier().state_dict()
    assert (list(state), list(state._metadata)) == (list(stock), list(stock._metadata))
    assert state._metadata["norm"] == stock._metadata["norm"]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.parametrize("outputs", ["both", "originals"])
@pytest.mark.parametrize("kind", ["module", "function", "pairings"])
def test_a_criterion_that_is_compiled_by_itself_takes_both_streams(kind, outputs):
    model = Classifier()
    attachment = bf.attach(model, before="fc", dropout=0.0, outputs=outputs)
    if kind == "pairings":
        criterion, targets = attachment.wrap(lambda z: z.logsumexp(1).mean(), targets=[]), ()
    else:
        made = nn.CrossEntropyLoss() if kind == "module" else nn.functional.cross_entropy
        criterion, targets = attachment.wrap(made), (Y,)
    expected = criterion(model(X), *targets)
    expected.backward()
    grad, model.stem.weight.grad = model.stem.weight.grad, None
    compiled = torch.compile(criterion, backend="aot_eager")
    for made in (model, torch.compile(model, backend="aot_eager"), model):
        loss = compiled(made(X), *targets)
        loss.backward()
        torch.testing.assert_close((loss, model.stem.weight.grad), (expected, grad))
        model.stem.weight.grad = None


class Necked(nn.Module):
    """A classifier with a place that has no parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.neck, self.fc = nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 5)

    def forward(self, x):
        return self.fc(self.neck(self.stem(x)))


def as_it_is(graph, inputs):
    """A backend of one's own, as for looking at graphs: the graph runs op by op, as with "eager"."""
    del inputs
    return graph.forward


PLACES = {"neck": {"after": "neck", "layout": "NC", "dim": 32}, "fc": {"before": "fc"}}


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor", "ignore:batchformer. .*frozen")
@pytest.mark.parametrize("backend", ["eager", as_it_is], ids=["eager", "as it is"])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("outputs", ["both", "originals"])
@pytest.mark.parametrize("kind", ["targets", "pairings", "frozen"])
def test_a_graph_that_runs_op_by_op_leaves_no_marks_and_loses_no_stream(kind, outputs, place, backend):
    rows = []

    def loss(z, *targets):
        rows.append([len(z), *map(len, targets)])
        return nn.functional.cross_entropy(z, *targets) if targets else z.square().logsumexp(0).mean()

    model = Necked()
    attachment = bf.attach(model, dropout=0.0, outputs=outputs, **PLACES[place])
    attachment.requires_grad_(kind != "frozen")
    criterion = attachment.wrap(loss, targets=[] if kind == "pairings" else None)
    compiled, targets, found = torch.compile(model, backend=backend), () if kind == "pairings" else (Y,), []
    for made in (model, compiled, compiled):
        rows.clear()
        model.zero_grad()
        criterion(made(X), *targets).backward()
        grads = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        found.append((rows[:], grads))
    for each in found[1:]:
        assert each[0] == found[0][0] != [[6, 6]]
        torch.testing.assert_close(each[1], found[0][1])


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("targets", [None, []], ids=["targets", "pairings"])
def test_what_is_cut_from_the_output_of_a_graph_is_refused(targets, place, backend):
    model = Necked()
    criterion = bf.attach(model, **PLACES[place]).wrap(lambda z, *y: z.mean(), targets=targets)
    cut = torch.compile(model, backend=backend)(X)[:6]
    with refused(saying=r"12 rows of both streams, got some of shape \[6, 5\]"):
        criterion(cut, *([Y] if targets is None else []))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_a_compiled_model_returns_the_originals_along_the_axis_of_its_place():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.block, self.fc = nn.TransformerEncoderLayer(16, 4, 16, 0.0), nn.Linear(16, 5)

        def forward(self, x):
            return self.fc(self.block(x))

    model = Tokens()
    attachment = bf.attach(model, after="block", outputs="originals", dropout=0.0)
    x, y = torch.randn(7, 6, 16), torch.arange(42).remainder(5).view(7, 6)
    criterion = attachment.wrap(lambda z, y: nn.functional.cross_entropy(z.transpose(1, 2), y))
    expected = model(x)
    loss = criterion(expected, y)
    compiled = torch.compile(model, backend="aot_eager")
    logits = compiled(x)
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(criterion(logits, y), loss)
    model.eval()
    compiled(x)
    assert not attachment._family.compiled._split
