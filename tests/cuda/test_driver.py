"""Kernels are compiled, kept and launched as they should be; whatever fails is an error with a sentence."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from batchformer._extension import core

HERE = Path(__file__).parent
FAILED = "the stub was told to fail"
Ask = Callable[..., Any]


@pytest.fixture(scope="module")
def child(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[list[Any]], list[Any]]]:
    folder = tmp_path_factory.mktemp("stub")
    library = folder / "stub.so"
    source = HERE / "stub_libraries.c"
    flags = ["-O2", "-shared", "-fPIC", "-Wall", "-Werror"]
    subprocess.run(["gcc", *flags, source, "-o", library], check=True)
    environment = {
        **os.environ,
        "LD_PRELOAD": str(library),
        "HOME": str(folder),
        "XDG_CACHE_HOME": "/proc",  # where nothing can be made
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    command = [sys.executable, HERE / "driver_child.py"]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def ask(scenarios: list[Any]) -> list[Any]:
            process.stdin.write(json.dumps(scenarios) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        yield ask
        process.stdin.close()
    assert process.returncode == 0


@pytest.fixture
def ask(child: Callable[[list[Any]], list[Any]]) -> Ask:
    """What a scenario of driver_child.py returns."""

    def ask(scenario: str, **arguments: Any) -> Any:
        [answer] = child([[scenario, arguments]])
        assert answer["error"] is None, answer
        return answer["result"]

    return ask


def count(calls: list[str], name: str) -> int:
    return sum(call.split()[0] == name for call in calls)


def test_a_first_launch_compiles_for_the_device_and_starts_the_kernel_on_torchs_stream(child):
    [answer] = child([["one_launch", {}]])
    calls = answer["calls"]
    options = "--gpu-architecture=sm_90 --std=c++17 -default-device -DSTREAM=bf16 -DCHUNKS=2"
    assert f"nvrtcCompileProgram {options}" in calls
    assert "nvrtcCreateProgram norm.cu 1 0" in calls
    assert "cuModuleLoadData elf" in calls
    assert "cuModuleGetFunction residual_norm_forward" in calls
    assert "cuLaunchKernel 1 grid 3 2 1 block 128 1 1 shared 0 stream 0x1000 device 0 extra 0" in calls
    assert calls[-1].startswith("cuLaunchKernel")


def test_what_is_compiled_and_loaded_is_found_again(ask):
    first, again, other_function, other_defines, other_device = ask("several_kernels")
    warm = ["aoti_torch_get_current_cuda_stream", "cuCtxGetCurrent", "cuLaunchKernel"]
    assert [call.split()[0] for call in again] == warm
    assert count(first, "nvrtcCompileProgram") == 1
    assert count(other_function, "nvrtcCompileProgram") == 0
    assert count(other_function, "cuModuleLoadData") == 0
    assert count(other_function, "cuModuleGetFunction") == 1
    assert count(other_defines, "cuModuleLoadData") == 1
    assert count(other_device, "cuModuleLoadData") == 1
    assert other_device[-2].endswith("stream 0x1001 device 1 extra 0")


def test_every_kind_of_argument_reaches_the_kernel_as_c_passes_it(ask):
    x, *values = ask("all_arguments")
    struct = int.from_bytes(
        b"".join(field.to_bytes(4, "little", signed=True) for field in (1, -1, 2, 3, 4)), "little"
    )
    assert values == [
        x,
        hex(int(x, 16) + 4),
        x,
        "0x0",
        hex(2**32 - 2),
        hex(2**32 - 1),
        hex(0x3F000000),
        hex(2**64 - 3),
        hex(struct),
        "0x7",
    ]


def test_the_devices_context_is_current_for_the_launch_and_stays_where_there_was_none(ask):
    kept, own, others, thread = ask("contexts")
    as_it_is = ["cuCtxGetCurrent", "cuLaunchKernel"]
    left = ["cuCtxPushCurrent", "cuLaunchKernel"]
    assert [call.split()[0] for call in kept][-2:] == as_it_is
    assert [call.split()[0] for call in own][-2:] == as_it_is
    assert [call.split()[0] for call in others][-3:] == [*left, "cuCtxPopCurrent"]
    assert [call.split()[0] for call in thread][-3:] == ["cuCtxGetCurrent", *left]
    for calls in (kept, own, others, thread):
        [launched] = [call for call in calls if call.startswith("cuLaunchKernel")]
        assert "device 0" in launched


def test_more_shared_memory_than_48_kib_is_asked_for_once(ask):
    kib = 1 << 10
    sizes = [48 * kib, 48 * kib + 1, 64 * kib, 64 * kib, 50 * kib, 100 * kib]
    asked = [f"cuFuncSetAttribute 1 8 {size}" for size in sizes]
    expected = [[], [asked[1]], [asked[2]], [], [], [asked[5]]]
    assert ask("shared_memory", sizes=sizes) == expected


def test_a_kernel_that_is_new_to_a_capture_says_to_run_one_step_before_it(ask):
    first, outside, known, other = ask("captured")
    sentence = (
        "RuntimeError: one: no kernel can be loaded while a CUDA graph is captured: run one step before"
    )
    assert first.startswith(sentence)
    assert outside is None
    assert known is None
    assert other.startswith(sentence.replace("one:", "two:"))


def test_threads_that_meet_at_a_kernel_compile_it_once(ask):
    calls = ask("many_threads")
    assert count(calls, "nvrtcCompileProgram") == 1
    assert count(calls, "cuModuleLoadData") == 1
    assert count(calls, "cuLaunchKernel") == 8


def test_whichever_call_fails_is_a_sentence_and_the_next_launch_goes_on_if_it_can(ask):
    first, second, total = ask("launch_twice", fail_at=-1)
    assert (first, second) == (None, None)
    names = set()
    for call in range(total):
        first, second, _ = ask("launch_twice", fail_at=call)
        error = first or second
        assert error is not None, call
        assert error.startswith("RuntimeError: "), error
        assert "fault of batchformer" not in error
        assert FAILED in error or error.endswith("current stream of cuda:0 (error 1)"), error
        name = re.split("[ :]", error.removeprefix("RuntimeError: "))[0]
        names.add(name)
        if first is not None:  # what is wrong with a library stays wrong
            assert second == (first if name in ("cuInit", "nvrtcVersion") else None)
    assert {"cuInit", "cuLaunchKernel", "cuModuleLoadData", "nvrtcGetCUBIN", "cuCtxPopCurrent"} <= names
    assert total > 25


def test_the_message_of_the_compiler_is_in_the_error(ask):
    errors = [ask("launch_twice", fail_at=call)[0] or "" for call in range(20)]
    [sentence] = [error for error in errors if "do not compile" in error]
    assert "the kernels of norm do not compile with --gpu-architecture=sm_90" in sentence
    assert sentence.endswith(f"norm.cu(7): error: {FAILED}")


def test_a_status_names_what_is_there_and_the_first_thing_that_is_not(ask):
    status, total = ask("status_when", fail_at=-1)
    assert status == {
        "driver": "13.2",
        "devices": "sm_90 sm_90",
        "nvrtc": "13.9",
        "torch": "libtorch_cuda.so",
        "cache": "/proc/batchformer",
        "error": None,
    }
    for call in range(total):
        status, _ = ask("status_when", fail_at=call)
        assert FAILED in status["error"]
        assert None in (status["driver"], status["devices"], status["nvrtc"])


@pytest.mark.parametrize(
    ("names", "fact", "start"),
    [
        ("libcuda.so.1", "driver", "libcuda.so.1: expected a library that can be loaded, got:"),
        (
            "libnvrtc.so.13 libnvrtc.so.12",
            "nvrtc",
            r"libnvrtc.so.1[23] or libnvrtc.so.1[23]: expected a library",
        ),
        ("libtorch_cuda.so", "torch", "libtorch_cuda.so: expected a library that can be loaded, got:"),
    ],
)
def test_without_a_driver_a_compiler_or_a_torch_with_cuda_the_library_is_named(ask, names, fact, start):
    first, second, status = ask("absent", names=names)
    assert re.match(f"RuntimeError: {start}", first)
    assert second == first
    assert status[fact] is None
    assert status["error"] == first.removeprefix("RuntimeError: ")


def test_another_major_of_the_compiler_is_found(ask):
    first, second, status = ask("absent", names="libnvrtc.so.13")
    assert first is None
    assert second is None
    assert status["nvrtc"] == "13.9"


def test_a_driver_without_a_function_is_an_error_that_names_it(ask):
    assert ask("no_function") == (
        "RuntimeError: libcuda.so.1: expected a function cuStreamIsCapturing, and there is none"
    )


# The cache


def test_a_second_process_takes_what_the_first_has_compiled(ask, tmp_path):
    assert count(ask("in_folder", cache=str(tmp_path)), "nvrtcCompileProgram") == 1
    [file] = (tmp_path / "batchformer").iterdir()
    assert re.fullmatch("[0-9a-f]{32}[.]cubin", file.name)
    calls = ask("in_folder", cache=str(tmp_path))
    assert count(calls, "nvrtcCompileProgram") == 0
    assert count(calls, "cuModuleLoadData") == 1
    assert "cuModuleLoadData elf" in calls


def test_processes_that_compile_at_once_leave_one_whole_file(child, ask, tmp_path):
    scenario = ["in_folder", {"cache": str(tmp_path), "compile_milliseconds": 200}]
    answers = child([scenario] * 4)
    for answer in answers:
        assert answer["error"] is None
        assert count(answer["result"], "cuLaunchKernel") == 1
    assert sum(count(answer["result"], "nvrtcCompileProgram") for answer in answers) > 1
    assert len(list((tmp_path / "batchformer").iterdir())) == 1
    assert count(ask("in_folder", cache=str(tmp_path)), "nvrtcCompileProgram") == 0


@pytest.mark.parametrize("damage", ["cut", "emptied", "changed", "a folder"])
def test_a_damaged_file_is_compiled_again_and_replaced(ask, tmp_path, damage):
    ask("in_folder", cache=str(tmp_path))
    [file] = (tmp_path / "batchformer").iterdir()
    whole = file.read_bytes()
    if damage == "a folder":
        file.unlink()
        file.mkdir()
    else:
        file.write_bytes({"cut": whole[:-1], "emptied": b"", "changed": whole[:-1] + b"?"}[damage])
    assert count(ask("in_folder", cache=str(tmp_path)), "nvrtcCompileProgram") == 1
    assert [entry.name for entry in file.parent.iterdir()] == [file.name]
    if damage != "a folder":
        assert file.read_bytes() == whole


def test_a_folder_that_cannot_be_written_costs_compiling_alone(ask, tmp_path):
    (tmp_path / "batchformer").write_text("a file in its place")
    for cache in ("/proc", "/dev/full", str(tmp_path)):
        calls = ask("in_folder", cache=cache)
        assert count(calls, "nvrtcCompileProgram") == 1
        assert count(calls, "cuLaunchKernel") == 1
    assert (tmp_path / "batchformer").read_text() == "a file in its place"


def test_a_full_disk_costs_compiling_alone_and_keeps_no_half_of_a_file(ask, tmp_path):
    calls = ask("on_a_full_disk", cache=str(tmp_path))
    assert count(calls, "cuLaunchKernel") == 1
    assert list((tmp_path / "batchformer").iterdir()) == []


def test_without_a_home_nothing_is_kept(ask):
    assert ask("without_home")["cache"] is None


def test_the_compiler_of_torch_makes_a_module_of_a_source_and_names_the_line_of_a_mistake(ask, tmp_path):
    if torch.version.cuda is None:
        pytest.skip("this torch brings no compiler of CUDA")
    nvrtc, error, calls, mistake = ask("with_the_real_compiler", cache=str(tmp_path))
    assert nvrtc.split(".")[0] == torch.version.cuda.split(".")[0]
    assert error is None
    assert "cuModuleLoadData elf" in calls
    assert "the kernels of reduce do not compile with --gpu-architecture=sm_90" in mistake
    assert re.search(r'[a-z]+[.]cu\(\d+\): error: .*"no_such_type"', mistake)


def test_the_hash_of_a_kernel_is_that_of_the_files_in_its_source_and_of_its_defines():
    folder = HERE.parents[1] / "src" / "cuda" / "kernels"
    parts = [f'#line 1 "{name}"\n{(folder / name).read_text()}' for name in ("prelude.cu", "softmax.cu")]
    value = 0x6C62272E07BB014262B821756295C58D  # FNV-1a, 128 bits
    for text in ("".join(parts), "ELEMENT", "bf16"):
        for byte in len(text.encode()).to_bytes(8, "little") + text.encode():
            value = (value ^ byte) * 0x1000000000000000000013B % 2**128
    assert core.cuda_hash("softmax", [("ELEMENT", "bf16")]) == f"{value:032x}"
    assert core.cuda_hash("softmax", [("ELEMENT", "f16")]) != f"{value:032x}"


def sentences_of_cuda() -> dict[str, str]:
    """By the variant of CudaError, as a pattern."""
    display = (HERE.parents[1] / "src" / "cuda" / "error.rs").read_text().split("impl fmt::Display")[1]
    found = {}
    for arm in display.split("CudaError::")[1:]:
        written = re.search(r'write!\(\s*f,\s*"(.+?)"[,)\s]', arm, re.DOTALL)
        if written is None:
            assert arm.startswith("Tensor"), arm  # says what torch says
            continue
        parts = re.split(r"\{.*?\}", re.sub(r"\\\n\s+", "", written[1]))
        found[arm.split()[0]] = "(RuntimeError|ValueError): " + ".*".join(map(re.escape, parts))
    return found


SENTENCES = sentences_of_cuda()
del SENTENCES["NoCut"]  # attention is asked whether its blocks fit before it is launched
del SENTENCES["Device"]  # nothing hands over tensors of devices beside the CPU and CUDA


@pytest.fixture(scope="module")
def first_errors(child) -> list[str]:
    """Of scenarios that reach every error."""
    failing = [["launch_twice", {"fail_at": call}] for call in range(20)]
    absent = [["absent", {"names": "libcuda.so.1"}], ["captured", {}], ["wrong_names", {}], ["emulated", {}]]
    others = [["no_function", {}], *absent]
    results = [answer["result"] for scenario in [*failing, *others] for answer in child([scenario])]
    flat = [each for result in results for each in (result if isinstance(result, list) else [result])]
    return [each for each in flat if isinstance(each, str)]


@pytest.mark.parametrize("variant", SENTENCES)
def test_every_error_is_met(first_errors, variant):
    assert any(re.fullmatch(SENTENCES[variant], error, re.DOTALL) for error in first_errors), first_errors


def test_a_source_or_an_argument_of_another_name_says_which_there_are():
    with pytest.raises(ValueError, match=r"source: expected one of norm, activation, .* got 'no_such'"):
        core.cuda_hash("no_such", [])
    with pytest.raises(ValueError, match=r"argument: expected one of in, out, .* got 'f64'"):
        core.launch_cuda(None, ("norm", "any", [], [1, 1, 1], 32, 0), [("f64", 1.0)])
    with pytest.raises(ValueError, match=r"dtype: expected one of float32, .* got 'int8'"):
        core.cuda_reason((0, "float32", "int8", "float32", 32, 4, 32, False, False), True)


# In place of the device


def test_launches_on_cpu_tensors_go_to_the_emulator_with_all_that_they_are(ask):
    what, values, [x, view], failed, gone = ask("emulated")
    assert what == ["norm", "residual_norm_forward", [["A", "1"]], [3, 2, 1], 128, 5]
    assert values[:2] == [["in", x, 16], ["out", view, 4 * (2 * 8 + 2)]]
    assert values[2][::2] == ["inout", 0]
    assert values[3:] == [None, [0, 0, 0, 0x3F], [1, 0, 0, 0, 2, 0, 0, 0]]
    assert failed == (
        "RuntimeError: residual_norm_forward: the emulator says: ZeroDivisionError: division by zero"
    )
    assert gone == (
        "RuntimeError: residual_norm_forward: expected tensors on a CUDA device, as there is no emulator"
    )


def test_a_warm_launch_costs_little_beside_the_drivers_own_time(ask):
    for seconds in ask("seconds_of_a_launch", times=2_000):
        assert (
            seconds < 3e-6
        )  # as much as the driver takes for itself; on an idle machine it is a tenth of that
