"""The long-tailed demo: lists of images, and options and lists that cannot be used."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import long_tailed

FIGURES = ("accuracy.png", "curves.png", "relations.png")

pytestmark = pytest.mark.usefixtures("one_thread")


def fails_with(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        long_tailed.main(arguments)
    assert stopped.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


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
