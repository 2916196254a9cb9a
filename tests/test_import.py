"""Imported beside no torch, another torch, or without its extension, the package says what to do."""

import json
import pydoc
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import batchformer
from batchformer._extension import BUILT_FOR
from batchformer.tracer import constant

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
    assert message.endswith(f"pip install 'torch=={BUILT_FOR}.*'")


def beside(version: str, tmp_path: Path, *paths: Path) -> str:
    """What the import prints beside a torch of that version."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(f"__version__ = {version!r}\n")
    return import_error(tmp_path, PACKAGE.parent, *paths)


USE = """
import sys, torch, batchformer as bf
model = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.Linear(64, 10))
attachment = bf.attach(model, before="1")
criterion = attachment.wrap(torch.nn.CrossEntropyLoss())
criterion(model(torch.rand(4, 8)), torch.arange(4)).backward()
bf.relations(attachment, torch.rand(4, 8))
print(*sys.modules)
"""


def test_a_training_step_imports_neither_the_tracer_of_torch_compile_nor_other_heavy_packages():
    run = subprocess.run([sys.executable, "-c", USE], capture_output=True, text=True, check=True)
    imported = set(run.stdout.split())
    assert "batchformer.swap_in.attach" in imported
    heavy = {"torch._dynamo", "torch._inductor", "sympy", "matplotlib", "torchvision", "transformers", "timm"}
    assert heavy & imported == set()


def test_a_constant_is_marked_as_torch_marks_it():
    def by_torch():
        return None

    def by_us():
        return None

    torch.compiler.assume_constant_result(by_torch)
    assert vars(constant(by_us)) == vars(by_torch) != {}


def test_beside_another_torch_the_error_names_both_versions_and_ends_with_the_remedy(tmp_path):
    message = beside("2.8.1+cu130", tmp_path)
    assert f"built for torch {BUILT_FOR}, but this is torch 2.8.1+cu130" in message
    assert message.endswith("make build")


@pytest.mark.parametrize(
    ("origin", "package"),
    [
        ({"url": "file:///home/me/batchformer", "dir_info": {}}, "file:///home/me/batchformer"),
        ({"url": "file:///tmp/batchformer.whl", "archive_info": {}}, "batchformer"),
        (
            {
                "url": "https://example.org/batchformer.git",
                "vcs_info": {"vcs": "git", "requested_revision": "v0.2.0", "commit_id": "1234abc"},
            },
            "git+https://example.org/batchformer.git@v0.2.0",
        ),
        (
            {
                "url": "https://example.org/batchformer.git",
                "vcs_info": {"vcs": "git", "commit_id": "1234abc"},
            },
            "git+https://example.org/batchformer.git@1234abc",
        ),
        (
            {"url": "file:///home/me/batchformer", "dir_info": {"editable": True}},
            "--editable file:///home/me/batchformer",
        ),
        ({}, "batchformer"),
    ],
)
def test_the_remedy_of_an_installed_package_is_to_install_it_again_from_where_it_came(
    tmp_path, origin, package
):
    info = tmp_path / "batchformer-0.2.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.4\nName: batchformer\nVersion: 0.2.0\n")
    if origin:
        (info / "direct_url.json").write_text(json.dumps(origin))
    message = beside("2.8.1", tmp_path)
    assert message.endswith(f"pip install --force-reinstall --no-deps --no-cache-dir {package}")


@pytest.mark.parametrize("patch", [".0", ".1", ".1+cpu", ".0a0+git1234567"])
def test_a_patch_or_local_build_of_the_right_torch_is_not_refused(tmp_path, patch):
    assert "this is torch" not in beside(BUILT_FOR + patch, tmp_path)


def test_a_missing_extension_is_not_mistaken_for_a_missing_torch(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "batchformer", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    message = import_error(tmp_path, site=True)
    assert f"built for torch {BUILT_FOR}, could not be loaded" in message
    assert message.endswith("make build")


def test_the_version_is_that_of_the_crate():
    crate = re.search(r'^version = "(.+)"', (ROOT / "Cargo.toml").read_text(), re.MULTILINE)
    assert crate is not None
    assert crate[1] == batchformer.__version__


def test_dir_help_and_a_star_show_the_public_names_alone():
    imported = {
        name
        for name, value in vars(batchformer).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    public = imported | {"ops"}
    assert len(public) >= 16
    assert sorted(public) == sorted(batchformer.__all__)
    assert {name for name in dir(batchformer) if not name.startswith("_")} == public
    shown = pydoc.render_doc(batchformer, renderer=pydoc.plaintext)
    for name in imported:
        assert re.search(rf"^    (class )?{name}\(", shown, re.MULTILINE), name
