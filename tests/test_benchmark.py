"""The benchmark measures what it says, and its table, JSON and picture show it."""

import json

import pytest
import torch
from PIL import Image
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode

from batchformer.benchmark import __main__ as benchmark
from batchformer.benchmark.competitors import EAGER, OURS, PRODUCTS, Setting, make_competitors
from batchformer.benchmark.memory import peak_floats, saved_floats
from batchformer.benchmark.report import Row, draw, table, write_json
from batchformer.benchmark.shapes import SETS, Shape
from batchformer.benchmark.timing import WARM_UP, time_interleaved

TINY = (Shape("tiny", 4, 3, 16), Shape("tiny", 8, 1, 16))
SETTING = Setting(torch.device("cpu"), torch.float32, 0.5)
NAMES = [OURS, EAGER, PRODUCTS]


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return benchmark.measure(TINY, NAMES, SETTING, 10, 1, Console(quiet=True))


def test_every_shape_has_times_ratios_and_memory(rows):
    assert [row.shape for row in rows] == ["tiny N=4 L=3 C=16", "tiny N=8 C=16"]
    for row in rows:
        assert row.path == "cpu"
        assert list(row.times) == NAMES
        for parts in row.times.values():
            assert 0 < parts["forward"].minimum <= parts["forward"].median
            assert 0 < parts["step"].minimum <= parts["step"].median
        assert row.ratio(EAGER, OURS) == pytest.approx(
            row.times[EAGER]["step"].median / row.times[OURS]["step"].median
        )
        assert set(row.saved) == set(row.peak) == {OURS, EAGER}


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
    for shape in TINY:
        (products,) = make_competitors([PRODUCTS], shape, SETTING)
        m, c, n = shape.tokens, shape.channels, shape.samples
        linears = 2 * m * c * (3 * c + c + c + c)
        attention = 2 * shape.heads * n * n * (c // shape.heads) if shape.positions == 1 else 0
        for call, expected in (
            (products.step, 3 * linears + 6 * attention),
            (products.forward, linears + 2 * attention),
        ):
            with FlopCounterMode(display=False) as counter:
                call()
            assert counter.get_total_flops() == expected


def test_what_is_saved_is_counted_in_floats_for_each_element():
    shape = Shape("wide", 64, 4, 128)
    ours = saved_floats(OURS, shape, SETTING)
    assert 7 < ours < 7.5  # x, qkv, residual1, activated, residual2, and row statistics
    assert saved_floats(EAGER, shape, SETTING) > 13


def test_the_peak_of_a_step_holds_at_least_what_it_saves():
    shape = Shape("large", 512, 8, 256)
    for name in (OURS, EAGER):
        peak = peak_floats(name, shape, SETTING, threads=1)
        assert peak is not None
        assert peak > saved_floats(name, shape, SETTING) - 1


def test_a_layer_that_does_not_fit_is_left_out(rows, monkeypatch):
    monkeypatch.setattr(benchmark, "free_memory", lambda _: 6 * 3 * 4 * 16 * 4 - 1)
    (row,) = benchmark.measure(TINY[:1], NAMES, SETTING, 10, 1, Console(quiet=True))
    assert list(row.times) == [PRODUCTS]
    assert row.ratio(EAGER, OURS) is None


def test_table_json_and_picture_show_the_rows(rows, tmp_path):
    console = Console(width=160, record=True, quiet=False)
    console.print(table(rows))
    printed = console.export_text()
    for row in rows:
        assert row.shape in printed
        assert f"{1e3 * row.times[OURS]['step'].median:.1f}" in printed
    write_json(tmp_path / "out" / "bench.json", rows, {"device": "a processor"}, {"device": "cpu"})
    document = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert document["rows"][0]["times"][OURS]["step"] == list(rows[0].times[OURS]["step"])
    draw(
        tmp_path / "bench.png",
        [*rows, Row("missing", "aten", {PRODUCTS: rows[0].times[PRODUCTS]}, {}, {})],
        "title",
    )
    picture = Image.open(tmp_path / "bench.png").convert("L")
    assert len(picture.getcolors()) > 50


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
        (["--shapes", "huge"], "invalid choice: 'huge'"),
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
    files = ["--json", str(tmp_path / "bench.json"), "--plot", str(tmp_path / "bench.png")]
    assert benchmark.main(["--shapes", "v1", "--threads", "1", *files]) == 0
    printed = capsys.readouterr().out
    assert "tiny N=8 C=16" in printed
    assert f"torch {torch.__version__}" in " ".join(printed.split())
    assert (tmp_path / "bench.json").exists()
    assert (tmp_path / "bench.png").exists()
