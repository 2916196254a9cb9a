"""The long-tailed demo: its data, losses, schedule, report, figures, lists and command line."""

import csv
import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import long_tailed
from longtail import groups, losses, summary, training
from longtail.digits import LongTailedDigits, exponential_counts
from longtail.models import ARMS, BASELINE, CONTROL, WITH_BATCHFORMER, make_model, small_convnet
from longtail.summary import Cell

CPU = torch.device("cpu")
FIGURES = ("accuracy.png", "curves.png", "relations.png")
SCRIPT = Path(long_tailed.__file__)


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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


def recipe(**changes: object) -> training.Recipe:
    fixed = {"make_features": small_convnet, "steps": 3, "batch_size": 16, "loss": "balanced-softmax"}
    return training.Recipe(**{**fixed, "weight_decay": 5e-3, "device": CPU, **changes})


def fails_with(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        long_tailed.main(arguments)
    assert stopped.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


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


def test_all_arms_of_a_seed_start_from_the_same_weights():
    models = {arm: make_model(small_convnet, 10, arm, seed=3).state_dict() for arm in ARMS}
    for arm in (WITH_BATCHFORMER, CONTROL):
        for name, weight in models[BASELINE].items():
            assert torch.equal(weight, models[arm][name]), (arm, name)
    for name, weight in models[WITH_BATCHFORMER].items():
        assert torch.equal(weight, models[CONTROL][name]), name
    other = make_model(small_convnet, 10, BASELINE, seed=4).state_dict()
    assert not torch.equal(other["classifier.weight"], models[BASELINE]["classifier.weight"])


def test_all_arms_of_a_seed_are_trained_on_the_same_batches(monkeypatch: pytest.MonkeyPatch):
    seen: dict[str, list[torch.Tensor]] = {}
    forward = training.Recogniser.forward

    def watched(model: training.Recogniser, x: torch.Tensor, y: torch.Tensor | None = None):
        if model.training:
            seen.setdefault(arm, []).extend([x.clone(), y.clone()])
        return forward(model, x, y)

    monkeypatch.setattr(training.Recogniser, "forward", watched)
    data = LongTailedDigits(50, 0, CPU)
    for arm in ARMS:
        training.train(arm, data, recipe())
    assert [len(tensors) for tensors in seen.values()] == [6, 6, 6]
    for batches in zip(*(seen[arm] for arm in ARMS), strict=True):
        assert torch.equal(batches[0], batches[1])
        assert torch.equal(batches[0], batches[2])
    assert not torch.equal(seen[BASELINE][0], seen[BASELINE][2])


def test_the_same_seed_trains_to_the_same_accuracies():
    first, second = (training.train(WITH_BATCHFORMER, LongTailedDigits(50, 0, CPU), recipe()) for _ in "ab")
    assert first.per_class.tolist() == second.per_class.tolist()
    assert first.curve == second.curve


@pytest.mark.parametrize("imbalance", [1, 10, 50, 1000])
def test_class_sizes_follow_the_formula(imbalance: float):
    expected = [max(2, round(124 * imbalance ** (-rank / 9))) for rank in range(10)]
    assert exponential_counts(124, imbalance, 10) == expected
    data = LongTailedDigits(imbalance, 0, CPU)
    assert sorted(data.counts.tolist(), reverse=True) == expected
    _, labels = next(data.test_batches())
    assert labels.bincount().tolist() == [50] * 10


def test_which_class_is_rare_depends_on_the_seed():
    assert len({int(LongTailedDigits(50, seed, CPU).counts.argmin()) for seed in range(8)}) > 1


def test_no_image_is_both_for_training_and_for_testing():
    data = LongTailedDigits(1, 0, CPU)
    train, test = (
        {bytes(image.numpy().tobytes()) for image in images} for images, _ in (data._train, data._test)
    )
    assert len(train) == 1240
    assert not train & test


def test_one_pass_over_the_batches_has_every_training_image_once():
    data = LongTailedDigits(50, 0, CPU)
    total = int(data.counts.sum())
    labels = torch.cat([y for _, y in data.train_batches(total, 1)])
    assert labels.bincount().tolist() == data.counts.tolist()


def test_thirds_and_counts_split_the_classes():
    assert groups.by_thirds(torch.tensor([5, 9, 7, 1, 3, 8, 2, 4, 6, 10])) == {
        "Many": [9, 1, 5],
        "Medium": [2, 8, 0, 7],
        "Few": [4, 6, 3],
    }
    assert groups.by_count(torch.tensor([100, 101, 19, 20])) == {"Many": [1], "Medium": [0, 3], "Few": [2]}


def test_balanced_softmax_is_cross_entropy_where_classes_are_equally_frequent():
    logits, labels = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    balanced = losses.make_loss("balanced-softmax", torch.full((4,), 7))(logits, labels)
    torch.testing.assert_close(balanced, losses.make_loss("cross-entropy", torch.ones(4))(logits, labels))


def test_balanced_softmax_has_the_value_computed_by_hand():
    loss = losses.make_loss("balanced-softmax", torch.tensor([3, 1]))
    # Equal logits leave the prior: -log(3/4) and -log(1/4).
    expected = -torch.tensor([0.75, 0.25]).log()
    torch.testing.assert_close(loss(torch.zeros(2, 2), torch.tensor([0, 1])), expected)


def test_a_class_without_training_images_does_not_break_balanced_softmax():
    logits = torch.randn(2, 3, requires_grad=True)
    losses.make_loss("balanced-softmax", torch.tensor([3, 0, 1]))(
        logits, torch.tensor([0, 2])
    ).sum().backward()
    assert logits.grad.isfinite().all()


def test_the_schedule_is_stepped_at_every_step(monkeypatch: pytest.MonkeyPatch):
    rates: list[float] = []
    make = training.make_optimizer

    def watched(model: torch.nn.Module, how: training.Recipe):
        optimizer, schedule = make(model, how)
        optimizer.register_step_pre_hook(lambda it, *_: rates.append(it.param_groups[0]["lr"]))
        return optimizer, schedule

    monkeypatch.setattr(training, "make_optimizer", watched)
    training.train(BASELINE, LongTailedDigits(50, 0, CPU), recipe(steps=20))
    assert rates[:2] == pytest.approx([training.LEARNING_RATE / 2, training.LEARNING_RATE])
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[1:]))
    assert rates[-1] < 0.02 * training.LEARNING_RATE


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


def write_images(folder: Path) -> list[str]:
    """Arguments for 8 images of 32 x 32 in two classes, in both lists."""
    lines = []
    for index in range(8):
        pixels = np.random.default_rng(index).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"an image {index}.png")
        lines.append(f"an image {index}.png {index % 2}\n")
    (folder / "train.txt").write_text("\n".join(lines), encoding="utf-8")  # an empty line after each
    (folder / "test.txt").write_text("".join(lines), encoding="utf-8")
    lists = [f"--train-list={folder / 'train.txt'}", f"--test-list={folder / 'test.txt'}"]
    small = ["--image-size=32", "--seeds=1", "--steps=2", f"--out={folder / 'out'}"]
    return [f"--data={folder}", *lists, *small]


@pytest.mark.parametrize("workers", [0, 1])
def test_lists_of_images_are_trained_on(workers: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arguments = [*write_images(tmp_path), "--threads=1", f"--workers={workers}"]
    assert long_tailed.main(arguments) == 0
    assert "8 training images, 2 classes" in capsys.readouterr().out
    document = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert document["runs"][0]["training_images_per_class"] == [4, 4]
    few = [row["mean"] for row in document["summary"] if row["column"] == "Few"]
    assert all(0 <= accuracy <= 100 for accuracy in few)
    assert all(row["mean"] is None for row in document["summary"] if row["column"] == "Many")
    for name in FIGURES:
        assert (tmp_path / "out" / name).stat().st_size > 0


def test_listed_images_are_augmented_alike_whatever_else_is_drawn(tmp_path: Path):
    parsed = long_tailed.parse(long_tailed.make_parser(), write_images(tmp_path))
    make_data, how = long_tailed.prepare(parsed)
    first = list(make_data(0).train_batches(2, how.batch_size))
    torch.rand(3)
    state = torch.get_rng_state()
    second = list(make_data(0).train_batches(2, how.batch_size))
    assert torch.equal(torch.get_rng_state(), state)
    for (x, y), (same_x, same_y) in zip(first, second, strict=True):
        assert torch.equal(x, same_x)
        assert torch.equal(y, same_y)
    assert not torch.equal(first[0][0], next(make_data(1).train_batches(1, how.batch_size))[0])


BAD_LINES = {
    "a missing image": (
        "train.txt",
        "absent.png 0",
        "train.txt, line 17: image not found: {folder}/absent.png",
    ),
    "a test label out of range": (
        "test.txt",
        "an image 0.png 2",
        "test.txt, line 9: label 2 is out of range, ",
    ),
    "a negative label": (
        "train.txt",
        "x.png -1",
        "train.txt, line 17: expected an integer label from 0 up, got '-1'",
    ),
    "a label that is no integer": (
        "test.txt",
        "x.png cat",
        "test.txt, line 9: expected an integer label from 0 up",
    ),
    "a line without a label": (
        "train.txt",
        "x.png",
        "train.txt, line 17: expected a path and a label, got 'x.png'",
    ),
}


@pytest.mark.parametrize(("name", "line", "sentence"), BAD_LINES.values(), ids=BAD_LINES)
def test_a_bad_line_is_reported_with_its_number_before_training(
    name: str, line: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    arguments = write_images(tmp_path)
    with (tmp_path / name).open("a", encoding="utf-8") as file:
        file.write(f"\n{line}\n" if name == "train.txt" else f"{line}\n")
    error = fails_with(arguments, capsys)
    assert error.startswith("long_tailed.py: error: ")
    assert sentence.format(folder=tmp_path) in error
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("content", [b"not an image", None])
def test_an_unreadable_image_is_reported_with_its_line_number(
    workers: int, content: bytes | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    arguments = [*write_images(tmp_path), f"--workers={workers}"]
    damaged = tmp_path / "an image 1.png"
    damaged.write_bytes(damaged.read_bytes()[:1000] if content is None else content)
    error = fails_with(arguments, capsys)
    assert f"train.txt, line 3: image cannot be read: {damaged} (" in error


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "the list cannot be read (No such file"),
        (b"\n\n", "the list is empty"),
        (b"\xff 0", "not UTF-8 text"),
    ],
)
def test_a_list_that_cannot_be_used_is_named(
    content: bytes | None, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    arguments = write_images(tmp_path)
    train = tmp_path / "train.txt"
    if content is None:
        train.unlink()
    else:
        train.write_bytes(content)
    assert f"{train}: " in (error := fails_with(arguments, capsys))
    assert sentence in error


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--seeds", "0"], "--seeds: expected an integer of at least 1, got '0'"),
        (["--seeds", "two"], "--seeds: expected an integer of at least 1, got 'two'"),
        (["--steps", "0"], "--steps: expected an integer of at least 1, got '0'"),
        (["--threads", "0"], "--threads: expected an integer of at least 1, got '0'"),
        (["--batch-size", "1"], "--batch-size: expected an integer of at least 2, got '1'"),
        (["--imbalance", "0.5"], "--imbalance: expected a number of at least 1, got '0.5'"),
        (["--imbalance", "nan"], "--imbalance: expected a number of at least 1, got 'nan'"),
        (["--imbalance", "inf"], "--imbalance: expected a number of at least 1, got 'inf'"),
        (["--loss", "focal"], "--loss: invalid choice: 'focal'"),
        (["--device", "abacus"], "--device: expected a device of this machine (cpu"),
        (["--device", "meta"], "--device: expected a device of this machine (cpu"),
        (["--data", "."], "go together, got no --train-list and no --test-list"),
        (["--train-list", "a", "--test-list", "b"], "go together, got no --data"),
        (["--model", "resnet18"], "--model: only with --data, --train-list and --test-list"),
        (
            ["--data=.", "--train-list=a", "--test-list=b", "--imbalance=5"],
            "--imbalance: only for the digits",
        ),
        (["--out", __file__], "--out: cannot make the folder"),
    ],
)
def test_a_bad_option_is_refused_with_a_sentence(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
):
    assert sentence in fails_with(arguments, capsys)
