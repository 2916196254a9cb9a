"""The benchmark measures what it says, and its table, JSON and picture show it."""

import json
import timeit
from dataclasses import replace
from itertools import product

import pytest
import torch
from PIL import Image
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode

from batchformer._extension import core
from batchformer.benchmark import __main__ as benchmark
from batchformer.benchmark import rows as table_rows
from batchformer.benchmark.competitors import EAGER, OURS, PRODUCTS, Setting, make_competitors
from batchformer.benchmark.flops import layer_flops
from batchformer.benchmark.memory import peak_floats, saved_floats
from batchformer.benchmark.peak import measure_fma_peak
from batchformer.benchmark.report import Row, draw, table, write_json
from batchformer.benchmark.rows import measure_rows
from batchformer.benchmark.shapes import SETS, Shape
from batchformer.benchmark.timing import WARM_UP, time_interleaved

TINY = (Shape("tiny", 4, 3, 16), Shape("tiny", 8, 1, 16))
SETTING = Setting(torch.device("cpu"), torch.float32, 0.5)
FROZEN = replace(SETTING, frozen=True)
NAMES = [OURS, EAGER, PRODUCTS]
CASES = [*product(TINY, (SETTING, FROZEN))]
PEAK = 1e9


@pytest.fixture(scope="module", autouse=True)
def _no_process_for_each_peak():
    """A second of work each; one test asks for two in earnest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table_rows, "peak_floats", lambda *_: 20.0)
        yield


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return measure_rows(CASES, NAMES, 10, PEAK, Console(quiet=True), 1)


def test_every_shape_has_times_ratios_and_memory(rows):
    assert [row.shape for row in rows] == [
        "tiny N=4 L=3 C=16",
        "tiny N=4 L=3 C=16 frozen",
        "tiny N=8 C=16",
        "tiny N=8 C=16 frozen",
    ]
    for row, (shape, setting) in zip(rows, CASES, strict=True):
        assert row.path == "cpu"
        assert list(row.times) == NAMES
        for parts in row.times.values():
            assert 0 < parts["forward"].minimum <= parts["forward"].median
            assert 0 < parts["step"].minimum <= parts["step"].median
        assert row.ratio(EAGER, OURS) == pytest.approx(
            row.times[EAGER]["step"].median / row.times[OURS]["step"].median
        )
        assert set(row.saved) == set(row.peak) == set(row.fma_share) == {OURS, EAGER}
        flops = layer_flops(shape, frozen=setting.frozen).step
        seconds = row.times[OURS]["step"].median
        assert row.fma_share[OURS] == pytest.approx(flops / seconds / PEAK)


def test_competitors_take_turns_and_warm_up_is_not_counted():
    calls = []

    class Fake:
        def __init__(self, name):
            self.name = name

        def step(self):
            calls.append(self.name)

        def forward(self):
            pass

    rounds = []
    times = time_interleaved([Fake("a"), Fake("b")], 10, torch.device("cpu"), lambda: rounds.append(None))
    assert calls == ["a", "b"] * (10 + WARM_UP)
    assert len(rounds) == 10 + WARM_UP
    assert set(times) == {"a", "b"}


def test_the_products_are_those_of_the_layer():
    """Multiplications as torch counts them: three products a linear, six of attention for one position."""
    for shape, setting in CASES:
        (products,) = make_competitors([PRODUCTS], shape, setting)
        m, c, n = shape.tokens, shape.channels, shape.samples
        linears = 2 * m * c * (3 * c + c + c + c)
        attention = 2 * shape.heads * n * n * (c // shape.heads) if shape.positions == 1 else 0
        for call, expected in (
            (products.step, (2 if setting.frozen else 3) * linears + 6 * attention),
            (products.forward, linears + 2 * attention),
        ):
            with FlopCounterMode(display=False) as counter:
                call()
            assert counter.get_total_flops() == expected


def test_what_is_saved_is_counted_in_floats_for_each_element():
    shape = Shape("wide", 64, 4, 128)
    ours = saved_floats(OURS, shape, SETTING)
    assert 7 < ours < 7.5  # x, qkv, residual1, hidden, residual2, and row statistics
    eager = saved_floats(EAGER, shape, SETTING)
    assert eager > 13
    assert saved_floats(OURS, shape, FROZEN) <= ours
    assert saved_floats(EAGER, shape, FROZEN) < eager  # without what its weights' gradients would take


def test_the_peak_of_a_step_holds_at_least_what_it_saves():
    shape = Shape("large", 512, 8, 256)
    for name in (OURS, EAGER):
        peak = peak_floats(name, shape, SETTING, threads=1)
        assert peak is not None
        assert peak > saved_floats(name, shape, SETTING) - 1


def test_a_layer_that_does_not_fit_is_left_out(rows, monkeypatch):
    monkeypatch.setattr(table_rows, "free_memory", lambda _: 6 * 3 * 4 * 16 * 4 - 1)
    (row,) = measure_rows(CASES[:1], NAMES, 10, PEAK, Console(quiet=True), 1)
    assert list(row.times) == [PRODUCTS]
    assert row.path == "-"
    assert row.fma_share == {}
    assert row.ratio(EAGER, OURS) is None


def test_table_json_and_picture_show_the_rows(rows, tmp_path):
    console = Console(width=200, record=True, quiet=False)
    console.print(table(rows))
    printed = console.export_text()
    for row in rows:
        assert row.shape in printed
        assert f"{1e3 * row.times[OURS]['step'].median:.1f}" in printed
        assert f"{row.fma_share[OURS]:.2f}" in printed
    write_json(tmp_path / "out" / "bench.json", rows, {"device": "a processor"}, {"device": "cpu"})
    document = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert document["rows"][0]["times"][OURS]["step"] == list(rows[0].times[OURS]["step"])
    assert document["rows"][0]["fma_share"] == rows[0].fma_share
    missing = replace(rows[0], times={PRODUCTS: rows[0].times[PRODUCTS]})
    draw(tmp_path / "bench.png", [*rows, missing], "title")
    picture = Image.open(tmp_path / "bench.png").convert("L")
    assert len(picture.getcolors()) > 50


@pytest.mark.parametrize("setting", [SETTING, FROZEN], ids=["trained", "frozen"])
@pytest.mark.parametrize("shape", TINY, ids=str)
def test_the_operations_of_a_layer_are_those_that_torch_counts_in_its_own(shape, setting):
    (eager,) = make_competitors([EAGER], shape, setting)
    for counted, call in zip(
        layer_flops(shape, frozen=setting.frozen), (eager.step, eager.forward), strict=True
    ):
        with FlopCounterMode(display=False) as counter:
            call()
        assert counter.get_total_flops() == counted


@pytest.mark.skipif(core.instruction_set() == "baseline", reason="it has no fused multiply-add")
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_peak_is_one_that_a_processor_can_have(dtype):
    """Two instructions of 64 bytes a cycle at 8 GHz are more; a loop that the compiler leaves out is not.

    One that it leaves in scalars, as it did, falls behind any product.
    """
    peak = measure_fma_peak(dtype)
    assert peak < 2 * 2 * 64 // dtype.itemsize * 8e9
    square = torch.randn(256, 256, dtype=dtype)
    seconds = min(timeit.repeat(lambda: square @ square, number=1, repeat=50))
    assert peak > 2 * 256**3 / seconds / 3


def test_every_thread_of_torch_takes_part_in_the_peak():
    torch.set_num_threads(1)
    one = core.fma_flops(1000, double=False)
    torch.set_num_threads(3)
    assert core.fma_flops(1000, double=False) == 3 * one


def test_the_table_says_which_path_half_precision_took():
    setting = replace(SETTING, dtype=torch.bfloat16)
    (row,) = measure_rows([(TINY[0], setting)], NAMES, 10, PEAK, Console(quiet=True), 1)
    assert list(row.times) == NAMES
    assert row.path in ("cpu", "aten", "torch's")
    console = Console(width=200, record=True)
    console.print(table([row]))
    assert row.path in console.export_text().split()


def test_what_runs_on_no_fused_multiply_adds_of_ours_has_no_peak(monkeypatch):
    assert benchmark.find_peak(replace(SETTING, device=torch.device("cuda"))) is None
    monkeypatch.setattr(benchmark.ops, "instruction_set", lambda: "baseline")
    assert benchmark.find_peak(SETTING) is None


def test_the_sets_have_the_shapes_of_the_systems():
    assert {str(shape) for shape in SETS["paper"]} >= {"DETR N=2 L=850 C=256", "DeiT-S N=64 L=197 C=384"}
    assert [shape.samples for shape in SETS["scale"]] == [1024, 2048, 4096, 8192, 16384, 32768]
    assert set(SETS["paper"]) == set(SETS["v1"]) | set(SETS["v2"])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--rounds", "3"], "--rounds: expected at least 10, got 3"),
        (["--threads", "0"], "--threads: expected at least 1, got 0"),
        (["--dropout", "2"], "--dropout: expected a probability from 0 to 1, got 2.0"),
        (["--device", "tpu"], "--device: expected cpu or cuda, got tpu"),
        (["--json", "no/folder.json"], "--json: no/folder.json cannot be written"),
        (["--plot", "."], "--plot: . cannot be written"),
        (["--plot", "ratios.txt"], "--plot: expected a name that ends in .png, .svg or .pdf, got ratios.txt"),
        (["--shapes", "huge"], "--shapes: expected of paper, v1, v2, gpu, scale, gather, or part"),
    ],
)
def test_bad_options_get_a_sentence(arguments, sentence, capsys):
    with pytest.raises(SystemExit) as stopped:
        benchmark.main(arguments)
    assert stopped.value.code == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.usefixtures("one_thread")
def test_the_command_line_runs_from_end_to_end(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(benchmark.SETS, "v1", TINY[1:])
    monkeypatch.setattr(benchmark, "find_peak", lambda _: PEAK)
    files = ["--json", str(tmp_path / "bench.json"), "--plot", str(tmp_path / "bench.png")]
    assert benchmark.main(["--shapes", "v1", "--threads", "1", "--frozen", *files]) == 0
    printed = capsys.readouterr().out
    assert "tiny N=8 C=16 frozen" in printed
    assert f"torch {torch.__version__}" in " ".join(printed.split())
    assert "fma peak 1 GFLOP/s" in " ".join(printed.split())
    assert (tmp_path / "bench.json").exists()
    assert (tmp_path / "bench.png").exists()
