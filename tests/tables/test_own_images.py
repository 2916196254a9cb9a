"""The long-tailed table on digits and on listed images, and options and lists that cannot be used."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from examples import long_tailed
from examples.tables.arms import ATTEND, BASELINE, BATCHFORMER
from examples.tables.long_tailed import own_images
from examples.tables.long_tailed.digits import LongTailedDigits
from examples.tables.long_tailed.measuring import CALIBRATED
from examples.tables.long_tailed.own_images import Digits, Listed, Training, table_of
from examples.tables.table import QUICK, Job

pytestmark = pytest.mark.usefixtures("one_thread")

SHORT = Training(steps=3, batch_size=16)


def fails_with(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        long_tailed.main(arguments)
    assert stopped.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def write_images(folder: Path) -> list[str]:
    """Arguments for 8 images of 32 x 32 in two classes, in the training and the test list.

    A third list, "validation.txt", has the same lines as that of the test.
    """
    lines = []
    for index in range(8):
        pixels = np.random.default_rng(index).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"an image {index}.png")
        lines.append(f"an image {index}.png {index % 2}\n")
    (folder / "train.txt").write_text("\n".join(lines), encoding="utf-8")  # an empty line after each
    for name in ("test.txt", "validation.txt"):
        (folder / name).write_text("".join(lines), encoding="utf-8")
    lists = [f"--train-list={folder / 'train.txt'}", f"--test-list={folder / 'test.txt'}"]
    small = ["--image-size=32", "--seeds=1", "--steps=2", "--workers=1", "--no-converged"]
    return [f"--data={folder}", *lists, *small, f"--out={folder / 'out'}"]


def runs_in(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in (folder / "out").rglob("*-0.json")]


@pytest.mark.parametrize("loading", [0, 1])
def test_lists_of_images_are_trained_on(loading, tmp_path, capsys):
    assert long_tailed.main([*write_images(tmp_path), f"--loading={loading}"]) == 0
    assert "own images" in capsys.readouterr().out
    runs = runs_in(tmp_path)
    assert {run["job"]["arm"] for run in runs} == {BASELINE, *ATTEND}
    for run in runs:
        metrics = run["outcome"]["metrics"]
        assert 0 <= metrics["Few"] <= 100
        assert metrics["Many"] is None
        assert CALIBRATED not in metrics


def test_accuracy_on_listed_images_is_calibrated_on_those_of_a_validation_list(tmp_path, capsys):
    arguments = [*write_images(tmp_path), f"--validation-list={tmp_path / 'validation.txt'}"]
    assert long_tailed.main(arguments) == 0
    assert CALIBRATED in capsys.readouterr().out
    for run in runs_in(tmp_path):
        metrics = run["outcome"]["metrics"]
        # Both lists have the same images here, so the best multiple can only be better than 0.
        assert metrics["All"] <= metrics[CALIBRATED] <= 100


@pytest.mark.parametrize("edited", ["test.txt", "validation.txt"])
def test_results_of_a_list_that_was_edited_are_computed_anew(edited, tmp_path, capsys):
    arguments = [*write_images(tmp_path), f"--validation-list={tmp_path / 'validation.txt'}"]
    assert long_tailed.main(arguments) == 0
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*-0.json")}
    assert long_tailed.main(arguments) == 0
    assert {file: file.stat().st_mtime_ns for file in before} == before
    file = tmp_path / edited
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-2]), encoding="utf-8")
    assert long_tailed.main(arguments) == 0
    assert all(file.stat().st_mtime_ns > time for file, time in before.items())


def test_listed_images_are_augmented_alike_whatever_else_is_drawn(tmp_path):
    write_images(tmp_path)
    source = Listed(tmp_path, tmp_path / "train.txt", tmp_path / "test.txt", image_size=32)
    first = list(source.data(0).train_batches(2, 4))
    torch.rand(3)
    state = torch.get_rng_state()
    second = list(source.data(0).train_batches(2, 4))
    assert torch.equal(torch.get_rng_state(), state)
    for (x, y), (same_x, same_y) in zip(first, second, strict=True):
        assert torch.equal(x, same_x)
        assert torch.equal(y, same_y)
    assert not torch.equal(first[0][0], next(source.data(1).train_batches(1, 4))[0])


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
    "a validation label out of range": (
        "validation.txt",
        "an image 0.png 2",
        "validation.txt, line 9: label 2 is out of range, ",
    ),
    "a negative label": (
        "train.txt",
        "x.png -1",
        "train.txt, line 17: expected an integer label from 0 up, got '-1'",
    ),
    "a fraction": (
        "train.txt",
        "x.png 1.5",
        "train.txt, line 17: expected an integer label from 0 up, got '1.5'",
    ),
    "no label": ("train.txt", "x.png", "train.txt, line 17: expected a path and a label, got 'x.png'"),
}


@pytest.mark.parametrize("bad", BAD_LINES)
def test_a_bad_line_is_reported_with_its_number_before_training(bad, tmp_path, capsys):
    name, line, sentence = BAD_LINES[bad]
    arguments = [*write_images(tmp_path), f"--validation-list={tmp_path / 'validation.txt'}"]
    with (tmp_path / name).open("a", encoding="utf-8") as file:
        file.write(f"\n{line}\n" if name == "train.txt" else f"{line}\n")
    assert sentence.format(folder=tmp_path) in fails_with(arguments, capsys)
    assert not list((tmp_path / "out").rglob("*.json"))


@pytest.mark.parametrize("loading", [0, 1])
def test_an_unreadable_image_is_reported_with_its_line_number(loading, tmp_path, capsys):
    arguments = write_images(tmp_path)
    (tmp_path / "an image 3.png").write_bytes(b"no image")
    line = fails_with([*arguments, f"--loading={loading}"], capsys)
    assert "line 7: image cannot be read" in line or "line 4: image cannot be read" in line
    assert f"{tmp_path}/an image 3.png" in line


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "the list cannot be read"),
        (b"", "the list is empty"),
        (b"\xff\xfe", "the list is not UTF-8 text"),
    ],
)
def test_a_list_that_cannot_be_used_is_named(content, sentence, tmp_path, capsys):
    arguments = write_images(tmp_path)
    (tmp_path / "train.txt").unlink()
    if content is not None:
        (tmp_path / "train.txt").write_bytes(content)
    assert f"{tmp_path}/train.txt: {sentence}" in fails_with(arguments, capsys)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--steps", "0"], "argument --steps: expected an integer of at least 1, got '0'"),
        (["--batch-size", "1"], "argument --batch-size: expected an integer of at least 2, got '1'"),
        (["--imbalance", "nan"], "argument --imbalance: expected a number of at least 1, got 'nan'"),
        (["--loss", "focal"], "argument --loss: invalid choice: 'focal'"),
        (["--device", "tpu"], "argument --device: invalid choice: 'tpu'"),
        (["--data", "x"], "go together, got no --train-list and no --test-list"),
        (["--model", "resnet18"], "--model: only with --data, --train-list and --test-list"),
        (["--loading", "2"], "--loading: only with --data, --train-list and --test-list"),
        (["--validation-list", "x"], "--validation-list: only with --data, --train-list and --test-list"),
        (
            ["--data", "x", "--train-list", "y", "--test-list", "z", "--imbalance", "2"],
            "--imbalance: only for the digits; the lists say how many images a class has",
        ),
        (["--seeds", "0"], "expected an integer of at least 1, got '0'"),
        (["--sedes", "2"], "unrecognized arguments: --sedes"),
    ],
)
def test_a_bad_option_is_refused_with_a_sentence(arguments, sentence, capsys):
    assert sentence in fails_with(arguments, capsys)


def test_all_arms_of_a_seed_start_from_the_same_weights_and_see_the_same_batches(monkeypatch):
    weights, batches = {}, {}
    insert = own_images.insert

    def watched(model, arm, **options):
        weights[arm] = {name: weight.clone() for name, weight in model.state_dict().items()}
        batches[arm] = []
        model.register_forward_pre_hook(
            lambda module, inputs: batches[arm].append(inputs[0].clone()) if module.training else None
        )
        return insert(model, arm, **options)

    monkeypatch.setattr(own_images, "insert", watched)
    table = table_of(Digits(), SHORT)
    for arm in table.arms:
        table.train(Job(table.systems[0], arm, 3))
    for arm in table.arms[1:]:
        assert all(torch.equal(weight, weights[arm][name]) for name, weight in weights[BASELINE].items())
        assert all(map(torch.equal, batches[BASELINE], batches[arm]))
    assert [len(of_arm) for of_arm in batches.values()] == [3] * len(table.arms)
    assert not torch.equal(batches[BASELINE][0], batches[BASELINE][1])


def test_digits_are_long_tailed_and_tested_evenly():
    data = LongTailedDigits(50, 0)
    expected = [round(100 * 50 ** (-rank / 9)) for rank in range(10)]
    assert sorted(data.counts.tolist(), reverse=True) == expected
    for batches, each in ((data.test_batches(), 50), (data.validation_batches(), 24)):
        _, labels = next(batches)
        assert labels.bincount().tolist() == [each] * 10
    assert len({int(LongTailedDigits(50, seed).counts.argmin()) for seed in range(8)}) > 1


def test_no_digit_has_two_of_the_purposes():
    data = LongTailedDigits(1, 0)
    purposes = (data._train, data._validation, data._test)
    sets = [{image.numpy().tobytes() for image in images} for images, _ in purposes]
    assert [len(images) for images in sets] == [1000, 240, 500]
    assert len(set.union(*sets)) == 1740


@pytest.mark.parametrize("loss", own_images.LOSSES)
def test_digits_are_trained_on_with_either_loss(loss):
    table = table_of(Digits(), Training(steps=3, batch_size=16, loss=loss))
    outcome = table.train(Job(table.systems[0], BATCHFORMER, 0, QUICK))
    assert set(outcome.metrics) == set(table.columns)
    assert 0 < outcome.entropy <= 1
