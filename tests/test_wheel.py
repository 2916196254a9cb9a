"""The wheel: what is in it, what it needs, and that it works where there is no Rust."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from test_readme import python_blocks

ROOT = Path(__file__).parents[1]
UV = Path(sys.executable).parent / "uv"

# What `make` exports for the checkout's own build; a user's shell has none of it.
OF_THE_CHECKOUT = {
    "VIRTUAL_ENV",
    "LIBRARY_PATH",
    "LD_LIBRARY_PATH",
    "PYO3_PYTHON",
    "PYO3_BUILD_EXTENSION_MODULE",
}
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in OF_THE_CHECKOUT}


pytestmark = pytest.mark.skipif(shutil.which("cargo") is None, reason="a wheel is built with Rust")


def run(*command: object, cwd: Path, **environment: str) -> str:
    """Output of a command that has to succeed."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**ENVIRONMENT, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def bare_environment(folder: Path) -> Path:
    """The Python of a new environment with torch and numpy of the lock file, and nothing else."""
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=ROOT)
    python = folder / "bin" / "python"
    pins = re.findall(
        r"^(?:torch|numpy)==\S+(?: ; [^\\\n]+)?", (ROOT / "requirements.lock").read_text(), re.M
    )
    pinned = folder / "pins.txt"
    pinned.write_text("\n".join(pins))
    run(UV, "pip", "install", "--quiet", "--python", python, "-r", pinned, cwd=ROOT)
    return python


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(UV, "build", "--quiet", "--wheel", "--no-build-isolation", "--out-dir", folder, cwd=ROOT)
    (wheel,) = folder.glob("*.whl")
    return wheel


def test_the_wheel_is_small_and_serves_every_python_from_3_10(wheel):
    assert wheel.name.startswith("batchformer-0.1.0-cp310-abi3-")
    assert wheel.stat().st_size < 5_000_000


def test_the_wheel_brings_the_package_and_no_library_of_torch(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {"batchformer/_core.abi3.so", "batchformer/_core.pyi", "batchformer/py.typed"} <= set(names)
    assert [name for name in names if ".so" in name] == ["batchformer/_core.abi3.so"]


def test_the_extension_needs_three_libraries_of_torch_and_knows_no_path(wheel, tmp_path):
    zipfile.ZipFile(wheel).extract("batchformer/_core.abi3.so", tmp_path)
    dynamic = run("readelf", "-d", tmp_path / "batchformer" / "_core.abi3.so", cwd=tmp_path)
    needed = set(re.findall(r"NEEDED.*\[(.+?)\]", dynamic))
    of_the_system = {
        name for name in needed if name.startswith(("libstdc++", "libgcc_s", "libc.", "libm.", "ld-"))
    }
    assert needed - of_the_system == {"libtorch_python.so", "libtorch_cpu.so", "libc10.so"}
    assert "RUNPATH" not in dynamic
    assert "RPATH" not in dynamic


def test_the_extension_asks_for_no_private_symbol_that_a_later_python_lacks(wheel, tmp_path):
    zipfile.ZipFile(wheel).extract("batchformer/_core.abi3.so", tmp_path)
    undefined = run("nm", "-D", "--undefined-only", tmp_path / "batchformer" / "_core.abi3.so", cwd=tmp_path)
    private = set(re.findall(r" (_Py\w+)", undefined))
    in_the_stable_abi = {f"_Py_{name}" for name in ("Dealloc", "DecRef", "IncRef")} | {
        f"_Py_{name}Struct" for name in ("False", "None", "True")
    }
    assert private <= in_the_stable_abi


def test_the_wheel_works_in_a_bare_environment_from_another_folder(wheel, tmp_path):
    python = bare_environment(tmp_path / "environment")
    run(UV, "pip", "install", "--quiet", "--no-deps", "--python", python, wheel, cwd=tmp_path)
    example = tmp_path / "example.py"
    example.write_text(python_blocks()[0])
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    run(python, "-I", example, cwd=folder, PATH="/usr/bin:/bin")
    where = run(python, "-I", "-c", "import batchformer; print(batchformer.__file__)", cwd=folder)
    assert str(tmp_path / "environment") in where


def test_installing_from_a_clone_builds_in_isolation(tmp_path):
    clone = tmp_path / "clone"
    files = run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT).splitlines()
    for file in files:
        (clone / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / file, clone / file)
    # What is compiled already need not be compiled again; the clone's own crate is.
    run("cp", "-a", ROOT / "target", clone / "target", cwd=ROOT)
    python = bare_environment(tmp_path / "environment")
    run(UV, "pip", "install", "--quiet", "--no-deps", "--python", python, clone, cwd=tmp_path)
    code = "import torch, batchformer as bf; print(bf.BatchFormer(8)(torch.rand(3, 8))[0].shape)"
    assert run(python, "-I", "-c", code, cwd=tmp_path).strip() == "torch.Size([6, 8])"
