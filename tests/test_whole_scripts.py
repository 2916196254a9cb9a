"""The scripts of examples/ that show attach() in a training from its first line to its last."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name: str, *arguments: str) -> str:
    command = [sys.executable, "-W", "ignore", str(EXAMPLES / f"{name}.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("arguments", [[], ["--stock"]], ids=["with BatchFormer", "without"])
def test_a_resnet_trains_on_long_tailed_digits(arguments):
    lines = run("ldam", "--epochs", "1", *arguments).splitlines()
    assert len(lines) == 1
    assert re.fullmatch(r"epoch  1: loss [\d.]+, training [\d.]+%, test [\d.]+%, .* [\d.]+%", lines[0])


def test_a_detector_is_trained_saved_and_loaded_as_the_stock_model():
    said = run("detector_trainer", "--epochs", "1", "--images", "16")
    assert "family='rt_detr'" in said
    found = re.findall(r"^found by .*: +([\d.]+%)$", said, re.MULTILINE)
    assert len(found) == 2
    assert found[0] == found[1]
