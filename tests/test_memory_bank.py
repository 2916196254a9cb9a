"""What a memory bank holds: over many steps, in copies, on other devices, compiled, in threads and ranks."""

import copy
import io
import pickle
import threading

import pytest
import torch
import torch.multiprocessing as mp
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

import batchformer as bf
from batchformer.modules._memory import MemoryBank
from memory_bank_layer import CHANNELS, Layer, batch, expected, gradients, train_under_ddp
from tolerances import RELATIVE, relative_error


def assert_all_near(actual, wanted):
    assert len(actual) == len(wanted)
    errors = [relative_error(*pair) for pair in zip(actual, wanted, strict=True)]
    assert max(errors) <= RELATIVE[torch.float64], errors


@pytest.mark.parametrize("size", [1, 5, 40, 200], ids=["one", "smaller", "about what was seen", "larger"])
@pytest.mark.parametrize("together", [1, 2], ids=["one forward a step", "two forwards before a backward"])
def test_20_steps_give_what_the_lists_of_earlier_samples_give(size, together):
    layer, earlier = Layer(size), []
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.01)
    sizes = [4, 1, 3, 7, 2] * 4
    for step in range(0, 20, together):
        inputs = [batch(samples) for samples in sizes[step : step + together]]
        outputs, wanted = [], []
        for x in inputs:
            outputs.append(layer(x))
            wanted.append(expected(layer, x, earlier))
            earlier = [*x.detach().clone(), *earlier][:size]
        assert_all_near(outputs, wanted)
        sum(y.square().sum() for y in wanted).backward()
        wanted = gradients(layer, *inputs)
        for y in outputs[::-1]:
            y.square().sum().backward()
        for parameter, grad in zip([*layer.parameters(), *inputs], gradients(layer, *inputs), strict=True):
            parameter.grad = grad
        assert_all_near([p.grad for p in (*layer.parameters(), *inputs)], wanted)
        optimizer.step()
        optimizer.zero_grad()
    assert torch.equal(layer.bank.look(inputs[0]).rows, torch.stack(earlier))
    assert layer.bank.rows.shape[0] == size
    assert layer.bank.rows.untyped_storage().nbytes() == layer.bank.rows.numel() * 8, "no more than it holds"


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_sample_that_is_not_finite_enters_as_zeros(value):
    layer, x = Layer(8), batch(3)
    with torch.no_grad():
        x[1, 2, 0] = value
    assert not layer(x).isfinite().all()
    assert torch.equal(layer.bank.look(x).rows, torch.stack([x[0], torch.zeros_like(x[1]), x[2]]).detach())
    assert layer(batch(4)).isfinite().all()


def test_a_sample_that_overflows_in_a_narrower_dtype_is_zeros_there():
    layer, x = Layer(8), batch(3)
    with torch.no_grad():
        x[1, 2, 0] = 1e5
    layer.bank.enter(x)
    zeroed = torch.stack([x[0], torch.zeros_like(x[1]), x[2]]).detach().half()
    assert torch.equal(layer.bank.look(x.half()).rows, zeroed)
    assert torch.equal(layer.bank.look(x).rows, x.detach()), "there it has not overflowed"
    entered = copy.deepcopy(layer.bank)
    entered.enter(x.half()[:1])
    assert torch.equal(entered.look(x.half()).rows, torch.cat([zeroed[:1], zeroed]))
    layer.bank.apply(torch.Tensor.half)
    assert torch.equal(layer.bank.rows[:3], zeroed)


def test_an_export_in_training_is_refused_and_leaves_the_bank_as_it_is():
    module, x = bf.BatchFormer(CHANNELS, 2, memory_bank_size=8), torch.randn(3, CHANNELS)
    for _ in range(2):  # the second time the bank has rows
        with pytest.raises(RuntimeError, match=r"expected eval\(\) for torch\.export"):
            torch.export.export(module, (x,))
        module(x)
    assert all(type(bank.rows) is torch.Tensor for bank in module._banks.values())
    torch.export.export(module.eval(), (x,))


def test_to_empty_forgets_the_samples():
    module, x = bf.BatchFormer(CHANNELS, 2, memory_bank_size=8), torch.randn(3, CHANNELS)
    model = torch.nn.Sequential(module)
    model(x)
    model.to_empty(device="cpu")
    assert [int(bank.count) for bank in module._banks.values()] == [0]


def test_a_step_never_writes_what_an_earlier_one_sees():
    layer = Layer(4)
    layer(batch(3))
    before = layer.bank.rows
    kept, version = before.clone(), before._version
    layer(batch(2))
    assert before._version == version
    assert torch.equal(before, kept)
    assert layer.bank.rows is not before


def test_what_entered_does_not_change_with_the_batch_that_it_was():
    bank = MemoryBank(2)
    for samples in (2, 5):
        x = torch.ones(samples, 3, CHANNELS)
        bank.enter(x)
        x.zero_()
        assert bank.look(x).rows.eq(1).all()


def test_nothing_enters_without_gradients_and_an_empty_batch_changes_nothing():
    layer = Layer(4)
    layer(batch(3))
    kept = layer.bank.rows.clone()
    with torch.no_grad():
        layer(batch(2))
    with torch.inference_mode():
        layer(batch(2))
    layer.bank.enter(batch(0))
    assert torch.equal(layer.bank.rows, kept)
    assert int(layer.bank.count) == 3


def test_samples_without_positions_do_not_enter():
    layer = Layer(4)
    layer(batch(2)[:, :0])
    assert layer.bank.rows is None
    layer(batch(3)).sum().backward()
    assert int(layer.bank.count) == 3


def test_a_bank_that_was_first_used_without_gradients_can_be_trained_with():
    layer = Layer(4)
    with torch.inference_mode():
        layer(batch(2))
    for _ in range(2):
        layer(batch(2)).sum().backward()


def test_another_number_of_positions_is_refused_and_changes_nothing():
    layer = Layer(4)
    layer(batch(3))
    kept = layer.bank.rows
    with pytest.raises(ValueError, match="x: expected 3 positions of a sample, as those in the memory bank"):
        layer(torch.randn(3, 2, CHANNELS, dtype=torch.float64))
    assert layer.bank.rows is kept


def test_another_dtype_gets_the_rows_in_it():
    layer = Layer(4)
    x = batch(3)
    layer(x)
    assert layer.bank.look(x.float()).rows.dtype == torch.float32
    layer.bank.enter(x.float()[:1])
    assert layer.bank.rows.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        layer.bank.enter(x.bfloat16()[:1])
    assert layer.bank.look(x).rows.dtype == torch.float64
    torch.testing.assert_close(layer.bank.look(x).rows, x[[0, 0, 0, 1]].detach(), rtol=0.01, atol=0)


def test_apply_moves_the_rows_and_what_to_empty_leaves_is_forgotten():
    layer, x = Layer(4), batch(3)
    layer(x)
    layer.bank.apply(lambda tensor: tensor.to("meta"))
    assert layer.bank.rows.is_meta
    assert layer.bank.look(x.to("meta")).rows.is_meta
    layer.bank.apply(lambda tensor: torch.empty_like(tensor, device="cpu"))
    assert len(layer.bank.look(x).rows) == 0
    layer(x)
    layer.bank.apply(torch.Tensor.half)
    assert layer.bank.rows.dtype == torch.float16
    assert len(layer.bank.look(x).rows) == 3


def test_the_default_device_does_not_matter():
    with torch.device("meta"):
        layer = Layer(4)
        x = torch.zeros(2, 3, CHANNELS, dtype=torch.float64)
        assert layer(x).is_meta
        assert len(layer.bank.look(x).rows) == 2
    assert layer.bank.count.device.type == "cpu"
    layer = Layer(4)
    layer(batch(3))
    torch.set_default_device("meta")
    try:
        x = torch.zeros(2, 3, CHANNELS, dtype=torch.float64, device="cpu")
        layer(x)
    finally:
        torch.set_default_device(None)
    assert layer.bank.rows.device.type == "cpu"
    assert int(layer.bank.count) == 4


def _saved(layer):
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda x: pickle.loads(pickle.dumps(x)), "torch.save": _saved}


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_copies_have_the_rows_and_go_their_own_way(copied):
    layer, x = Layer(4), batch(3)
    y = layer(x)
    other = copied(layer)
    assert torch.equal(layer(x), other(x))
    assert torch.equal(layer.bank.rows, other.bank.rows)
    other(batch(1))
    assert not torch.equal(layer.bank.rows, other.bank.rows)
    assert torch.equal(copied(Layer(4)).bank.count, torch.tensor(0))
    y.sum().backward()


def test_it_is_in_no_state_dict_and_an_average_of_weights_leaves_it_alone():
    layer = Layer(4)
    layer(batch(3))
    assert not [name for name in layer.state_dict() if "bank" in name]
    assert not list(layer.buffers())
    averaged = AveragedModel(layer, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
    kept = averaged.module.bank.rows.clone()
    layer(batch(2))
    averaged.update_parameters(layer)
    averaged.update_parameters(layer)
    assert torch.equal(averaged.module.bank.rows, kept)


class Wrapped(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.layer, self.head = Layer(size), nn.Linear(CHANNELS, 2, dtype=torch.float64)

    def forward(self, x):
        return self.head(self.layer(x))


@pytest.mark.parametrize(("backend", "begun"), [("aot_eager", False), ("inductor", True)])
def test_a_compiled_step_gives_what_an_eager_one_gives_and_is_not_compiled_again_while_it_fills(
    backend, begun
):
    model = Wrapped(10)
    if begun:
        model(batch(2))
    plain = copy.deepcopy(model)
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    compilations = []
    for _ in range(5):
        x = batch(3)
        results = []
        for module in (compiled, plain):
            y = module(x)
            y.square().sum().backward()
            results.append([y, *gradients(module, x)])
        assert_all_near(*results)
        compilations.append(counter.frame_count)
    assert compilations == ([1] * 5 if begun else [1, 2, 2, 2, 2]), "there are rows from the second call on"
    assert torch.equal(model.layer.bank.rows, plain.layer.bank.rows)
    assert int(model.layer.bank.count) == 10


def test_a_compiled_forward_without_gradients_or_with_another_batch_is_as_the_eager_one():
    model = Wrapped(10)
    plain = copy.deepcopy(model)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for samples, gradients_too in ((3, False), (3, True), (3, False), (2, True), (12, True), (1, True)):
        x = batch(samples)
        with torch.set_grad_enabled(gradients_too):
            torch.testing.assert_close(compiled(x), plain(x))
        assert int(model.layer.bank.count) == int(plain.layer.bank.count)
    assert torch.equal(model.layer.bank.rows, plain.layer.bank.rows)


@pytest.mark.parametrize("reentrant", [False, True], ids=["non_reentrant", "reentrant"])
def test_a_checkpoint_in_what_is_compiled_runs_eagerly_or_is_torchs_error(reentrant):
    layer = Layer(10)
    layer(batch(4))
    plain, inputs, results = copy.deepcopy(layer), [batch(3), batch(3)], []

    def part(module):
        return lambda x: checkpoint(module, x, use_reentrant=reentrant)

    for module, call in ((plain, part(plain)), (layer, torch.compile(part(layer), backend="aot_eager"))):
        for y in [call(x) for x in inputs]:
            y.square().sum().backward()
        results.append([module.bank.rows, *gradients(module, *inputs)])
    assert_all_near(*results)
    torch._dynamo.reset()  # it does not try again what it has left to Python
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"(?i)side ?effect"):
        torch.compile(part(layer), fullgraph=True, backend="aot_eager")(inputs[0])


def test_a_compiled_graph_keeps_the_rows_of_a_pending_backward():
    layer = Layer(5)
    plain = copy.deepcopy(layer)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    inputs = [batch(3), batch(3)]
    results = []
    for module in (compiled, plain):
        outputs = [module(x) for x in inputs]
        for y in outputs:
            y.square().sum().backward()
        results.append(gradients(module, *inputs))
    assert_all_near(*results)


@pytest.mark.parametrize("samples", [1, 12])
def test_two_threads_train_two_copies(samples):
    layers = [Layer(5) for _ in range(4)]
    for layer in layers[1:]:
        layer.load_state_dict(layers[0].state_dict())
    inputs = [batch(samples).detach() for _ in range(8)]

    def train(layer, inputs):
        for x in inputs:
            checkpoint(layer, x, use_reentrant=False).square().sum().backward()

    work = [(layers[0], inputs), (layers[1], inputs[::-1])]
    threads = [threading.Thread(target=train, args=each) for each in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for alone, (layer, order) in zip(layers[2:], work, strict=True):
        train(alone, order)
        assert torch.equal(alone.bank.rows, layer.bank.rows)
        assert_all_near(gradients(layer), gradients(alone))


def test_buffers_are_broadcast_and_banks_are_not(tmp_path):
    mp.spawn(train_under_ddp, (2, str(tmp_path / "store")), nprocs=2)
