"""What the benchmark measures on a device, with a device that is played: its clock, queue and allocator."""

import io
import json
from dataclasses import replace

import pytest
import torch
from rich.console import Console
from torch._C._autograd import DeviceType

from batchformer.benchmark import __main__ as benchmark
from batchformer.benchmark import competitors, prepare, timing
from batchformer.benchmark import launches as launches_of_a_step
from batchformer.benchmark import rows as table_rows
from batchformer.benchmark.competitors import (
    COMPILED,
    EAGER,
    GRAPHED,
    OURS,
    PRODUCTS,
    Competitor,
    Setting,
    case_as_json,
    case_from_json,
    make_competitors,
)
from batchformer.benchmark.launches import Kernel, Launches, Profile, profile_step, read
from batchformer.benchmark.memory import peak_on_device
from batchformer.benchmark.report import table
from batchformer.benchmark.rows import measure_rows
from batchformer.benchmark.shapes import GPU, SETS, Shape, find_shapes
from batchformer.benchmark.timing import (
    MOST_STEPS,
    WARM_UP,
    WARM_UP_ON_DEVICE,
    measure_calls,
    time_interleaved,
)

CUDA = torch.device("cuda")
TINY = Shape("tiny", 4, 3, 16)
NAMES = [OURS, EAGER, COMPILED, GRAPHED, PRODUCTS]
SLOWER = 3.0  # the played device's clock, beside the host's


class PlayedClock:
    """The host's clock, which goes on when a call of a test says so."""

    now = 0.0

    def perf_counter(self):
        return self.now


class PlayedEvent:
    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.at = timing.time.perf_counter()

    def elapsed_time(self, other):
        return 1e3 * SLOWER * (other.at - self.at)


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setattr(timing, "time", PlayedClock())
    return timing.time


@pytest.fixture
def device(monkeypatch):
    """Layers and tensors are on the CPU, torch's compiler leaves the layers as they are."""
    make_layer = competitors.make_layer

    def on_the_cpu(name, shape, setting):
        name = EAGER if name in competitors.MODES else name
        return make_layer(name, shape, replace(setting, device=torch.device("cpu")))

    class Properties:
        L2_cache_size = 4 * TINY.tokens * TINY.channels * 4

    monkeypatch.setattr(competitors, "make_layer", on_the_cpu)
    monkeypatch.setattr(Setting, "randn", lambda self, *size: torch.randn(*size, dtype=self.dtype))
    for name, value in {
        "is_available": lambda: True,
        "synchronize": lambda _=None: None,
        "Event": PlayedEvent,
        "get_device_properties": lambda _: Properties,
        "get_device_name": lambda _: "a played device",
        "mem_get_info": lambda _: (1 << 30, 1 << 30),
        "reset_peak_memory_stats": lambda _: None,
        "memory_allocated": lambda _: 1000,
        "max_memory_allocated": lambda _: 1000 + 4 * 20 * TINY.tokens * TINY.channels,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91002)
    return Setting(CUDA, torch.float32, 0.5)


@pytest.fixture
def launches(monkeypatch):
    """Half a millisecond of seven kernels and a copy, for whatever runs; rounds of a few steps."""
    monkeypatch.setattr(timing, "ROUND_SECONDS", 1e-4)
    ran = [Kernel("norm", 5e-5)] * 7 + [Kernel("Memcpy DtoD", 1.5e-4)]
    monkeypatch.setattr(table_rows, "profile_step", lambda step, device: (step(), Profile(ran, 9))[1])


def test_the_table_on_a_device_is_made_from_end_to_end(device, launches, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(benchmark.SETS, "gpu", (TINY,))
    monkeypatch.setattr(
        table_rows,
        "compile_beforehand",
        lambda cases, names, jobs: [{COMPILED: 5.25, GRAPHED: 1.5}] * len(cases),
    )
    monkeypatch.setattr(table_rows.ops, "declined", lambda: ["cuda:0: not verified"])
    files = ["--json", str(tmp_path / "bench.json"), "--plot", str(tmp_path / "bench.png")]
    assert (
        benchmark.main(["--device", "cuda", "--threads", "1", "--dtype", "float32", "float64", *files]) == 0
    )
    printed = capsys.readouterr().out
    for text in ("tiny N=4 L=3 C=16 float32", "C=16 float64", "a played device", "7, 7, 7", "0.500, 0.500"):
        assert text in printed
    document = json.loads((tmp_path / "bench.json").read_text())
    assert [row["dtype"] for row in document["rows"]] == ["float32", "float64"]
    row = document["rows"][0]
    assert list(row["times"]) == NAMES
    assert list(row["times"][GRAPHED]) == ["step"]
    assert row["first"][COMPILED] == 5.25
    assert 0 < row["first"][OURS] < 5
    assert row["launches"][OURS] == {"kernels": 7, "launches": 9, "busy": pytest.approx(5e-4)}
    assert row["peak"] == pytest.approx({OURS: 20.0, EAGER: 20.0, COMPILED: 20.0})
    assert (tmp_path / "bench.png").exists()
    assert "our kernels did not run: cuda:0: not verified" in printed


def test_without_compiling_torchs_layer_is_timed_as_it_is_alone(device, launches, monkeypatch):
    monkeypatch.setattr(table_rows, "compile_beforehand", lambda cases, names, jobs: [{}] * len(cases))
    assert benchmark.competitors_of(CUDA, compiled=None) == NAMES
    assert benchmark.competitors_of(CUDA, compiled=False) == [OURS, EAGER, PRODUCTS]
    assert benchmark.competitors_of(torch.device("cpu"), compiled=None) == [OURS, EAGER, PRODUCTS]
    assert benchmark.competitors_of(torch.device("cpu"), compiled=True) == [OURS, EAGER, COMPILED, PRODUCTS]
    kept = []
    rows = measure_rows(
        [(TINY, device)],
        [OURS, EAGER, PRODUCTS],
        10,
        None,
        Console(quiet=True),
        1,
        lambda rows: kept.append(len(rows)),
    )
    assert kept == [1]
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(table(rows))
    assert "overhead" not in console.export_text()


def test_who_fails_on_the_device_is_left_out_with_a_sentence(device, launches, monkeypatch):
    def fails(name, shape, setting):
        if name == GRAPHED:
            return Competitor(name, lambda: torch.ones(2).expand(3), None)
        return made(name, shape, setting)

    made = competitors.layer_competitor
    monkeypatch.setattr(competitors, "layer_competitor", fails)
    monkeypatch.setattr(table_rows, "compile_beforehand", lambda *_: [{}])
    console = Console(width=200, record=True, file=io.StringIO())
    (row,) = measure_rows([(TINY, device)], NAMES, 10, None, console, 1)
    assert list(row.times) == [OURS, EAGER, COMPILED, PRODUCTS]
    assert "reduce-overhead is left out: The expanded size" in console.export_text()


def test_times_are_of_the_devices_clock_and_the_hosts_is_kept(device, clock):
    durations = []

    def step():
        durations.append(0.002 if len(durations) % 2 else 0.001)
        clock.now += durations[-1]

    times = time_interleaved([Competitor("sleeper", step, None)], 10, CUDA)["sleeper"]
    assert list(times) == ["step"]
    assert len(durations) == WARM_UP * WARM_UP_ON_DEVICE + 10 * 4  # four of 1.5 ms are the first above 5 ms
    assert times["step"] == pytest.approx((SLOWER * 0.0015, SLOWER * 0.0015, 0.0015))


def test_short_steps_make_a_round_together_up_to_a_number(device, clock):
    calls = []

    def step():
        calls.append(None)
        clock.now += 1e-6

    time_interleaved([Competitor("quick", step, None)], 10, CUDA)
    assert len(calls) == WARM_UP * WARM_UP_ON_DEVICE + 10 * MOST_STEPS
    assert measure_calls(step, CUDA, 3) == pytest.approx((SLOWER * 1e-6, 1e-6))
    calls.clear()
    time_interleaved([Competitor("quick", step, None)], 10, torch.device("cpu"))
    assert len(calls) == WARM_UP + 10


def test_steps_take_turns_with_inputs_until_the_cache_has_lost_them(device):
    seen = []
    (eager,) = make_competitors([EAGER], TINY, device)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (seen.append(t.data_ptr()), t)[1], lambda t: t):
        for _ in range(10):
            seen.append("step")
            eager.step()
    firsts = [seen[place + 1] for place, what in enumerate(seen) if what == "step"]
    assert len(set(firsts)) == 5  # x itself, and four whose two tensors fill the cache twice
    assert firsts[:5] == firsts[5:]


def test_a_step_leaves_no_gradient_so_that_its_peak_holds_all_of_them(device):
    call = competitors.make_call(EAGER, TINY, device)
    competitor = competitors.layer_competitor(EAGER, TINY, device)
    assert all(parameter.requires_grad for parameter in call.layer.parameters())
    assert call.layer.training
    assert call.x.requires_grad
    assert peak_on_device(competitor.step, TINY, device) == pytest.approx(20.0)


class PlayedRecord:
    def __init__(self, name, device, start=0, duration=1000, annotation=False):
        self.facts = name, device, start, duration, annotation

    def name(self):
        return self.facts[0]

    def device_type(self):
        return self.facts[1]

    def start_ns(self):
        return self.facts[2]

    def duration_ns(self):
        return self.facts[3]

    def is_user_annotation(self):
        return self.facts[4]


def test_kernels_launches_and_busy_time_are_read_off_a_profile():
    cpu, cuda = DeviceType.CPU, DeviceType.CUDA
    profile = read(
        [
            PlayedRecord("cudaLaunchKernel", cpu),
            PlayedRecord("cudaLaunchKernelExC", cpu),
            PlayedRecord("cuLaunchKernel", cpu),
            PlayedRecord("cudaGraphLaunch", cpu),
            PlayedRecord("cudaMemcpyAsync", cpu),
            PlayedRecord("aten::mm", cpu),
            PlayedRecord("second", cuda, start=20, duration=3000),
            PlayedRecord("first", cuda, start=10, duration=2000),
            PlayedRecord("Memset (Device)", cuda, start=30),
            PlayedRecord("## Call CompiledFxGraph ##", cuda, start=5, duration=9000, annotation=True),
        ]
    )
    assert [kernel.name for kernel in profile.ran] == ["first", "second", "Memset (Device)"]
    assert profile.summary == Launches(kernels=2, launches=4, busy=pytest.approx(6e-6))


def test_a_machine_without_counters_has_no_launches(device, monkeypatch):
    calls = []
    monkeypatch.setattr(launches_of_a_step, "_begin_once", lambda _: None)
    assert profile_step(lambda: calls.append(None), CUDA) is None
    assert len(calls) == 1


def test_processes_compile_the_cases_and_tell_their_seconds_in_order(monkeypatch):
    started = []

    class Process:
        def __init__(self, command, stdout, text, env):
            started.append((json.loads(command[-1]), env["TORCHINDUCTOR_COMPILE_THREADS"]))
            self.number = len(started) - 1

        def communicate(self):
            lines = [json.dumps({COMPILED: 10 * self.number + place}) for place in range(2 - self.number)]
            return "\n".join(lines), None

    monkeypatch.setattr(prepare.subprocess, "Popen", Process)
    shapes = SETS["v2"][:4]
    cases = [(shape, Setting(CUDA, torch.bfloat16, 0.1)) for shape in shapes]
    seconds = prepare.compile_beforehand(cases, NAMES, 2)
    # The second process ended early: its last case has no seconds.
    assert seconds == [{COMPILED: 0}, {COMPILED: 10}, {COMPILED: 1}, {}]
    tasks = [task for task, _ in started]
    assert [task["names"] for task in tasks] == [[OURS, COMPILED, GRAPHED]] * 2
    assert [[case_from_json(case) for case in task["cases"]] for task in tasks] == [cases[::2], cases[1::2]]


def test_a_process_that_compiles_prints_the_seconds_of_its_first_steps(monkeypatch, capsys):
    made = []
    make_layer = competitors.make_layer

    def uncompiled(name, shape, setting):
        made.append(name)
        return make_layer(EAGER, shape, setting)

    monkeypatch.setattr(competitors, "make_layer", uncompiled)
    setting = Setting(torch.device("cpu"), torch.float32, 0.5)
    prepare.main({"names": [COMPILED, GRAPHED], "cases": [case_as_json((TINY, setting))]})
    assert made == [EAGER, COMPILED, GRAPHED]  # the first warms the process up
    seconds = json.loads(capsys.readouterr().out)
    assert set(seconds) == {COMPILED, GRAPHED}
    assert all(0 < value < 60 for value in seconds.values())


def test_shapes_are_found_by_set_and_by_name():
    assert find_shapes(["gpu"]) == GPU
    assert [str(shape) for shape in find_shapes(["DETR N=2 L", "RIDE"])] == [
        "DETR N=2 L=850 C=256",
        "Deformable DETR N=2 L=17821 C=256",
        "RIDE CIFAR N=128 C=48",
    ]
    assert find_shapes(["v1", "v1"]) == SETS["v1"]
    texts = {str(shape) for shape in GPU}
    assert texts >= {"V1 N=4096 C=2048", "V1 N=4096 C=512", "SWAD N=96 C=512", "DeiT-S N=64 L=197 C=384"}
