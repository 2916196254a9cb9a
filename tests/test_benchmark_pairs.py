"""The comparison of two builds: who runs when, which build a process loads, what is said of the ratios."""

import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

import batchformer
from batchformer.benchmark import pairs
from batchformer.benchmark.interval import ratio_interval
from batchformer.benchmark.shapes import Shape

PACKAGE = Path(batchformer.__file__).parent
TINY = (Shape("tiny", 4, 3, 16), Shape("tiny", 8, 1, 16))


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """The same build in another place."""
    (tmp_path / "batchformer").symlink_to(PACKAGE)
    return tmp_path


def test_the_builds_take_turns_and_each_is_compared_with_its_neighbour(other, monkeypatch):
    started = []

    def run_process(folder, shapes, threads):
        started.append(folder)
        return [len(started), 10.0 * len(started)]

    monkeypatch.setattr(pairs, "run_process", run_process)
    rows = pairs.measure(other, TINY, 3, 1, Console(quiet=True))
    this = PACKAGE.parent
    assert started == [this, other, other, this, this, other]
    assert (rows[0].this, rows[0].other) == ([1, 4, 5], [2, 3, 6])
    assert rows[1].ratios == [10 / 20, 40 / 30, 50 / 60]


def test_a_process_loads_the_build_of_its_folder(other, monkeypatch):
    monkeypatch.setattr(pairs, "SECONDS", 0.0)
    times = pairs.run_process(other, TINY, 1)
    assert len(times) == len(TINY)
    assert all(0 < seconds < 10 for seconds in times)


def test_a_process_that_loads_another_build_than_asked_is_refused(tmp_path, monkeypatch):
    """Python goes on to the next folder of its path if this one holds nothing that it can import."""
    monkeypatch.setenv("PYTHONPATH", str(PACKAGE.parent))
    with pytest.raises(SystemExit) as stopped:
        pairs.run_process(tmp_path, TINY, 1)
    sentence = f"expected the build in {tmp_path / 'batchformer'}, got the one in {PACKAGE}"
    assert sentence in str(stopped.value)


def test_the_interval_is_that_of_the_geometric_mean():
    assert ratio_interval([2.0, 0.5]) == pytest.approx((1.0, 0.5, 2.0))
    assert ratio_interval([1.1] * 5) == pytest.approx((1.1, 1.1, 1.1))
    with pytest.raises(ValueError, match="ratios: expected at least 2, got 1"):
        ratio_interval([1.0])


def test_nineteen_of_twenty_intervals_hold_the_true_ratio():
    torch.manual_seed(0)
    samples = (1.2 * torch.randn(200, 30, dtype=torch.float64).mul(0.05).exp()).tolist()
    held = sum(low <= 1.2 <= high for _, low, high in map(ratio_interval, samples))
    assert 0.90 < held / len(samples) < 0.99


def test_table_and_json_show_the_ratios(other, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(pairs.SETS, "v2", TINY[:1])
    monkeypatch.setattr(pairs, "run_process", lambda folder, *_: [0.002 if folder == other else 0.001])
    file = tmp_path / "out" / "pairs.json"
    arguments = ["--other", str(other), "--pairs", "4", "--shapes", "v2", "--json", str(file)]
    assert pairs.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "tiny N=4 L=3 C=16" in printed
    assert "0.500 to 0.500" in printed
    (row,) = json.loads(file.read_text())["rows"]
    assert (row["this"], row["other"]) == ([0.001] * 4, [0.002] * 4)
    assert row["interval"] == pytest.approx([0.5, 0.5, 0.5])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["--other", "/nowhere"],
            "--other: expected a folder that holds a package batchformer, got /nowhere",
        ),
        (["--other", str(PACKAGE.parent), "--pairs", "1"], "--pairs: expected at least 2, got 1"),
        (["--other", str(PACKAGE.parent), "--threads", "0"], "--threads: expected at least 1, got 0"),
        ([], "the following arguments are required: --other"),
    ],
)
def test_bad_options_get_a_sentence(arguments, sentence, capsys):
    with pytest.raises(SystemExit) as stopped:
        pairs.main(arguments)
    assert stopped.value.code == 2
    assert sentence in capsys.readouterr().err
