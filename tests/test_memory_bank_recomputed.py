"""A forward that a checkpoint runs again sees what it saw at first, or is refused; its samples enter once."""

import contextlib
import functools
import gc
import threading
import weakref

import pytest
import torch
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
    set_checkpoint_early_stop,
)

from memory_bank_layer import Layer, batch, expected, gradients
from tolerances import RELATIVE, relative_error

KINDS = pytest.mark.parametrize("reentrant", [False, True], ids=["non_reentrant", "reentrant"])


def assert_gradients(layer, inputs, wanted_loss):
    """Those that were made are those of `wanted_loss`."""
    actual = gradients(layer, *inputs)
    wanted_loss.backward()
    wanted = gradients(layer, *inputs)
    errors = [relative_error(*pair) for pair in zip(actual, wanted, strict=True)]
    assert max(errors) <= RELATIVE[torch.float64], errors


def loss(y, weight=1):
    return (weight * y).square().sum()


def filled(size=7):
    """A layer that has seen 4 samples, and these."""
    layer, x = Layer(size), batch(4)
    layer(x)
    return layer, list(x.detach())


def holds(layer):
    return list(layer.bank.look(batch(1)).rows)


def same(rows, others):
    return len(rows) == len(others) and all(map(torch.equal, rows, others))


def wrapped(layer, *kinds):
    """The layer in checkpoints, the first the innermost."""
    for kind in kinds:
        layer = functools.partial(checkpoint, layer, use_reentrant=kind)
    return layer


@KINDS
@pytest.mark.parametrize("order", [[0], [0, 1], [1, 0], [1, 2, 0]], ids=str)
@pytest.mark.parametrize("alike", [False, True], ids=["other_x", "same_x"])
@pytest.mark.parametrize("joined", [False, True], ids=["each_backward", "one_backward"])
def test_forwards_before_their_backwards_see_their_own_snapshots(reentrant, order, alike, joined):
    layer, earlier = filled()
    inputs = [batch(3) for _ in order]
    if alike:
        inputs = inputs[:1] * len(inputs)
    snapshots = []
    for x in inputs:
        snapshots.append(earlier)
        if not reentrant:
            earlier = [*x.detach(), *earlier][:7]
    outputs = [checkpoint(layer, x, use_reentrant=reentrant) for x in inputs]
    assert same(holds(layer), earlier)
    losses = [loss(y, index + 1) for index, y in enumerate(outputs)]
    if joined:
        sum(losses).backward()
        order = range(len(losses))[::-1]
    else:
        for index in order:
            losses[index].backward()
    if reentrant:
        for index in order:
            earlier = [*inputs[index].detach(), *earlier][:7]
    assert same(holds(layer), earlier)
    wanted = sum(
        loss(expected(layer, x, seen), index + 1)
        for index, (x, seen) in enumerate(zip(inputs, snapshots, strict=True))
    )
    assert_gradients(layer, inputs if not alike else inputs[:1], wanted)


@KINDS
def test_many_steps_with_one_x_enter_it_once_a_step(reentrant):
    layer, earlier = filled(30)
    x = batch(3)
    for _ in range(6):
        loss(checkpoint(layer, x, use_reentrant=reentrant)).backward()
        assert_gradients(layer, [x], loss(expected(layer, x, earlier)))
        earlier = [*x.detach(), *earlier]
        assert same(holds(layer), earlier)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # in a forward without gradients
@pytest.mark.parametrize("inner", [False, True], ids=["non_reentrant_in", "reentrant_in"])
@pytest.mark.parametrize("outer", [False, True], ids=["non_reentrant", "reentrant"])
@pytest.mark.parametrize("order", [[0, 1], [1, 0]], ids=str)
@pytest.mark.parametrize("depth", [2, 3])
def test_nested_checkpoints_see_the_snapshot_of_the_first_forward(inner, outer, order, depth):
    layer, earlier = filled()
    x = batch(3)
    kinds = [inner] * (depth - 1) + [outer]
    snapshots, outputs = [], []
    for _ in order:
        snapshots.append(holds(layer))
        # what is around the inner one needs the bank, too
        outputs.append(
            checkpoint(lambda x: wrapped(layer, *kinds[:-1])(x.sin()).cos(), x, use_reentrant=outer)
        )
    for index in order:
        loss(outputs[index], index + 1).backward()
    wanted = sum(
        loss(expected(layer, x.sin(), seen).cos(), index + 1) for index, seen in enumerate(snapshots)
    )
    assert_gradients(layer, [x], wanted)
    entered = list(x.detach().sin())
    assert same(holds(layer), [*entered, *entered, *earlier][:7]), "each once"


@KINDS
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("branch", [0, 1])
def test_a_part_that_runs_the_layer_twice_sees_two_snapshots_even_on_branches(reentrant, nested, branch):
    layer, earlier = filled(9)
    x = batch(2)
    call = wrapped(layer, reentrant) if nested else layer

    def part(x):
        return call(x), call(x)

    outputs = checkpoint(part, x, use_reentrant=reentrant)
    (loss(outputs[branch]) + 0 * outputs[1 - branch].sum()).backward()
    second = earlier if reentrant else [*x.detach(), *earlier]
    assert_gradients(layer, [x], loss(expected(layer, x, [earlier, second][branch])))
    assert same(holds(layer), [*x.detach(), *x.detach(), *earlier][:9])


@pytest.mark.parametrize("when", ["before", "after", "both"])
@KINDS
def test_a_forward_without_gradients_of_the_same_x_is_not_mistaken_for_it(reentrant, when):
    layer, earlier = filled()
    x, other = batch(3), batch(2)
    if when != "after":
        with torch.no_grad():
            layer(x)
    layer(other)
    earlier = [*other.detach(), *earlier]
    y = checkpoint(layer, x, use_reentrant=reentrant)
    layer(other)
    if when != "before":
        with torch.no_grad():
            layer(x)
    loss(y).backward()
    assert_gradients(layer, [x], loss(expected(layer, x, earlier)))
    entered = [*x.detach(), *other.detach()] if reentrant else [*other.detach(), *x.detach()]
    assert same(holds(layer), [*entered, *earlier][:7])


@pytest.mark.parametrize("nested", [False, True])
@KINDS
def test_a_second_backward_of_the_same_graph_sees_the_same_and_enters_nothing(reentrant, nested):
    layer, earlier = filled()
    x = batch(3)
    y = loss(checkpoint(wrapped(layer, reentrant) if nested else layer, x, use_reentrant=reentrant))
    y.backward(retain_graph=True)
    layer(batch(2))
    kept = holds(layer)
    y.backward()
    assert_gradients(layer, [x], 2 * loss(expected(layer, x, earlier)))
    assert same(holds(layer), kept)


@KINDS
def test_a_recomputation_that_rounds_otherwise_is_told_by_what_runs_it(reentrant):
    layer, earlier = filled()
    inputs = [batch(3), batch(3)]
    snapshots = [earlier, earlier if reentrant else [*inputs[0].detach(), *earlier]]
    noise = iter([0, 0, 1e-13, 1e-13])
    outputs = [checkpoint(lambda x: layer(x + next(noise)), x, use_reentrant=reentrant) for x in inputs]
    for y in outputs:
        loss(y).backward()
    wanted = sum(loss(expected(layer, x, seen)) for x, seen in zip(inputs, snapshots, strict=True))
    assert_gradients(layer, inputs, wanted)


def _policy(ctx, op, *args, **kwargs):
    return CheckpointPolicy.PREFER_RECOMPUTE


@contextlib.contextmanager
def _own_hooks():
    with saved_tensors_hooks(lambda x: x, lambda x: x):
        yield


AROUND = {
    "save_on_cpu": save_on_cpu,
    "no early stop": lambda: set_checkpoint_early_stop(False),
    "own hooks": _own_hooks,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


@KINDS
@pytest.mark.parametrize("around", AROUND.values(), ids=AROUND)
@pytest.mark.parametrize("place", ["inside", "forward", "both"])
def test_hooks_of_others_do_not_hide_the_checkpoint(reentrant, around, place):
    layer, earlier = filled()
    x = batch(3)

    def part(x):
        with around() if place == "inside" else contextlib.nullcontext():
            return layer(x)

    with around() if place != "inside" else contextlib.nullcontext():
        ys = [checkpoint(part, x, use_reentrant=reentrant) for _ in range(2)]
        if place == "both":
            (loss(ys[0]) + loss(ys[1])).backward()
    if place != "both":
        (loss(ys[0]) + loss(ys[1])).backward()
    second = earlier if reentrant else [*x.detach(), *earlier]
    wanted = loss(expected(layer, x, earlier)) + loss(expected(layer, x, second))
    if around is not AROUND["autocast"]:
        assert_gradients(layer, [x], wanted)
    assert same(holds(layer), [*x.detach(), *x.detach(), *earlier][:7])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "options",
    [{"debug": True}, {"context_fn": lambda: create_selective_checkpoint_contexts(_policy)}],
    ids=["debug", "selective"],
)
def test_the_options_of_a_checkpoint_change_nothing(options):
    layer, earlier = filled()
    inputs = [batch(3), batch(3)]
    outputs = [checkpoint(layer, x, use_reentrant=False, **options) for x in inputs]
    for y in outputs:
        loss(y).backward()
    wanted = loss(expected(layer, inputs[0], earlier))
    wanted = wanted + loss(expected(layer, inputs[1], [*inputs[0].detach(), *earlier]))
    assert_gradients(layer, inputs, wanted)


@KINDS
def test_an_output_that_is_not_used_or_needs_no_gradient_is_no_error(reentrant):
    layer, earlier = filled()
    for parameter in layer.parameters():
        parameter.requires_grad_(False)
    x, scale = batch(3).detach(), torch.ones((), dtype=torch.float64, requires_grad=True)

    def part(x, scale):
        layer(x)
        return layer(x) * scale

    loss(checkpoint(part, x, scale, use_reentrant=reentrant)).backward()
    second = earlier if reentrant else [*x, *earlier]
    torch.testing.assert_close(scale.grad, 2 * expected(layer, x, second).square().sum())


@KINDS
def test_a_backward_in_another_thread_finds_its_forward(reentrant):
    layer, earlier = filled()
    x = batch(3)
    y = loss(checkpoint(layer, x, use_reentrant=reentrant))
    thread = threading.Thread(target=y.backward)
    thread.start()
    thread.join()
    assert_gradients(layer, [x], loss(expected(layer, x, earlier)))


@KINDS
def test_a_forward_that_fails_leaves_nothing_behind(reentrant):
    layer, earlier = filled()
    x, fails = batch(3), iter([True, False, False])

    def part(x):
        y = layer(x)
        if next(fails):
            raise KeyError("in the middle")
        return y.sin().cos()

    with pytest.raises(KeyError):
        checkpoint(part, x, use_reentrant=reentrant)
    if not reentrant:
        earlier = [*x.detach(), *earlier][:7]
    loss(checkpoint(part, x, use_reentrant=reentrant)).backward()
    assert_gradients(layer, [x], loss(expected(layer, x, earlier).sin().cos()))
    assert same(holds(layer), [*x.detach(), *earlier][:7])


@pytest.fixture
def no_collector():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("depth", [0, 1, 2])
def test_what_a_forward_saw_goes_with_its_graph(depth, backward, no_collector):
    layer, _ = filled()
    seen = weakref.ref(layer.bank.rows)
    y = loss(wrapped(layer, *[False] * depth)(batch(3)))
    assert (seen() is None) == (depth == 0), "no checkpoint, nothing to keep"
    if backward:
        y.backward()
    del y
    assert seen() is None
    assert not layer.bank._forwards._of_frames
    assert not layer.bank._forwards._found


def test_forwards_without_gradients_keep_a_few_states_alive(no_collector):
    layer, _ = filled()
    states = []
    for _ in range(400):
        with torch.no_grad():
            layer(batch(3))
        layer(batch(1))
        states.append(weakref.ref(layer.bank.rows))
    assert sum(state() is not None for state in states) <= 4
    with torch.no_grad():
        for _ in range(400):
            layer(batch(3))
    assert sum(state() is not None for state in states) <= 4
    assert len(layer.bank._forwards._calls) <= 256
    layer, _ = filled()
    for _ in range(50):
        loss(checkpoint(layer, batch(1), use_reentrant=True)).backward()
        states.append(weakref.ref(layer.bank.rows))
    assert sum(state() is not None for state in states) <= 8
    bank = weakref.ref(layer.bank)
    del layer
    assert bank() is None


def test_the_hooks_on_saved_tensors_stay_as_they_are():
    layer, order = Layer(4), []
    hooks = [saved_tensors_hooks(lambda x, name=name: order.append(name) or x, lambda x: x) for name in "ab"]
    top = torch._C._autograd._top_saved_tensors_default_hooks
    with hooks[0], hooks[1]:
        before = top(True)
        layer.bank.look(batch(1))
        assert top(True) == before
        batch(1).sin()
    with hooks[0]:
        layer.bank.look(batch(1))
        batch(1).sin()
    assert set(order) == {"a", "b"}
    assert order[-1] == "a"
    assert top(True) is None


UNKNOWN = "checkpoint: expected to run a forward again that the memory bank has seen"


@KINDS
def test_one_that_ran_too_long_ago_is_refused_or_found(reentrant):
    layer, earlier = filled()
    x = batch(3)
    y = loss(checkpoint(layer, x, use_reentrant=reentrant))
    for _ in range(4):
        layer(batch(1))
        with torch.no_grad():
            layer(batch(1))
    if reentrant:
        with pytest.raises(RuntimeError, match=UNKNOWN):
            y.backward()
    else:
        y.backward()
        assert_gradients(layer, [x], loss(expected(layer, x, earlier)))


def test_one_that_is_kept_no_more_is_not_taken_for_the_next_that_is():
    layer, _ = filled()
    y = loss(checkpoint(layer, batch(3), use_reentrant=True))
    for _ in range(4):
        layer.bank.enter(batch(1))
        with torch.no_grad():
            layer(batch(3))
    with pytest.raises(RuntimeError, match=UNKNOWN):
        y.backward()


def test_a_forward_in_a_hook_on_gradients_is_refused():
    layer, _ = filled()
    x = batch(3)
    y = layer(x)
    layer.bank._forwards._calls.clear()  # as if other calls had pushed it out
    with torch.no_grad():
        layer(x)
    y.register_hook(lambda grad: layer(x))
    with pytest.raises(RuntimeError, match=UNKNOWN):
        loss(y).backward()


class HookCheckpoint:
    """Another package's checkpoint: hooks on saved tensors of its own."""

    def __init__(self, part, x):
        self.part, self.x, self.tensors = part, x, None
        with saved_tensors_hooks(self.pack, self.unpack):
            self.packed = 0
            self.y = part(x)

    def pack(self, _):
        self.packed += 1
        return self.packed - 1

    def unpack(self, index):
        if self.tensors is None:
            self.tensors = []
            with torch.enable_grad(), saved_tensors_hooks(lambda x: self.tensors.append(x) or x, lambda x: x):
                self.part(self.x)
        return self.tensors[index]


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, grad):
        return 2 * ctx.saved_tensors[0] * grad


@pytest.mark.parametrize("last", [torch.sin, Square.apply], ids=["op", "function of Python's"])
def test_the_checkpoint_of_another_package_is_refused(last):
    layer, _ = filled()
    x = batch(3)
    y = HookCheckpoint(lambda x: last(layer(x)), x).y
    with torch.no_grad():
        layer(x)
    with pytest.raises(RuntimeError, match=UNKNOWN):
        loss(y).backward()


def test_gradients_inside_of_a_reentrant_checkpoint_are_refused():
    layer, _ = filled()

    def part(x):
        with torch.enable_grad():
            y = layer(x)
        return y * 2

    y = checkpoint(part, batch(3), use_reentrant=True)
    with torch.no_grad():
        layer(batch(3))
    with pytest.raises(RuntimeError, match=UNKNOWN):
        loss(y).backward()


@KINDS
def test_another_shape_than_at_first_is_refused(reentrant):
    layer, _ = filled()
    sizes = iter([3, 2])
    y = checkpoint(lambda x: layer(x[: next(sizes)]), batch(3), use_reentrant=reentrant)
    with pytest.raises(RuntimeError, match=r"expected to run a forward with x of shape \[3, 3, 6\] again"):
        loss(y).backward()


def test_calls_of_two_threads_without_gradients_are_not_told_apart():
    layer, ys = Layer(7), []
    for _ in range(2):
        layer.bank.enter(batch(2))
        thread = threading.Thread(target=lambda: ys.append(checkpoint(layer, batch(3), use_reentrant=True)))
        thread.start()
        thread.join()
    with pytest.raises(RuntimeError, match=UNKNOWN):
        loss(ys[1]).backward()


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # in a forward without gradients
def test_nested_reentrant_checkpoints_whose_backward_is_in_another_thread_are_refused():
    layer, _ = filled()
    y, errors = loss(wrapped(layer, True, True)(batch(3))), []

    def backward():
        try:
            y.backward()
        except RuntimeError as error:
            errors.append(str(error))

    thread = threading.Thread(target=backward)
    thread.start()
    thread.join()
    assert UNKNOWN in errors[0]
    loss(wrapped(layer, True, True)(batch(3))).backward()


@KINDS
def test_a_compiled_layer_in_an_eager_checkpoint_is_refused(reentrant):
    layer, _ = filled()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    y = checkpoint(compiled, batch(3), use_reentrant=reentrant)
    with pytest.raises(RuntimeError, match="checkpoint: expected a forward with a memory bank to be eager"):
        loss(y).backward()
