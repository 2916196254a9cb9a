"""The scripts of examples/swap_in on the families from packages: each trains, evaluates, and takes out."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "examples" / "swap_in"
FAMILIES = {
    "detr": 2,
    "conditional_detr": 2,
    "deformable_detr": 4,
    "deit": 6,
    "ride": 1,
    "moco_v2": 2,
    "moco_v3": 1,
    "few_shot": 2,
}
CHECKOUTS_ONLY = ["balanced_softmax", "cge", "paco", "swad"]
HELPERS = ["checkouts", "detections", "trial"]


def run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", str(SCRIPTS / f"{name}.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_every_script_is_tested():
    scripts = {path.stem for path in SCRIPTS.glob("*.py")}
    assert scripts == {*FAMILIES, *CHECKOUTS_ONLY, *HELPERS}


@pytest.mark.parametrize(("name", "models"), FAMILIES.items(), ids=FAMILIES)
def test_the_script_trains_the_family_from_packages(name, models):
    done = run(name)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 5 * models
    for check in ("loss finite", "gradients reach the module", "evaluation equals", "removed: keys"):
        assert sum(check in line for line in lines) == models


@pytest.mark.parametrize("name", CHECKOUTS_ONLY)
def test_the_script_of_a_system_without_a_package_asks_for_a_checkout(name):
    done = run(name)
    assert done.returncode == 2
    assert "the following arguments are required: --repo" in done.stderr


def test_a_checkout_that_is_not_there_is_named():
    done = run("detr", "--repo", "no/such/folder")
    assert done.returncode == 2
    assert "--repo: no folder no/such/folder" in done.stderr
