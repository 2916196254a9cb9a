"""The fused path on the CPU: threads, processes, memory. Its results are checked where the layer's are."""

import concurrent.futures

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import batchformer as bf
from batchformer.benchmark.competitors import OURS, Setting
from batchformer.benchmark.memory import saved_floats
from batchformer.benchmark.shapes import Shape
from reference import layers, of_queries, results
from tolerances import assert_near

# Tiles of positions, tiles of rows of one position, several positions of many samples, small ones, and one
# position with weights that do not stay in a core's cache; sizes that nothing divides.
SHAPES = [
    (4, 331, 64, 4),
    (257, 1, 96, 1),
    (133, 5, 48, 2),
    (1031, 1, 32, 4),
    (7, 5, 24, 4),
    (301, 1, 160, 4),
]


def training_step(layer: bf.TransformerEncoderLayer, x: torch.Tensor, seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return results(layer, layer, x, torch.ones_like(x))


def assert_same(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert actual.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(actual[name], expected[name])] == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("norm_first", [False, True], ids=["post_norm", "pre_norm"])
@pytest.mark.parametrize(("n", "l", "c", "heads"), SHAPES)
def test_any_number_of_threads_gives_the_same_bits(n, l, c, heads, norm_first, dtype):
    layer = bf.TransformerEncoderLayer(c, heads, c, 0.5, norm_first=norm_first, dtype=dtype)
    x = torch.randn(n, l, c, dtype=dtype)
    before = bf.ops.path_counts()["cpu"]
    runs = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        runs.append(training_step(layer, x, seed=1))
    assert bf.ops.path_counts()["cpu"] == before + 6
    assert_same(runs[1], runs[0])
    assert_same(runs[2], runs[0])


@pytest.mark.parametrize(
    ("n", "l", "c", "heads"),
    [(4, 850, 32, 4), (600, 1, 128, 4), (3, 850, 32, 8), (5, 197, 32, 4), (6, 300, 12, 4), (7, 1000, 32, 8)],
)
def test_sixteen_and_sixty_four_threads_give_the_bits_of_one(n, l, c, heads):
    """So many get smaller tiles, and more of them before the gradients of the weights."""
    layer = bf.TransformerEncoderLayer(c, heads, c, 0.5)
    x = torch.randn(n, l, c)
    runs = []
    for count in (1, 16, 64):
        torch.set_num_threads(count)
        runs.append(training_step(layer, x, seed=1))
    assert_same(runs[1], runs[0])
    assert_same(runs[2], runs[0])


@pytest.mark.parametrize(("n", "l", "keys"), [(2, 850, 5), (4, 850, 5), (4, 850, 20)])
def test_sixteen_threads_give_the_bits_of_one_with_the_keys_of_others(n, l, keys):
    x, keys_values = torch.randn(n, l, 32), torch.randn(keys, l, 64)
    layer = bf.TransformerEncoderLayer(32, 4, 32, 0.0)
    parameters = of_queries(layer)
    runs = []
    for count in (1, 16):
        torch.set_num_threads(count)
        leaves = [each.clone().requires_grad_() for each in (x, keys_values)]
        y = bf.ops.encoder_layer(leaves[0], parameters, layer._config(), keys_values=leaves[1])
        grads = torch.autograd.grad(y.square().sum(), [*leaves, *layer.parameters()], materialize_grads=True)
        runs.append({str(number): each for number, each in enumerate((y.detach(), *grads))})
    assert_same(runs[1], runs[0])


def test_callers_in_eight_threads_get_what_one_gets():
    x = [torch.randn(n, l, c) for n, l, c, _ in SHAPES]
    made = [bf.TransformerEncoderLayer(c, heads, c, 0.0) for *_, c, heads in SHAPES]
    grads = [torch.randn_like(each) for each in x]
    parameters = [layer._parameters_of_op() for layer in made]

    def run(number: int) -> list[torch.Tensor]:
        """Output and gradients without the layer's .grad, which threads would share."""
        i = number % len(SHAPES)
        leaf = x[i].clone().requires_grad_()
        y = bf.ops.encoder_layer(leaf, parameters[i], made[i]._config())
        return [y.detach(), *torch.autograd.grad(y, (leaf, *parameters[i]), grads[i])]

    expected = [run(i) for i in range(len(SHAPES))]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for number, actual in enumerate(pool.map(run, range(80))):
            pairs = zip(actual, expected[number % len(SHAPES)], strict=True)
            assert all(torch.equal(a, b) for a, b in pairs)


class Related(Dataset):
    """Samples that a worker leads through the layer."""

    def __init__(self, layer: bf.TransformerEncoderLayer) -> None:
        self.layer = layer

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> torch.Tensor:
        x = torch.full((64, 10, 64), float(index + 1), requires_grad=True)
        y = self.layer(x)
        y.sum().backward()
        return torch.stack([y.detach(), x.grad])


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")  # what the test is about
def test_a_forked_worker_of_a_data_loader_can_call_it():
    data = Related(bf.TransformerEncoderLayer(64, 4, 64, 0.0))
    here = [data[index] for index in range(len(data))]  # the threads of this process have run
    loader = DataLoader(data, batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=60)
    assert all(torch.equal(a, b) for a, b in zip(loader, here, strict=True))


@pytest.mark.parametrize("norm_first", [False, True], ids=["post_norm", "pre_norm"])
@pytest.mark.parametrize(("n", "l", "c", "heads"), SHAPES)
def test_recomputing_gives_the_same_bits(n, l, c, heads, norm_first):
    x = torch.randn(n, l, c)
    keeps, recomputes = (
        bf.TransformerEncoderLayer(c, heads, c, 0.5, norm_first=norm_first, recompute=recompute)
        for recompute in (False, True)
    )
    recomputes.load_state_dict(keeps.state_dict())
    assert_same(training_step(recomputes, x, seed=3), training_step(keeps, x, seed=3))


@pytest.mark.parametrize("make", [bf.BatchFormer, bf.BatchFormerV2])
def test_the_modules_keep_their_input_alone_when_they_recompute(make):
    kept = {}
    for recompute in (False, True):
        module = make(64, recompute=recompute)
        x = torch.randn(512, 64) if make is bf.BatchFormer else torch.randn(8, 64, 64)
        sizes = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, sizes=sizes: sizes.update({t.data_ptr(): t.numel()}) or t, lambda t: t
        ):
            module(x.requires_grad_())
        for parameter in module.parameters():
            sizes.pop(parameter.data_ptr(), None)
        kept[recompute] = sum(sizes.values()) / x.numel()
    assert kept[True] < 1.01
    assert kept[False] > 6


@pytest.mark.parametrize(
    ("shape", "floats"),
    [(Shape("V2", 16, 850, 256), 6), (Shape("V1", 4096, 1, 512), 7)],
    ids=["V2", "V1"],
)
def test_what_is_saved_is_within_its_bound(shape, floats):
    """The input, which is the caller's, and row statistics come on top: four, and one for each head."""
    setting = Setting(torch.device("cpu"), torch.float32, 0.5)
    assert saved_floats(OURS, shape, setting) <= 1 + floats + (4 + shape.heads) / shape.channels + 1e-6


def test_an_output_that_is_held_is_never_written_again():
    layer = bf.TransformerEncoderLayer(256, 4, 256, 0.5)
    x = torch.randn(64, 50, 256)
    held = [layer(x) for _ in range(3)]
    copies = [y.detach().clone() for y in held]
    for _ in range(3):
        layer(x).sum().backward()
    held[0].sum().backward(retain_graph=True)
    first = layer.linear1.weight.grad.clone()
    layer.zero_grad()
    held[0].sum().backward()
    assert all(torch.equal(y.detach(), copy) for y, copy in zip(held, copies, strict=True))
    assert layer.linear1.weight.grad.isfinite().all()
    assert not torch.equal(first, layer.linear1.weight.grad)  # the first was added to those of three steps


@pytest.mark.parametrize("view", ["transposed", "expanded", "sliced", "reversed strides"])
def test_views_are_read_where_they_lie(view):
    n, l, c = 6, 100, 16
    x = {
        "transposed": lambda: torch.randn(l, n, c, dtype=torch.float64).transpose(0, 1),
        "expanded": lambda: torch.randn(n, 1, c, dtype=torch.float64).expand(n, l, c),
        "sliced": lambda: torch.randn(2 * n, 3 * l, 2 * c, dtype=torch.float64)[::2, ::3, c:],
        "reversed strides": lambda: torch.randn(c, l, n, dtype=torch.float64).permute(2, 1, 0),
    }[view]()
    theirs, ours = layers(c, 4, c, 0.0, dtype=torch.float64)
    grad_y = x.detach().flip(0).transpose(0, 1).contiguous().transpose(0, 1)
    actual = results(ours, ours, x, grad_y)
    assert_near(actual, results(theirs, theirs, x, grad_y), torch.float64)


def test_what_is_no_number_stays_visible():
    layer = bf.TransformerEncoderLayer(16, 4, 16, 0.0)
    x = torch.randn(6, 3, 16)
    x[2, 1, 5] = torch.nan
    y = layer(x)
    assert y[:, 1].isnan().all(), "samples attend to each other at a position"
    assert y[:, [0, 2]].isfinite().all()


def test_what_is_no_number_at_one_position_depends_on_no_number_of_threads():
    """Some positions are multiplied with each other, with others in a tile of another size."""
    layer = bf.TransformerEncoderLayer(32, 2, 32, 0.0)
    x = torch.randn(5, 900, 32)
    x[0, 5] = torch.nan
    runs = []
    for count in (1, 2, 64):
        torch.set_num_threads(count)
        step = training_step(layer, x, seed=1)
        finite = {name: step[name].isfinite().all(-1).all(0) for name in ("output", "grad of x")}
        assert all(each.sum() == 899 and not each[5] for each in finite.values())
        runs.append({name: step[name][:, finite[name]] for name in finite})
    assert_same(runs[1], runs[0])
    assert_same(runs[2], runs[0])


@pytest.mark.parametrize("sizes", [(1e15, 1e26), (1e12, 1e30)], ids=str)
def test_a_product_between_positions_may_be_infinite(sizes):
    """Not one of a position by itself is.

    Where x is large, a gradient is what rounding leaves of it, in torch's layer, too: it is compared with
    that of the position alone.
    """
    theirs, ours = layers(8, 2, 8, 0.0)
    x, grad_y = torch.randn(2, 2, 2, 8)
    x[:, 0] *= sizes[0]
    grad_y[:, 1] *= sizes[1]
    together, of_torch = (results(layer, layer, x, grad_y)["grad of x"] for layer in (ours, theirs))
    for position in (0, 1):
        alone = results(ours, ours, x[:, [position]], grad_y[:, [position]])["grad of x"]
        assert alone.isfinite().all()
        assert_near({"grad of x": together[:, [position]]}, {"grad of x": alone}, torch.float32)
    assert_near({"grad of x": together[:, 1]}, {"grad of x": of_torch[:, 1]}, torch.float32)


def test_unused_gradients_may_be_left_out():
    layer = bf.TransformerEncoderLayer(16, 4, 16, 0.0)
    x = torch.randn(6, 3, 16)
    layer(x).sum().backward()
    expected = layer.norm2.bias.grad.clone()
    layer.zero_grad()
    layer.requires_grad_(False).norm2.bias.requires_grad_(True)
    layer(x).sum().backward()
    assert torch.equal(layer.norm2.bias.grad, expected)
