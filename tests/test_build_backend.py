"""What the package is built for and with, and what the build says where it cannot be."""

import re
import sysconfig
from pathlib import Path

import pytest
import torch

import build_backend
from build_backend import ROOT, SETTINGS, Torch

HERE = Path(torch.__file__).parent


@pytest.fixture(autouse=True)
def an_environment_that_comes_back(monkeypatch):
    monkeypatch.setattr(build_backend.os, "environ", dict(build_backend.os.environ))


def with_torch(monkeypatch, version: str | None) -> None:
    found = None if version is None else Torch(HERE, version)
    monkeypatch.setattr(build_backend, "find_torch", lambda: found)


def test_the_torch_that_is_found_is_the_one_that_is_imported():
    assert build_backend.find_torch() == Torch(HERE, torch.__version__)


def test_every_release_of_the_range_has_its_torchvision(capsys):
    build_backend._main(["--releases"])
    releases = capsys.readouterr().out.split()
    assert releases == list(SETTINGS["torchvision"])
    assert releases[0] == SETTINGS["torch"]["oldest"]
    assert releases[-1] == SETTINGS["torch"]["newest"]


def test_tch_and_the_header_are_those_of_the_oldest_release():
    oldest = int(SETTINGS["torch"]["oldest"].removeprefix("2."))
    assert f"#if BATCHFORMER_OLDEST_TORCH_MINOR != {oldest}\n" in build_backend.COMPAT.read_text()
    entry = r'^name = "tch"\nversion = "0\.(\d+)\.\d+"'  # tch 0.22 wraps torch 2.9, 0.23 2.10
    tch = re.search(entry, (ROOT / "Cargo.lock").read_text(), re.MULTILINE)
    assert tch is not None
    assert int(tch[1]) - 13 == oldest


def test_the_documentation_names_the_range():
    named = f"torch {SETTINGS['torch']['oldest']} to {SETTINGS['torch']['newest']}"
    assert (ROOT / "README.md").read_text().count(named) == 1
    assert (ROOT / "docs" / "start.md").read_text().count(named) == 2


def test_the_documentation_names_the_oldest_rust_that_cargo_takes():
    (oldest,) = re.findall(r'^rust-version = "(.+)"$', (ROOT / "Cargo.toml").read_text(), re.MULTILINE)
    for name in ("README.md", "CONTRIBUTING.md", "docs/start.md", "build_backend.py"):
        assert set(re.findall(r"Rust (\d\S+) or", (ROOT / name).read_text())) == {oldest}, name


@pytest.mark.parametrize("unset", ["", " "])
def test_an_empty_name_of_the_compiler_is_none(unset, monkeypatch):
    monkeypatch.setenv("CXX", unset)
    monkeypatch.setattr(build_backend.shutil, "which", lambda tool: None if tool == "c++" else tool)
    with pytest.raises(SystemExit, match=r"there is no `c\+\+`"):
        build_backend._check_tools()


@pytest.mark.parametrize("build", [build_backend.build_wheel, build_backend.build_editable])
def test_what_the_build_needs_is_asked_for_before_anything_is_compiled(monkeypatch, build):
    monkeypatch.setattr(build_backend, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"needs maturin and wheel in the environment: pip install maturin"):
        build("nowhere")


def test_an_older_torch_is_refused(monkeypatch):
    with_torch(monkeypatch, "2.8.1+cu128")
    with pytest.raises(SystemExit, match=r"needs torch 2\.9 or later, and this is torch 2\.8\.1\+cu128"):
        build_backend._prepare()


def test_a_newer_torch_is_tried_with_a_sentence(monkeypatch, capsys):
    with_torch(monkeypatch, "2.99.0")
    assert build_backend._prepare().minor == "2.99"
    said = capsys.readouterr().err
    assert "tested up to torch 2.15; trying to build it for 2.99.0" in said
    assert "compat/torch_compat.h" in said


def test_with_no_torch_an_isolated_build_takes_the_newest_or_the_one_that_is_asked_for(monkeypatch):
    with_torch(monkeypatch, None)
    monkeypatch.delitem(build_backend.os.environ, "BATCHFORMER_TORCH", raising=False)
    assert build_backend.get_requires_for_build_wheel() == ["torch>=2.9"]
    monkeypatch.setitem(build_backend.os.environ, "BATCHFORMER_TORCH", "2.12.1")
    assert build_backend.get_requires_for_build_wheel() == ["torch==2.12.1"]
    with pytest.raises(SystemExit, match="built against torch, and there is none: pip install torch"):
        build_backend._prepare()


def test_a_free_threaded_python_is_refused_with_a_sentence(monkeypatch):
    monkeypatch.setattr(sysconfig, "get_config_var", lambda name: name == "Py_GIL_DISABLED")
    with pytest.raises(SystemExit, match="needs a CPython with the GIL"):
        build_backend.get_requires_for_build_wheel()


def test_flags_of_the_user_stay_and_ours_come_last(monkeypatch):
    monkeypatch.setitem(build_backend.os.environ, "CXXFLAGS", "-g -std=c++17")
    flags = build_backend.environment(Torch(HERE, torch.__version__))["CXXFLAGS"]
    assert flags.startswith("-g -std=c++17 ")
    assert flags.index("-std=c++17") < flags.index("-std=c++20")


def test_torch_sys_is_compiled_anew_for_another_torch_and_for_no_other_reason(monkeypatch):
    flags = {
        build_backend.environment(Torch(HERE, version))["CXXFLAGS"]
        for version in ("2.11.0+cu130", "2.11.0+cu130", "2.11.0+cpu", "2.12.0+cpu")
    }
    assert len(flags) == 3


def test_the_workflows_build_and_test_every_release():
    workflows = {file.name: file.read_text() for file in (ROOT / ".github" / "workflows").glob("*.yml")}
    releases = ", ".join(f'"{release}"' for release in SETTINGS["torchvision"])
    assert f"torch: [{releases}]" in workflows["wheels.yml"]
    assert f"torch: [{releases.rpartition(', ')[0]}]" in workflows["tests.yml"]  # the last is the default
