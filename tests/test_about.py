"""`python -m batchformer`: every fact in JSON and in the text, also where one cannot be had."""

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import batchformer as bf
from batchformer import about
from batchformer.__main__ import main
from batchformer._extension import BUILT_FOR, core

ROOT = Path(__file__).parents[1]
SECTIONS = {
    "versions": {"batchformer", "torch", "built for torch", "Python", "system", "numpy", *about.OPTIONAL},
    "processor": {"model", "cores", "for this process", "kernels run", "torch runs"},
    "threads": {"intra-op", "inter-op", "backend", "OpenMP", "MKL"},
    "CUDA": {"CUDA of torch", "BATCHFORMER_CUDA", *core.cuda_status()},
    "environment": set(),
    "calls by path in a small training step": {"on cpu"},
    "families of attach()": {name for family in bf.families() for name in family.names},
}
STEPS = "calls by path in a small training step"


def printed(capsys, *arguments: str) -> str:
    assert main(arguments) == 0
    return capsys.readouterr().out


def as_json(capsys) -> dict:
    return json.loads(printed(capsys, "--json"))


def words_of(text: str) -> str:
    return " ".join(text.split())


@pytest.fixture
def nothing_is_set(monkeypatch):
    for name in list(os.environ):
        if about.VARIABLES.fullmatch(name):
            monkeypatch.delenv(name)


@pytest.fixture
def played_devices(monkeypatch):
    """Two GPUs, on which the kernels of bfloat16 are not verified; the steps cannot run on them."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(about, "cuda_device", lambda index: f"GPU {index}, sm_90, 132 multiprocessors")
    monkeypatch.setattr(core, "cuda_reason", lambda kind, _: ("why", False) if kind.x == "bfloat16" else None)
    step = about._training_step

    def only_on_the_cpu(device):
        if device != "cpu":
            raise RuntimeError(f"no kernels on {device}")
        return step(device)

    monkeypatch.setattr(about, "_training_step", only_on_the_cpu)


def test_the_json_has_every_section_and_every_fact(capsys):
    found = as_json(capsys)
    assert list(found) == list(SECTIONS)
    for section, names in SECTIONS.items():
        assert names <= set(found[section]), section
    versions = found["versions"]
    assert (versions["batchformer"], versions["torch"]) == (bf.__version__, torch.__version__)
    assert (versions["built for torch"], versions["numpy"]) == (BUILT_FOR, metadata.version("numpy"))
    assert found["threads"]["intra-op"] == torch.get_num_threads()
    assert found["processor"]["kernels run"] == bf.ops.instruction_set()
    assert found["CUDA"]["BATCHFORMER_CUDA"] == core.cuda_switch()
    assert "not known" not in str(found)


def test_a_forward_and_a_backward_run_by_the_kernels_of_the_cpu():
    assert about.facts()[STEPS]["on cpu"] == {"cpu": 2, "cuda": 0, "aten": 0, "declined": None}


@pytest.mark.parametrize("devices", [False, True], ids=["no device", "devices"])
def test_the_text_has_the_same_facts_aligned_in_80_columns(capsys, request, devices):
    if devices:
        request.getfixturevalue("played_devices")
    found = as_json(capsys)
    text = printed(capsys)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert [line for line in lines if not line.startswith(" ")] == list(found)
    column = text.index(bf.__version__) - text.index("  batchformer")
    for section, facts in found.items():
        if isinstance(facts, list):
            assert ", ".join(facts) in words_of(text)
            continue
        for name, value in facts.items():
            (row,) = [line for line in lines if line.startswith(f"  {name}  ")][:1]
            assert row[column - 1] == " "
            assert row[column] != " "
            if isinstance(value, dict):
                value = ", ".join(f"{key} {'-' if each is None else each}" for key, each in value.items())
            shown = words_of("-" if value is None else str(value) or "(empty)")
            assert f" {name} {shown}" in words_of(text), section


def test_a_gpu_has_its_name_what_is_verified_and_its_step(capsys, played_devices):
    found = as_json(capsys)
    cuda = found["CUDA"]
    assert [cuda[f"cuda:{index}"] for index in range(2)] == [
        f"GPU {index}, sm_90, 132 multiprocessors" for index in range(2)
    ]
    dtypes = ("float32", "bfloat16", "float16")
    assert [cuda[f"cuda:1 {dtype}"] for dtype in dtypes] == ["verified", "declined: why", "verified"]
    assert found[STEPS]["on cpu"]["cpu"] == 2
    assert found[STEPS]["on cuda:1"] == "not known (RuntimeError: no kernels on cuda:1)"


def test_a_torch_without_cuda_has_all_other_facts(capsys, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    found = as_json(capsys)
    assert found["CUDA"]["CUDA of torch"] is None
    assert set(found["CUDA"]) == SECTIONS["CUDA"]
    assert list(found[STEPS]) == ["on cpu"]


def test_a_package_that_is_missing_is_not_installed_and_one_on_the_path_has_no_known_version(
    capsys, monkeypatch
):
    def nothing(name):
        raise metadata.PackageNotFoundError(name)

    played = SimpleNamespace(version=nothing, PackageNotFoundError=metadata.PackageNotFoundError)
    monkeypatch.setattr(about, "metadata", played)
    played = SimpleNamespace(find_spec=lambda name: "a spec" if name == "timm" else None)
    monkeypatch.setattr(about, "util", played)
    versions = as_json(capsys)["versions"]
    assert versions["transformers"] == versions["pytorch-lightning"] == "not installed"
    assert versions["timm"] == "installed, version not known"
    assert versions["torch"] == torch.__version__


def test_a_fact_that_raises_is_told_and_the_others_are_there(capsys, monkeypatch):
    def broken(*_):
        raise OSError("no such\nthing")

    monkeypatch.setattr(about, "processor", broken)
    monkeypatch.setattr(core, "cuda_status", broken)
    monkeypatch.setattr(torch.cuda, "device_count", broken)
    monkeypatch.setattr(torch.__config__, "parallel_info", lambda: "something else")
    monkeypatch.setattr(os, "sched_getaffinity", broken)
    found = as_json(capsys)
    why = "not known (OSError: no such\nthing)"
    assert (
        found["processor"]["model"] == found["processor"]["for this process"] == found["CUDA"]["error"] == why
    )
    assert found["processor"]["cores"] == os.cpu_count()
    assert found["threads"]["MKL"] is None
    assert found[STEPS]["on cpu"]["cpu"] == 2
    assert words_of(f" model {why}") in words_of(printed(capsys))


def test_the_text_of_any_value_can_be_pasted(nothing_is_set, capsys, monkeypatch):
    assert "environment\n  -\n" in printed(capsys)
    monkeypatch.setenv("BATCHFORMER_TEST", "a\nline \u2013 and \udcff")
    monkeypatch.setenv("OMP_NUM_THREADS", "")
    assert as_json(capsys)["environment"] == {
        "BATCHFORMER_TEST": "a\nline \u2013 and \udcff",
        "OMP_NUM_THREADS": "",
    }
    text = printed(capsys)
    assert words_of(" BATCHFORMER_TEST a line \\u2013 and \\udcff OMP_NUM_THREADS (empty)") in words_of(text)


def test_from_another_folder_nothing_optional_is_imported_and_nothing_is_written(tmp_path):
    packages, folder = tmp_path / "packages", tmp_path / "folder"
    packages.mkdir()
    folder.mkdir()
    for name in about.OPTIONAL:
        trap = f"open({str(tmp_path / 'imported')!r}, 'a').write(__name__)\n"
        (packages / f"{name.replace('-', '_')}.py").write_text(trap)
    done = subprocess.run(
        [sys.executable, "-m", "batchformer", "--json"],
        cwd=folder,
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join([str(packages), *sys.path]), "BATCHFORMER_ISA": "baseline"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert list(found) == list(SECTIONS)
    assert found["environment"]["BATCHFORMER_ISA"] == found["processor"]["kernels run"] == "baseline"
    assert found["versions"]["numpy"] == metadata.version("numpy")
    assert not (tmp_path / "imported").exists()
    assert list(folder.iterdir()) == []


def test_the_form_for_a_bug_asks_for_it():
    form = (ROOT / ".github" / "ISSUE_TEMPLATE" / "bug.yml").read_text()
    assert "`python -m batchformer`" in form
