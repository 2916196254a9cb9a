"""Imported beside no torch, another torch, or without its extension, the package says what to do."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import batchformer
from batchformer._extension import BUILT_FOR

ROOT = Path(__file__).parents[1]
PACKAGE = Path(batchformer.__file__).parent


def import_error(*paths: Path, site: bool = False) -> str:
    """What `import batchformer` prints in a new process that sees these paths, and site-packages or not."""
    code = f"import sys; sys.path[:0] = {[str(path) for path in paths]!r}; import batchformer"
    command = [sys.executable, "-I", *([] if site else ["-S"]), "-c", code]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: ")
    return last


def test_without_torch_the_error_names_the_release_to_install():
    message = import_error(PACKAGE.parent)
    assert f"built for torch {BUILT_FOR}, but no torch could be imported" in message
    assert f"pip install torch=={BUILT_FOR}" in message


def test_beside_another_torch_the_error_names_both_versions(tmp_path):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("__version__ = '2.12.1+cu130'\n")
    message = import_error(tmp_path, PACKAGE.parent)
    assert f"built for torch {BUILT_FOR}, but this is torch 2.12.1+cu130" in message
    assert f"pip install torch=={BUILT_FOR}" in message


def test_a_local_build_of_the_right_torch_is_not_refused(tmp_path):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(f"__version__ = '{BUILT_FOR}+cpu'\n")
    assert "this is torch" not in import_error(tmp_path, PACKAGE.parent)


def test_a_missing_extension_is_not_mistaken_for_a_missing_torch(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "batchformer", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    message = import_error(tmp_path, site=True)
    assert f"built for torch {BUILT_FOR}, could not be loaded" in message
    assert "make build" in message


def test_every_file_that_names_the_release_names_the_same():
    pins = {
        "pyproject.toml": r"torch==([\d.]+)",
        "requirements.lock": r"^torch==([\d.]+)",
        "README.md": r"torch ?(?:==)?([\d]+\.[\d]+\.[\d]+)",
    }
    for file, pattern in pins.items():
        found = re.findall(pattern, (ROOT / file).read_text(), re.MULTILINE)
        assert found, f"{file} names no torch"
        assert set(found) == {BUILT_FOR}, file


def test_the_version_is_that_of_the_crate():
    crate = re.search(r'^version = "(.+)"', (ROOT / "Cargo.toml").read_text(), re.MULTILINE)
    assert crate is not None
    assert crate[1] == batchformer.__version__
