"""The wheel: what is in it, what it needs, and that it works where there is no Rust."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

import batchformer
from batchformer._extension import BUILT_FOR
from test_readme import python_blocks

ROOT = Path(__file__).parents[1]
UV = Path(sys.executable).parent / "uv"
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
TORCH = torch.__version__.split("+")[0]

# What `make` exports for the checkout's own build; a user's shell has none of it.
OF_THE_CHECKOUT = {
    "VIRTUAL_ENV",
    "LIBRARY_PATH",
    "LD_LIBRARY_PATH",
    "PYO3_PYTHON",
    "PYO3_BUILD_EXTENSION_MODULE",
    "CARGO_TARGET_DIR",
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


def bare_environment(folder: Path, *, pip: bool = False) -> Path:
    """The Python of a new environment with the torch and the numpy of this one, and nothing else."""
    run(sys.executable, "-m", "venv", *([] if pip else ["--without-pip"]), folder, cwd=ROOT)
    python = folder / "bin" / "python"
    pins = [f"torch=={TORCH}", f"numpy=={version('numpy')}"]
    run(UV, "pip", "install", "--quiet", "--python", python, *pins, cwd=ROOT)
    return python


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = ("build", "--quiet", "--wheel", "--no-build-isolation", "--out-dir", folder)
    run(UV, *command, cwd=ROOT, VIRTUAL_ENV=sys.prefix, CARGO_TARGET_DIR=str(TARGET))
    (wheel,) = folder.glob("*.whl")
    return wheel


def test_the_wheel_is_small_and_serves_every_python_from_3_10(wheel):
    assert wheel.name.startswith(f"batchformer-{batchformer.__version__}-cp310-abi3-")
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


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> str:
    with zipfile.ZipFile(wheel) as files:
        (name,) = (name for name in files.namelist() if name.endswith(".dist-info/METADATA"))
        return files.read(name).decode()


def test_the_wheel_requires_the_torch_it_is_built_for(wheel, metadata):
    with zipfile.ZipFile(wheel) as files:
        assert files.read("batchformer/built_for.txt").decode().strip() == BUILT_FOR
    assert re.findall(r"^Requires-Dist: (\S+)$", metadata, re.M) == ["numpy>=1.26", f"torch=={BUILT_FOR}.*"]


def test_the_readme_of_the_wheel_has_whole_addresses(metadata):
    links = re.findall(r"\]\(([^)]+)\)", metadata)
    assert len(links) > 5
    assert all(link.startswith(("https:", "#")) for link in links)


def test_the_wheel_brings_the_licences_of_all_that_is_linked(wheel):
    with zipfile.ZipFile(wheel) as files:
        names = files.namelist()
        (file,) = (name for name in names if name.endswith("licenses/licences/THIRD_PARTY"))
        text = files.read(file).decode()
    assert any(".dist-info/sboms/" in name for name in names)
    edges = ("--edges", "normal,no-proc-macro", "--prefix", "none", "--format", "{p}")
    tree = run("cargo", "tree", "--locked", *edges, cwd=ROOT).splitlines()
    linked = {" ".join(line.split()[:2]).replace(" v", " ") for line in tree} - {""}
    linked = {name for name in linked if not name.startswith("batchformer ")}
    assert len(linked) > 30
    assert [name for name in sorted(linked) if f"\n{name}" not in text] == []


def test_the_packed_sources_have_all_that_is_compiled_into_the_extension(tmp_path):
    command = ("build", "--quiet", "--sdist", "--no-build-isolation", "--out-dir", tmp_path)
    run(UV, *command, cwd=ROOT, VIRTUAL_ENV=sys.prefix)
    (archive,) = tmp_path.glob("*.tar.gz")
    assert archive.stat().st_size < 2_000_000
    with tarfile.open(archive) as files:
        names = {name.split("/", 1)[-1] for name in files.getnames()}
    sources = {str(file.relative_to(ROOT)) for file in (ROOT / "src").rglob("*") if file.is_file()}
    assert {Path(name).suffix for name in sources} == {".rs", ".cu", ".txt"}
    assert sources <= names


def clone_of_the_checkout(folder: Path) -> Path:
    """As `git clone` makes it, of what is there now."""
    files = run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT).splitlines()
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / file, folder / file)
    # What is compiled already need not be compiled again; the clone's own crate is.
    # Not the environments of other torches, which are in `target` as well.
    (folder / "target").mkdir()
    run("cp", "-a", TARGET / "release", folder / "target", cwd=ROOT)
    return folder


def test_pip_installs_a_clone_for_the_torch_that_is_there(tmp_path):
    clone = clone_of_the_checkout(tmp_path / "clone")
    python = bare_environment(tmp_path / "environment", pip=True)
    # What pip installs is asked for here, not how fast it is; unoptimised it takes two thirds of the time.
    quickly = {"CARGO_PROFILE_RELEASE_OPT_LEVEL": "0", "CARGO_PROFILE_RELEASE_LTO": "off"}
    run(python, "-m", "pip", "install", "--quiet", clone, cwd=tmp_path, **quickly)
    code = (
        "import torch, batchformer as bf; "
        "print(torch.__version__.split('+')[0], *bf.BatchFormer(8)(torch.rand(3, 8))[0].shape)"
    )
    assert run(python, "-I", "-c", code, cwd=tmp_path).strip() == f"{TORCH} 6 8"


@pytest.mark.parametrize("missing", ["cargo", "c++"])
def test_without_a_compiler_the_build_says_so_before_it_downloads_anything(tmp_path, missing):
    for tool in {"cargo", "c++"} - {missing}:
        (tmp_path / tool).symlink_to("/bin/true")
    code = "import build_backend; build_backend.get_requires_for_build_wheel()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**ENVIRONMENT, "PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "needs Rust 1.89 or newer and a C++ compiler" in done.stderr
    assert f"no `{missing}`" in done.stderr
