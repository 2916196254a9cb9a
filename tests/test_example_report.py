"""The long-tailed demo: what it prints, writes and draws."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from longtail import groups, summary, training
from longtail.digits import LongTailedDigits
from longtail.models import ARMS, BASELINE, CONTROL, WITH_BATCHFORMER
from longtail.summary import Cell
from PIL import Image

import long_tailed

CPU = torch.device("cpu")
FIGURES = ("accuracy.png", "curves.png", "relations.png")
SCRIPT = Path(long_tailed.__file__)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """What --quick prints and the folder it writes, run as a user runs it, from a folder of its own."""
    folder = tmp_path_factory.mktemp("elsewhere")
    command = [sys.executable, "-W", "error", str(SCRIPT), "--quick"]
    done = subprocess.run(command, cwd=folder, capture_output=True, encoding="utf-8", timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout, folder / "results" / "long_tailed"


def make_run(arm: str, seed: int, per_class: list[float]) -> training.Run:
    data = LongTailedDigits(50, seed, CPU)
    return training.Run(arm, data, np.array(per_class), training.Curve(), torch.nn.Identity())


def test_quick_prints_the_table_and_that_its_numbers_mean_nothing(quick: tuple[str, Path]):
    printed, _ = quick
    for text in (
        *ARMS,
        *groups.COLUMNS,
        "±",
        "these numbers mean nothing",
        "torch 2.",
        "124 to 52",
        "1 thread",
    ):
        assert text in printed
    assert len(printed.splitlines()) < 40
    assert max(map(len, printed.splitlines()[:-1])) <= 80


def test_quick_writes_a_row_for_each_arm_and_column(quick: tuple[str, Path]):
    with (quick[1] / "table.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["arm"], row["column"]) for row in rows] == [(a, c) for a in ARMS for c in groups.COLUMNS]
    for row in rows:
        assert 0 <= float(row["mean"]) <= 100
        assert (row["difference"] == "") == (row["arm"] == BASELINE)


def test_the_csv_follows_from_the_accuracies_in_the_json(quick: tuple[str, Path]):
    document = json.loads((quick[1] / "results.json").read_text(encoding="utf-8"))
    runs = {(run["arm"], run["seed"]): run for run in document["runs"]}
    assert set(runs) == {(arm, seed) for arm in ARMS for seed in (0, 1)}
    few = {key: np.mean(np.take(r["accuracy_per_class"], r["groups"]["Few"])) for key, r in runs.items()}
    differences = np.array([few[CONTROL, seed] - few[BASELINE, seed] for seed in (0, 1)])
    with (quick[1] / "table.csv").open(encoding="utf-8") as file:
        row = next(r for r in csv.DictReader(file) if (r["arm"], r["column"]) == (CONTROL, "Few"))
    assert float(row["difference"]) == pytest.approx(differences.mean(), abs=1e-3)
    assert float(row["standard_error"]) == pytest.approx(differences.std(ddof=1) / 2**0.5, abs=1e-3)
    assert document["settings"]["steps"] == 20
    assert document["threads"] == 1
    assert document["versions"]["torch"] == torch.__version__


@pytest.mark.parametrize("name", FIGURES)
def test_quick_draws_a_figure_that_is_not_blank(quick: tuple[str, Path], name: str):
    with Image.open(quick[1] / name) as picture:
        assert min(picture.size) > 400
        assert len(np.unique(np.asarray(picture.convert("L")))) > 20


def test_one_seed_has_a_dash_and_null_for_its_standard_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert long_tailed.main(["--quick", "--seeds", "1", "--steps", "1", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "± -" in printed
    assert "nan" not in printed
    assert "One seed has no standard error" in printed
    summary_rows = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["summary"]
    assert all(row["standard_error"] is None for row in summary_rows)


def test_the_table_is_means_paired_differences_and_their_standard_errors():
    accuracies = {arm: 100 * torch.rand(4, 10, dtype=torch.float64).numpy() for arm in ARMS}
    runs = [make_run(arm, seed, accuracies[arm][seed]) for seed in range(4) for arm in ARMS]
    for cell in summary.summarise(runs):
        picked = {
            arm: [
                run.per_class[run.data.groups[cell.column] if cell.column != "All" else slice(None)].mean()
                for run in runs
                if run.arm == arm
            ]
            for arm in ARMS
        }
        assert cell.mean == pytest.approx(np.mean(picked[cell.arm]))
        if cell.arm == BASELINE:
            assert cell.difference is cell.standard_error is None
            continue
        differences = np.subtract(picked[cell.arm], picked[BASELINE])
        assert cell.difference == pytest.approx(differences.mean())
        assert cell.standard_error == pytest.approx(differences.std(ddof=1) / np.sqrt(4))


def test_the_sentence_names_exactly_the_differences_above_twice_their_standard_error():
    cells = [
        Cell(BASELINE, "All", 90.0),
        Cell(WITH_BATCHFORMER, "All", 91.0, 1.0, 0.5),
        Cell(WITH_BATCHFORMER, "Few", 91.0, 1.01, 0.5),
        Cell(WITH_BATCHFORMER, "Many", 91.0, -4 / 9 - 1e-16, 2 / 9),
        Cell(CONTROL, "Many", 88.0, -2.0, 0.4),
        Cell(CONTROL, "Few", 90.1, 0.1, 0.5),
    ]
    assert summary.verdict(cells) == (
        "Larger than twice their standard error: + BatchFormer, Few +1.0 ± 0.5; "
        "control (self only), Many -2.0 ± 0.4."
    )
    assert (
        summary.verdict(cells[:2]) == "No difference to the baseline is larger than twice its standard error."
    )
