"""Training loops with attach(): what is not trained is said, and what would be wrong is refused."""

import gc
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import batchformer as bf
from attach_nets import BOTH_MODES, CLASSES, TOKENS, WIDTH, Blocks, N, Net, X, Y, attached, streams
from attach_oracle import assert_step, is_reached, mean_of, refused, said_of, unless_refused
from batchformer import marks
from batchformer.swap_in import forward


def optimizer_before(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return optimizer, attached(model)[1]


def groups_by_submodule(model):
    attachment = attached(model)[1]
    groups = [{"params": part.parameters()} for part in (model.stem, model.fc)]
    return torch.optim.AdamW(groups, lr=0.1), attachment


def frozen_but_for_the_head(model):
    attachment = attached(model)[1]
    model.requires_grad_(False)
    model.fc.requires_grad_(True)
    return torch.optim.SGD(model.fc.parameters(), lr=0.1), attachment


def place_alone_in_training(model):
    attachment = attached(model)[1]
    model.eval()
    model.fc.train()
    return torch.optim.SGD(model.parameters(), lr=0.1), attachment


def in_evaluation(model):
    attachment = attached(model)[1]
    model.eval()
    return torch.optim.SGD(model.parameters(), lr=0.1), attachment


UNTRAINED = [
    *(optimizer_before, groups_by_submodule, frozen_but_for_the_head),
    *(place_alone_in_training, in_evaluation),
]


def steps_of(model, optimizer, attachment):
    """A function that does a step, with a batch of its own."""
    criterion = attachment.wrap(nn.CrossEntropyLoss())

    def step():
        optimizer.zero_grad()
        criterion(model(torch.randn(N, 6)), Y).backward()
        optimizer.step()

    return step


@pytest.mark.parametrize("arrange", UNTRAINED, ids=lambda arrange: arrange.__name__)
def test_a_module_that_is_not_trained_is_said_once(arrange):
    model = Net()
    step = steps_of(model, *arrange(model))
    assert len(said_of(step, times=6)) == 1


def warm_up(model, attachment):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.1 * epoch)
    step = steps_of(model, optimizer, attachment)
    return lambda: (step(), scheduler.step())


def accumulating(model, attachment):
    optimizer, criterion, count = (
        torch.optim.SGD(model.parameters(), lr=0.1),
        attachment.wrap(F.cross_entropy),
        [0],
    )

    def step():
        criterion(model(X), Y).backward()
        count[0] += 1
        if count[0] % 4 == 0:
            optimizer.step()
            optimizer.zero_grad()

    return step


def by_a_group_of_its_own(model, attachment):
    optimizer = torch.optim.SGD([{"params": part.parameters()} for part in (model.stem, model.fc)], lr=0.1)
    optimizer.add_param_group({"params": attachment.parameters(), "lr": 0.01})
    return steps_of(model, optimizer, attachment)


def losses_alone(model, attachment):
    criterion = attachment.wrap(nn.CrossEntropyLoss())
    return lambda: criterion(model(X), Y)


@pytest.mark.parametrize(
    "arrange",
    [warm_up, accumulating, by_a_group_of_its_own, losses_alone],
    ids=lambda arrange: arrange.__name__,
)
def test_nothing_is_said_of_training_as_it_should_be(arrange):
    model, attachment = attached()
    assert said_of(arrange(model, attachment), times=9) == []


def batches(model, attachment, *sizes):
    """A function that does a step with each of these numbers of samples."""
    criterion = attachment.wrap(nn.CrossEntropyLoss())

    def steps():
        for size in sizes:
            criterion(model(torch.randn(size, 6)), torch.zeros(size, dtype=torch.long)).backward()

    return steps


def test_batches_of_one_sample_are_said_once():
    (said,) = said_of(batches(*attached(), 1, 1), times=3)
    assert "no samples are related" in said
    assert "raise the batch size, or attach(..., memory_bank_size=64)" in said


@pytest.mark.parametrize("sizes", [(2, 1, 2, 1), (2, 2, 2, 1, 1, 1), (1, 1, 2, 1)])
def test_nothing_is_said_of_some_batches_of_one_sample(sizes):
    assert said_of(batches(*attached(), *sizes), times=1) == []


def test_nothing_is_said_of_one_sample_that_attends_to_remembered_ones():
    assert said_of(batches(*attached(memory_bank_size=4), 1, 1, 1, 1), times=1) == []


@pytest.fixture
def process_group(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore")
def test_a_model_that_is_sharded_already_is_refused(process_group):
    model = Net()
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    with refused(ValueError):
        bf.attach(model, before="fc")


def children(model):
    return [model.stem, model.fc, model.batchformer]


def layers(model):
    return [each for each in reversed([*model.modules()]) if [*each.parameters(recurse=False)]]


@pytest.mark.parametrize("units", [children, layers], ids=lambda units: units.__name__)
@pytest.mark.filterwarnings("ignore")
def test_shards_that_nothing_gathers_are_refused(process_group, units):
    model, _ = attached()
    mesh = init_device_mesh("cpu", (1,))
    for unit in units(model):
        fully_shard(unit, mesh=mesh)
    fully_shard(model, mesh=mesh)
    with refused(RuntimeError, saying="shard each of attachment.inserted"):
        model(X)
    assert len(model.eval()(X)) == N


@pytest.mark.parametrize("own", [False, True], ids=["with a layer", "by itself"])
@pytest.mark.filterwarnings("ignore")
def test_a_module_that_two_layers_of_a_sequence_share_is_sharded_by_itself(process_group, own):
    """The first of them holds it, and has been called when the second needs it."""
    model = nn.Sequential(*(nn.Linear(6, 6) for _ in range(3)))
    attachment = bf.attach(model, before=["1", "2"], nhead=2, dropout=0.0)
    criterion = attachment.wrap(nn.CrossEntropyLoss())
    expected = gradients(model, criterion(model(X), Y))
    mesh = init_device_mesh("cpu", (1,))
    for unit in (*([attachment.inserted[0]] if own else []), *model.children(), model):
        fully_shard(unit, mesh=mesh)
    with nullcontext() if own else refused(RuntimeError, saying="gathered at '2'.* in the unit '1'"):
        actual = [each.full_tensor() for each in gradients(model, criterion(model(X), Y))]
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("around", ["nothing", "the module", "the model", "more than the model"])
@pytest.mark.filterwarnings("ignore")
def test_a_module_whose_gradients_would_not_be_averaged_is_refused(process_group, around):
    model, attachment = attached()
    whole = nn.Sequential(model)
    others = {"the module": attachment.inserted[0], "the model": model, "more than the model": whole}
    mesh = init_device_mesh("cpu", (1,))
    for unit in (model.stem, model.fc, *([others[around]] if around in others else [])):
        fully_shard(unit, mesh=mesh)
    whole(X)
    with refused(RuntimeError, saying="around 'stem', 'fc'") if around == "nothing" else nullcontext():
        whole(X)


@pytest.mark.filterwarnings("ignore")
def test_a_model_inside_of_data_parallel_is_refused_when_that_trains(process_group):
    parallel = DistributedDataParallel(Net())
    attached(parallel.module)
    with refused(RuntimeError):
        parallel(X)


@BOTH_MODES
@pytest.mark.filterwarnings("ignore")
def test_a_model_that_goes_into_data_parallel_afterwards_trains(process_group, outputs):
    model, attachment = attached(outputs=outputs)
    parallel = DistributedDataParallel(model)
    loss = attachment.wrap(nn.CrossEntropyLoss())(parallel(X), Y)
    expected = mean_of(F.cross_entropy, streams(model, attachment, X), Y)
    torch.testing.assert_close(loss, expected)
    grads = torch.autograd.grad(expected, [*model.parameters()])
    loss.backward()
    for parameter, grad in zip(model.parameters(), grads, strict=True):
        torch.testing.assert_close(parameter.grad, grad)


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def test_a_reentrant_checkpoint_around_a_model_that_returns_the_originals_is_refused():
    model, attachment = attached(outputs="originals")
    criterion, x = attachment.wrap(nn.CrossEntropyLoss()), X.clone().requires_grad_()
    with refused():
        criterion(checkpoint(model, x, use_reentrant=True), Y)


def test_a_reentrant_checkpoint_around_a_model_that_returns_both_streams_gives_the_gradients():
    model, attachment = attached()
    criterion, x = attachment.wrap(nn.CrossEntropyLoss()), X.clone().requires_grad_()
    expected = gradients(model, criterion(model(X), Y))
    with unless_refused():
        actual = gradients(model, criterion(checkpoint(model, x, use_reentrant=True), Y))
        torch.testing.assert_close(actual, expected)
        assert len(actual) == len([*model.parameters()])


@BOTH_MODES
@pytest.mark.parametrize("after", [["blocks.1"], ["blocks.0", "blocks.2"]], ids=["one", "two"])
def test_checkpointed_places_give_the_same_gradients(after, outputs):
    model = Blocks()
    attachment = bf.attach(model, after=after, layout="NLC", outputs=outputs)
    criterion, grads = attachment.wrap(nn.CrossEntropyLoss()), []
    for model.checkpointed in (False, True, True):
        torch.manual_seed(3)
        grads.append(gradients(model, criterion(model(TOKENS), Y)))
    torch.testing.assert_close(grads[1], grads[0])
    torch.testing.assert_close(grads[2], grads[0])
    assert len(grads[0]) == len([*model.parameters()])


@BOTH_MODES
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # the compiler looks at the logits'
def test_a_compiled_model_and_its_criterion_work_together(outputs):
    model, attachment = attached(outputs=outputs)
    criterion, compiled = attachment.wrap(nn.CrossEntropyLoss()), torch.compile(model, backend="aot_eager")
    for samples in (N, N, N - 1):
        x, y = torch.randn(samples, 6), Y[:samples]
        expected = mean_of(F.cross_entropy, streams(model, attachment, x), y)
        assert_step(criterion(compiled(x), y), expected, model, attachment)


@BOTH_MODES
@pytest.mark.usefixtures("one_thread")
def test_threads_that_train_one_model_keep_their_batches_apart(outputs):
    model, attachment = attached(outputs=outputs)
    criterion = attachment.wrap(lambda logits, labels: (len(logits), len(labels)))

    def train(samples):
        seen = set()
        for _ in range(100):
            logits = model(torch.randn(samples, 6))
            seen.add((len(logits), *criterion(logits, torch.zeros(samples, dtype=torch.long))))
        return seen

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(2) as threads:
            seen = list(threads.map(train, (4, 9)))
    finally:
        sys.setswitchinterval(interval)
    rows = 2 if outputs == "both" else 1
    assert seen == [{(rows * samples, 2 * samples, 2 * samples)} for samples in (4, 9)]


@BOTH_MODES
def test_nothing_of_a_step_outlives_it(outputs):
    """Without the garbage collector: marks must not keep the graph that keeps them."""
    model, attachment = attached(outputs=outputs)
    criterion = attachment.wrap(nn.CrossEntropyLoss())
    gc.disable()
    try:
        logits = model(X)
        loss = criterion(logits, Y)
        with torch.no_grad():
            evaluated = model(X)
        kept = [weakref.ref(each) for each in (logits, loss, evaluated)]
        kept.append(weakref.ref(marks.find(logits)))
        del logits, loss, evaluated
        assert [each() for each in kept] == [None] * 4
    finally:
        gc.enable()


@pytest.mark.parametrize("after", ["evaluation", "training"])
def test_an_interrupted_forward_is_forgotten(after):
    model, _ = attached()
    handle = model.stem.register_forward_hook(lambda *call: (_ for _ in ()).throw(KeyboardInterrupt))
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            model(X)
    handle.remove()
    if after == "evaluation":
        assert len(model.eval()(X)) == N
        model.train()
    assert len(model(X)) == 2 * N
    assert not forward._stack()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # the compiler looks at the logits'
@BOTH_MODES
def test_a_compiled_model_whose_criterion_is_not_wrapped_stops_at_the_second_step(outputs):
    model, _ = attached(outputs=outputs)
    compiled = torch.compile(model, backend="aot_eager")

    def step():
        rows = compiled(X).log_softmax(1)
        (-rows.gather(1, Y[:, None]).mean()).backward()  # takes rows by the labels

    step()
    with refused(RuntimeError, saying="a wrapped one"):
        step()


def test_nothing_is_said_of_a_head_that_starts_at_zero():
    model, attachment = attached()
    nn.init.zeros_(model.fc.weight)
    criterion = attachment.wrap(nn.CrossEntropyLoss())
    assert said_of(lambda: criterion(model(X), Y).backward(), 5) == []


def test_an_optimizer_that_counts_no_changes_is_looked_at_by_values():
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)  # built too early
    attachment = attached(model)[1]
    criterion = attachment.wrap(nn.CrossEntropyLoss())

    def step():
        optimizer.zero_grad()
        criterion(model(X), Y).backward()
        optimizer.step()

    (said,) = said_of(step, 8)
    assert "no optimizer moves them" in said


class Probe(Net):
    """A Net with a stem that nothing trains."""

    def forward(self, x):
        with torch.no_grad():
            features = self.stem(x)
        return self.fc(features)


def test_a_place_without_gradients_is_said_once():
    model = Probe()
    _, attachment = attached(model, after="stem", layout="NC", dim=WIDTH)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    (said,) = said_of(steps_of(model, optimizer, attachment), times=6)
    assert "without gradients" in said


class TwoEncoders(nn.Module):
    """A query and a key, which has no gradient."""

    def __init__(self):
        super().__init__()
        self.query, self.key = nn.Linear(6, WIDTH), nn.Linear(6, WIDTH)
        self.fc = nn.Linear(2 * WIDTH, CLASSES)

    def forward(self, x):
        with torch.no_grad():
            key = self.key(x)
        return self.fc(torch.cat([self.query(x), key], 1))


def test_nothing_is_said_of_a_place_without_gradients_beside_one_with():
    model = TwoEncoders()
    _, attachment = attached(model, after=["query", "key"], layout="NC", dim=WIDTH)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert said_of(steps_of(model, optimizer, attachment), times=6) == []


def test_nothing_is_said_of_a_reentrant_checkpoint():
    model, attachment = attached()
    criterion, x = attachment.wrap(nn.CrossEntropyLoss()), X.clone().requires_grad_()

    def step():
        criterion(checkpoint(model, x, use_reentrant=True), Y).backward()

    assert said_of(step, times=6) == []


COPIES = {
    "as it is": lambda o: o,
    "a copy": torch.clone,
    "in another dtype": torch.Tensor.double,
    "a part": lambda o: o[1:],
    "a copy of a part": lambda o: o.clone()[1:],
}


def wrapped_loss(change, terms):
    """Outputs, and the sum of so many wrapped terms of them."""
    model, attachment = attached(outputs="originals")
    criterion = attachment.wrap(F.cross_entropy)
    outputs = change(model(X))
    return outputs, sum(criterion(outputs, Y[-len(outputs) :]) for _ in range(terms)), attachment


@pytest.mark.parametrize("terms", [1, 2])
@pytest.mark.parametrize("change", COPIES.values(), ids=COPIES)
def test_any_number_of_wrapped_terms_is_taken(change, terms):
    _, loss, attachment = wrapped_loss(change, terms)
    loss.backward()
    assert is_reached(attachment)


@pytest.mark.parametrize("terms", [0, 1, 2])
@pytest.mark.parametrize("change", COPIES.values(), ids=COPIES)
def test_a_term_that_is_not_wrapped_is_refused_beside_those_that_are(change, terms):
    outputs, loss, _ = wrapped_loss(change, terms)
    with refused(RuntimeError, saying="every loss"):
        (loss + 1e-6 * outputs.square().sum()).backward()


def test_a_term_that_is_not_wrapped_is_refused_in_the_next_forward_on_a_device():
    model, attachment = attached(outputs="originals")
    attachment._family.entry.check_later(torch.tensor(False))
    model(X)
    attachment._family.entry.check_later(torch.tensor(True))
    with refused(RuntimeError, saying="every loss"):
        model(X)
    model(X)


def test_detached_outputs_with_a_gradient_of_their_own_are_refused():
    model, attachment = attached(outputs="originals")
    outputs = model(X)
    with refused(ValueError, saying="computed from one"):
        attachment.wrap(F.cross_entropy)(outputs.detach().requires_grad_(), Y)


@BOTH_MODES
def test_backward_hooks_of_the_model_run(outputs):
    model, attachment = attached(outputs=outputs)
    ran = []
    model.register_full_backward_hook(lambda *_: ran.append(1))
    attachment.wrap(F.cross_entropy)(model(X.clone().requires_grad_()), Y).backward()
    assert ran == [1]


@BOTH_MODES
@pytest.mark.filterwarnings("ignore")
def test_a_model_that_is_one_shard_is_trained(process_group, outputs):
    model, attachment = attached(outputs=outputs)
    criterion = attachment.wrap(nn.CrossEntropyLoss())
    expected = gradients(model, criterion(model(X), Y))
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    actual = gradients(model, criterion(model(X), Y))
    assert len(actual) == len(expected)
    for each, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(each.full_tensor(), other)


def test_nothing_is_said_of_a_model_in_training_whose_attachment_is_switched_off():
    model = Net()
    optimizer, attachment = optimizer_before(model)

    def step():
        model.train()
        attachment.eval()
        optimizer.zero_grad()
        F.cross_entropy(model(X), Y).backward()
        optimizer.step()

    assert said_of(step, 6) == []


def test_no_copy_of_a_parameter_is_kept_when_all_has_been_said():
    model = Net()
    attachment = attached(model)[1]
    step = steps_of(model, torch.optim.SGD(model.parameters(), lr=0.1), attachment)
    assert said_of(step, 4) == []
    assert attachment._family.watch._before is None


@pytest.mark.filterwarnings("ignore:FSDP", "ignore:.*FullyShardedDataParallel", "ignore::FutureWarning")
def test_nothing_is_said_of_parameters_that_lie_in_one_of_the_wrapper(process_group):
    model = Net()
    attachment = attached(model)[1]
    wrapper = FullyShardedDataParallel(model, use_orig_params=False, device_id=torch.device("cpu"))
    optimizer = torch.optim.SGD(wrapper.parameters(), lr=0.1)
    assert said_of(steps_of(wrapper, optimizer, attachment), 5) == []
