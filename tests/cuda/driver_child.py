"""What test_driver.py does beside the stub libraries, each scenario in a process of its own.

Reads lines of JSON, `[[scenario, arguments], ...]`, forks a process for each scenario of a line, all at once,
and answers with a line: what each has returned, raised, and called. torch is imported once, before them.
"""

import ctypes
import json
import os
import resource
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import torch

from batchformer._extension import core

stub = ctypes.CDLL(os.environ["LD_PRELOAD"])
stub.stub_record.restype = ctypes.c_char_p

X = torch.zeros(4)
DEFINES = [("STREAM", "bf16"), ("CHUNKS", "2")]
Kernel = tuple[str, str, list[tuple[str, str]], list[int], int, int]


def kernel(name: str = "residual_norm_forward", shared: int = 0, defines: Any = DEFINES) -> Kernel:
    return ("norm", name, list(map(tuple, defines)), [3, 2, 1], 128, shared)


def launch(device: int | None = 0, arguments: Any = (), times: int = 1, **which: Any) -> None:
    core.launch_cuda(device, kernel(**which), list(arguments), times)


def record() -> list[str]:
    """The calls since the last time."""
    calls = stub.stub_record().decode().splitlines()
    stub.stub_clear()
    return calls


def attempt(work: Callable[[], Any]) -> str | None:
    """What an exception says, even one that is none of Exception."""
    try:
        work()
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    return None


# Scenarios: what they return goes to the test.


def one_launch(**how: Any) -> None:
    launch(**how)


def launch_twice(fail_at: int) -> Any:
    """The error of a launch whose n-th call fails, that of the next one, and how many calls both took."""
    stub.stub_make_current(1)  # another device's context, which has to be current again
    stub.stub_fail_at(fail_at)
    errors = [attempt(lambda: launch(shared=64 << 10)) for _ in range(2)]
    return [*errors, stub.stub_calls()]


def status_when(fail_at: int) -> Any:
    stub.stub_fail_at(fail_at)
    return [core.cuda_status(), stub.stub_calls()]


def all_arguments() -> list[str]:
    sizes = [8, 8, 8, 8, 4, 4, 4, 8, 20, 4]
    stub.stub_sizes(len(sizes), (ctypes.c_int * len(sizes))(*sizes))
    values = [
        ("i32", -2),
        ("u32", 2**32 - 1),
        ("f32", 0.5),
        ("i64", -3),
        ("struct", [1, -1, 2, 3, 4]),
        ("i32", 7),
    ]
    pointers = [("in", X), ("out", X[1:]), ("inout", X), ("null", None)]
    launch(arguments=[*pointers, *values])
    [launched] = [call for call in record() if call.startswith("cuLaunchKernel")]
    words = launched.split()[-len(sizes) :]
    return [hex(X.data_ptr()), *(hex(int.from_bytes(bytes.fromhex(word), "little")) for word in words)]


def several_kernels() -> list[list[str]]:
    """The calls of a first launch, a second, another function's, and those of other defines and devices."""
    calls = []
    for how in ({}, {}, {"name": "other"}, {"defines": [("STREAM", "f16")]}, {"device": 1}):
        launch(**how)
        calls.append(record())
    return calls


def contexts() -> list[list[str]]:
    """Warm launches in the context of the first, the device's own, another device's, and in a new thread."""
    launch()
    record()
    calls = []
    for current in (None, 0, 1):
        if current is not None:
            stub.stub_make_current(current)
        launch()
        calls.append(record())
    thread = threading.Thread(target=launch)
    thread.start()
    thread.join()
    return [*calls, record()]


def shared_memory(sizes: list[int]) -> list[list[str]]:
    calls = []
    for size in sizes:
        launch(shared=size)
        calls.append([call for call in record() if call.startswith("cuFuncSetAttribute")])
    return calls


def captured() -> list[str | None]:
    """A first launch in a capture, the same outside of it, in the next one, and another kernel's in that."""
    errors = []
    for capturing, name in ((1, "one"), (0, "one"), (1, "one"), (1, "two")):
        stub.stub_capturing(capturing)
        errors.append(attempt(lambda name=name: launch(name=name)))
    return errors


def many_threads() -> list[str]:
    stub.stub_compile_milliseconds(50)
    threads = [threading.Thread(target=launch) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return record()


def in_folder(cache: str, **stub_settings: int) -> list[str]:
    """A first launch with that folder for caches."""
    os.environ["XDG_CACHE_HOME"] = cache
    for name, value in stub_settings.items():
        getattr(stub, f"stub_{name}")(value)
    launch()
    return record()


def on_a_full_disk(cache: str) -> list[str]:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))  # Python ignores the signal, so that a write fails
    return in_folder(cache)


def without_home() -> Any:
    del os.environ["HOME"]
    os.environ["XDG_CACHE_HOME"] = "relative"
    launch()
    return core.cuda_status()


def absent(names: str) -> Any:
    stub.stub_absent(names.encode())
    return [attempt(launch), attempt(launch), core.cuda_status()]


def no_function() -> Any:
    stub.stub_missing_function(1)
    return attempt(launch)


def wrong_names() -> list[str | None]:
    return [attempt(lambda: launch(name="a\0b")), attempt(lambda: launch(arguments=[("f64", 1.0)]))]


def emulated() -> Any:
    """What the emulator is called with, what it says if it fails, and what a launch says when it is gone."""
    launches: list[Any] = []
    core.emulate_cuda(lambda *launch: launches.append(launch))
    view = torch.zeros(3, 8)[:, 2:4]
    arguments = [("in", X), ("out", view), ("inout", X[:0]), ("null", None), ("f32", 0.5), ("struct", [1, 2])]
    launch(None, arguments, defines=[("A", "1")], shared=5)
    core.emulate_cuda(lambda *launch: 1 / 0)
    failed = attempt(lambda: launch(None))
    core.emulate_cuda(None)
    [(*what, got)] = launches
    values = [list(value) if isinstance(value, bytes) else value for value in got]
    return [what, values, [X.data_ptr(), view.data_ptr()], failed, attempt(lambda: launch(None))]


def seconds_of_a_launch(times: int) -> list[float]:
    """Of a warm one with 20 arguments, if calls cost nothing: the device's context is current, or none."""
    stub.stub_silent(1)
    defines = [(f"DEFINE_{index}", "bf16") for index in range(8)]
    arguments = [("in", X)] * 10 + [("i32", 1)] * 8 + [("struct", [1] * 5), ("i64", 1)]

    def seconds() -> float:
        start = time.perf_counter()
        launch(arguments=arguments, times=times, defines=defines)
        return (time.perf_counter() - start) / times

    without = min(seconds() for _ in range(6))
    stub.stub_make_current(0)
    return [min(seconds() for _ in range(6)), without]


def with_the_real_compiler(cache: str) -> Any:
    """What the compiler of torch makes of a source of ours, and of one with a define that it cannot read."""
    stub.stub_real_compiler(1)
    os.environ["XDG_CACHE_HOME"] = cache

    def column_sums(element: str) -> None:
        defines = [("ELEMENT", element), ("OUT_A", "float"), ("OUT_B", "bf16")]
        core.launch_cuda(0, ("reduce", "column_sums", defines, [1, 1, 1], 32, 0), [])

    nvrtc = core.cuda_status()["nvrtc"]
    return [
        nvrtc,
        attempt(lambda: column_sums("bf16")),
        record(),
        attempt(lambda: column_sums("no_such_type")),
    ]


def hold(name: str, arguments: dict[str, Any], answer: int) -> None:
    result: Any = None
    error = None
    try:
        result = globals()[name](**arguments)
    except BaseException as failure:
        error = f"{type(failure).__name__}: {failure}"
    with os.fdopen(answer, "w") as pipe:
        json.dump({"result": result, "error": error, "calls": record()}, pipe)
    os._exit(0)


def main() -> None:
    for line in sys.stdin:
        children = []
        for name, arguments in json.loads(line):
            reading, writing = os.pipe()
            child = os.fork()
            if child == 0:
                os.close(reading)
                hold(name, arguments, writing)
            os.close(writing)
            children.append((child, reading))
        answers = []
        for child, reading in children:
            with os.fdopen(reading) as pipe:
                answer = pipe.read()
            _, status = os.waitpid(child, 0)
            answers.append(json.loads(answer) if answer else {"error": f"the process ended with {status}"})
        sys.stdout.write(json.dumps(answers) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
