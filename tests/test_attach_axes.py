"""Which axis of an output has the samples, where another has as many entries as both streams."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import batchformer as bf
from attach_nets import WIDTH, N
from attach_oracle import refused
from batchformer import marks

LENGTHS = pytest.mark.parametrize("length", [2 * N - 1, 2 * N])
Y = torch.arange(N) % 3


def encoder(batch_first):
    return nn.TransformerEncoderLayer(WIDTH, 4, WIDTH, 0.0, batch_first=batch_first)


class Turned(nn.Module):
    """Its block has the batch at the one of the first two axes, and its output at the other."""

    def __init__(self, batch_first):
        super().__init__()
        self.batch_first = batch_first
        self.block, self.fc = encoder(batch_first), nn.Linear(WIDTH, 3)

    def forward(self, x):
        x = x if self.batch_first else x.transpose(0, 1)
        return self.fc(self.block(x)).transpose(0, 1).contiguous()


@LENGTHS
@pytest.mark.parametrize("batch_first", [True, False])
def test_the_originals_are_along_the_axis_of_the_samples(length, batch_first):
    model = Turned(batch_first)
    attachment = bf.attach(model, after="block", dropout=0.0, outputs="originals")
    x = torch.randn(N, length, WIDTH)
    expected = model.eval()(x)
    originals = model.train()(x)
    torch.testing.assert_close(originals, expected)

    targets = Y.expand(length, N) if batch_first else Y[:, None].expand(N, length)

    def judge(logits, targets):
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    attachment._family.entry._originals_alone = False
    both = model(x)
    attachment._family.entry._originals_alone = True
    streams = both.chunk(2, dim=1 if batch_first else 0)
    torch.testing.assert_close(
        attachment.wrap(judge)(originals, targets), sum(judge(each, targets) for each in streams) / 2
    )


@LENGTHS
def test_pairings_take_the_streams_apart_along_the_axis_of_the_samples(length):
    class Features(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = encoder(batch_first=False)

        def forward(self, x):
            return self.block(x.transpose(0, 1)).transpose(0, 1)

    def contrast(z):
        z = F.normalize(z.mean(1))
        return F.cross_entropy(z @ z.T / 0.1, torch.arange(len(z)))

    model = Features()
    attachment = bf.attach(model, after="block", dropout=0.0)
    z = model(torch.randn(N, length, WIDTH))
    torch.testing.assert_close(
        attachment.wrap(contrast, targets=[])(z), (contrast(z[:N]) + contrast(z[N:])) / 2
    )


class Joined(torch.autograd.Function):
    """As an attention over points, which is one function: of [N, L, H, D] it makes [N, L, H D]."""

    @staticmethod
    def forward(_, x):
        return x.flatten(2)

    @staticmethod
    def backward(_, grad):
        return grad.unflatten(2, (4, 2))


TURNS = {
    "as it is": (lambda x: x, 0),
    "a product": (lambda x: x @ torch.randn(8, 8), 0),
    "transposed": (lambda x: x.transpose(0, 1), 1),
    "transposed from behind": (lambda x: x.transpose(-3, -2), 1),
    "permuted": (lambda x: x.permute(2, 0, 1), 1),
    "twice": (lambda x: x.permute(2, 0, 1).transpose(0, 1), 0),
    "joined and parted": (lambda x: x.flatten(0, 1).tanh().unflatten(0, (8, 8)).transpose(0, 1), 1),
    "joined, turned and parted": (lambda x: x.flatten(0, 1).T.reshape(8, 8, 8), 1),
    "a layer over the last": (lambda x: nn.Linear(8, 8)(x.transpose(0, 1)), 1),
    "one of a stack": (lambda x: torch.stack([x, x], 1).transpose(0, 2)[:, 1], 1),
    "attention": (lambda x: nn.MultiheadAttention(8, 4)(*[x.transpose(0, 1)] * 3)[0], 1),
    "attention of samples first": (
        lambda x: nn.MultiheadAttention(8, 4, batch_first=True)(x, x, x)[0].transpose(0, 1),
        1,
    ),
    "a function of its own": (
        lambda x: Joined.apply(x.unflatten(2, (4, 2))).transpose(1, 2).transpose(1, 2),
        0,
    ),
    "a mean": (lambda x: torch.stack([x, x], 1).transpose(0, 2).mean(1), 1),
    "a sum of the first": (lambda x: torch.stack([x, x]).transpose(1, 2).sum(0), 1),
    "cut": (lambda x: torch.cat([x, x], 2).transpose(0, 1)[..., 8:], 1),
}


@pytest.mark.parametrize("turn", TURNS)
def test_an_axis_is_followed_through_what_turns_joins_and_parts_axes(turn):
    function, axis = TURNS[turn]
    x = torch.randn(8, 8, 8, requires_grad=True).tanh()
    mark = marks.Doubled(None, 4)
    marks.put_by_history(x, mark)
    assert mark.axis_of(function(x)) == axis


def test_an_empty_batch_has_the_axis_that_is_empty():
    x = torch.randn(0, 8, requires_grad=True).tanh()
    mark = marks.Doubled(None, 0)
    marks.put_by_history(x, mark)
    assert mark.axis_of(nn.Linear(8, 3)(x)) == 0


def test_batches_of_which_the_history_does_not_show_the_axis_are_refused():
    x = torch.randn(8, 8, 8, requires_grad=True).tanh()
    mark = marks.Doubled(None, 4)
    marks.put_by_history(x, mark)
    for turn in (lambda x: x.unfold(0, 8, 1)[0], lambda x: x.as_strided((8, 8, 8), (8, 64, 1))):
        with refused(ValueError, saying="take batches of another size"):
            mark.axis_of(turn(x.transpose(0, 1)))


class InOrder(nn.Module):
    """A network on sequences whose output has its rows in some order."""

    def __init__(self, order):
        super().__init__()
        self.block, self.fc, self.order = encoder(batch_first=True), nn.Linear(WIDTH, 3), order

    def forward(self, x):
        return self.order(self.fc(self.block(x)))


ORDERS = {
    "samples first": (lambda z: z.reshape(-1, 3), True),
    "joined before": (lambda z: (z.flatten(0, 1) * 2).sigmoid(), True),
    "channels turned": (lambda z: z.transpose(1, 2).transpose(2, 1).flatten(0, 1), True),
    "positions first": (lambda z: z.transpose(0, 1).reshape(-1, 3), False),
    "over time": (lambda z: torch.cat(z.unbind(1)), False),
    "two views": (lambda z: torch.cat([z[:, 0], z[:, 1]]), False),
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("length", [5, 2 * N])
def test_rows_that_a_model_returns_in_another_order_are_refused(order, length):
    function, samples_first = ORDERS[order]
    model = InOrder(function)
    attachment = bf.attach(model, after="block", dropout=0.0)
    z = model(torch.randn(N, length, WIDTH))
    targets = torch.arange(len(z) // 2) % 3
    if samples_first:
        expected = F.cross_entropy(z, targets.repeat(2))
        torch.testing.assert_close(attachment.wrap(F.cross_entropy)(z, targets), expected)
        assert torch.equal(bf.original(z), z[: len(z) // 2])
        return
    for of_targets, arguments in ((None, (z, targets)), ([], (z,))):
        with refused(ValueError, saying="rows of both streams"):
            attachment.wrap(lambda z, *_: z.sum(), targets=of_targets)(*arguments)
    with refused(ValueError, saying="both streams along the first axis"):
        bf.original(z)


BY_CHANCE = {
    "joined with another view": lambda z: torch.cat([z, z]),
    "some rows": lambda z: z.index_select(0, torch.tensor([0, 2])),
    "a mean over the samples": lambda z: z.mean(0),
    "sums over classes": lambda z: torch.ones(3, 2 * N) @ z,
    "one half": lambda z: z.chunk(2)[0],
    "products of channels": lambda z: z.T @ z,
}


@pytest.mark.parametrize("width", [2 * N, 2 * N + 2])
@pytest.mark.parametrize("made", BY_CHANCE)
def test_channels_as_many_as_both_streams_are_not_taken_for_them(made, width):
    model = nn.Sequential(nn.Linear(8, WIDTH), nn.Linear(WIDTH, width))
    attachment = bf.attach(model, before="1")
    z = model(torch.randn(N, 8))
    with refused(ValueError, saying="rows of both streams"):
        attachment.wrap(lambda z: z.sum(), targets=[])(BY_CHANCE[made](z))


@pytest.mark.parametrize("height", [2 * N, 2 * N + 2])
def test_the_height_of_a_map_is_not_taken_for_both_streams(height):
    model = nn.Sequential(nn.Conv2d(3, WIDTH, 1), nn.Conv2d(WIDTH, 6, 1))
    attachment = bf.attach(model, after="0", dropout=0.0)
    halves = model(torch.randn(N, 3, height, height)).chunk(2)
    with refused(ValueError, saying="where a script cuts them"):
        attachment.wrap(lambda u, v: (u * v).mean(), targets=[])(*halves)


@pytest.mark.parametrize("outputs", ["both", "originals"])
@pytest.mark.parametrize("width", [2 * N, 2 * N + 2])
def test_a_mean_over_samples_that_a_model_returns_keeps_its_channels(width, outputs):
    class WithMean(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.fc = nn.Linear(8, WIDTH), nn.Linear(WIDTH, width)

        def forward(self, x):
            z = self.fc(self.stem(x))
            return z, z.mean(0)

    model = WithMean()
    attachment = bf.attach(model, before="fc", outputs=outputs)
    z, mean = model(torch.randn(N, 8))
    assert z.shape == (N if outputs == "originals" else 2 * N, width)
    assert mean.shape == (width,)
    with refused(ValueError, saying="rows of both streams"):
        attachment.wrap(lambda mean: mean.sum(), targets=[])(mean)
