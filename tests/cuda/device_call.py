"""What to run first on a machine with a GPU: whether the kernels are right there, then how fast they are.

    python tests/cuda/device_call.py --out results/device

Needs torch with CUDA, pytest and the installed package, no compiler and no network. The steps stand in the
order in which they are worth most, each is a process of its own with a limit of time, and none stops the
next. A line a step is printed; everything found goes to report.json, as soon as a step is over, what the
processes print to log.txt.

    python tests/cuda/device_call.py --make expectations   # on any machine with g++, before: of step 3
"""

import argparse
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SUITE = [
    f"tests/test_{name}.py"
    for name in (
        "encoder_layer",
        "dropout",
        "registration",
        "training_tools",
        "bad_input",
        "direct",
        "memory_bank",
        "attach_training",
    )
]
"""The tests that take the fixture `device`; `-k cuda` picks those of its device."""


class Step(NamedTuple):
    """A process and what it may take."""

    name: str
    seconds: int
    command: list[str]
    environment: Mapping[str, str] = MappingProxyType({})


def python(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", module, *arguments]


def steps(options: argparse.Namespace) -> dict[int, Step]:
    """All steps by their number; they run in the order of --steps."""
    out = options.out
    kernels = {"BATCHFORMER_CUDA": "kernels"}
    fails = {"FAIL_WITHOUT_CUDA": "1"}
    workers = ["-n", "8"] if importlib.util.find_spec("xdist") else []
    of_pytest = ["-p", "no:cacheprovider", "-p", "no:benchmark", "--tb=short", "--timeout=60", *workers]
    benchmark = ["--device", "cuda", "--dtype", *options.dtype, "--shapes", *options.shapes]
    if not options.compile:
        benchmark.append("--no-compile")
    files = ["--json", str(out / "benchmark.json"), "--plot", str(out / "benchmark.png")]
    return {
        0: Step(
            "suite",
            120,
            python("pytest", *of_pytest, "-k", "cuda", f"--junitxml={out}/suite.xml", *SUITE),
            fails,
        ),
        1: Step("facts", 40, python("device_steps.facts")),
        2: Step("load", 60, python("device_steps.load", str(options.cubins))),
        3: Step("primitives", 30, python("device_steps.primitives", str(options.expectations))),
        4: Step(
            "kernels",
            120,
            python(
                "pytest",
                *of_pytest,
                "-k",
                "device and not test_device_call",
                f"--junitxml={out}/kernels.xml",
                "tests/cuda",
            ),
            fails,
        ),
        5: Step("layer", 80, python("device_steps.layer"), kernels),
        6: Step("sanitizer", 260, python("device_steps.sanitizer"), kernels),
        # with a cache of its own, so that first steps compile
        7: Step(
            "benchmark",
            150,
            python("batchformer.benchmark", *benchmark, *files),
            {**kernels, "XDG_CACHE_HOME": tempfile.mkdtemp(prefix="batchformer-first-steps-")},
        ),
        8: Step("threads", 180, python("device_steps.threads")),
        10: Step("check", 60, python("batchformer.cuda", "--check", "--report", str(out / "device.md"))),
        9: Step("profile", 40, python("device_steps.profile", *options.dtype[:1], *options.shapes), kernels),
    }


def run(step: Step, out: Path, seconds: float) -> dict[str, Any]:
    """What a step found, how it ended and how long it took."""
    findings = out / f"{step.name}.json"
    environment = {
        **os.environ,
        **step.environment,
        "DEVICE_FINDINGS": str(findings),
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, (str(HERE), os.environ.get("PYTHONPATH")))),
    }
    start = time.perf_counter()
    with (out / "log.txt").open("a") as log:
        log.write(f"\n==== {step.name}: {' '.join(step.command)}\n")
        log.flush()
        process = subprocess.Popen(
            step.command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
        )
        try:
            status = str(process.wait(seconds))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            status = "time"
    result = {"status": status, "seconds": round(time.perf_counter() - start, 1)}
    if findings.exists():
        result |= json.loads(findings.read_text())
        findings.unlink()
    tests = out / f"{step.name}.xml"
    if tests.exists():
        result |= tested(tests)
        tests.unlink()
    return result


def tested(file: Path) -> dict[str, Any]:
    """Numbers and failures of pytest's report."""
    from xml.etree import ElementTree

    cases = list(ElementTree.parse(file).iter("testcase"))
    failed = {}
    for case in cases:
        for kind in ("failure", "error"):
            found = case.find(kind)
            if found is not None:
                message = (found.get("message") or found.text or "").strip()
                failed[f"{case.get('classname')}::{case.get('name')}"] = message[:400]
    skipped = sum(case.find("skipped") is not None for case in cases)
    line = f"{len(cases) - len(failed) - skipped} passed, {len(failed)} failed, {skipped} skipped"
    return {"line": line, "failed": failed}


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("results/device"), help="folder of the report")
    parser.add_argument(
        "--steps", default="1,2,3,4,5,7,9,6,10,0", help="numbers, in order; 8: threads of the CPU"
    )
    parser.add_argument("--seconds", type=float, default=270, help="for all steps together")
    parser.add_argument("--dtype", nargs="+", default=["bfloat16"], help="of steps 7 and 9")
    parser.add_argument("--shapes", nargs="+", default=["gpu"], help="of steps 7 and 9, as for the benchmark")
    parser.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, default=True, help="torch.compile in step 7"
    )
    parser.add_argument("--cubins", type=Path, default=HERE / "cubins", help="made beforehand, of step 2")
    parser.add_argument("--expectations", type=Path, default=HERE / "expectations.pt", help="of step 3")
    parser.add_argument("--make", choices=["expectations", "cubins"], help="make that file and end")
    return parser


def main() -> int:
    """Exit status: how many of the steps did not end well."""
    options = make_parser().parse_args()
    if options.make:
        sys.path.insert(0, str(HERE))
        if options.make == "cubins":
            from device_steps import load

            return load.make(options.cubins)
        from device_steps import primitives

        return primitives.make(options.expectations)
    options.out = options.out.resolve()
    shutil.rmtree(options.out, ignore_errors=True)
    options.out.mkdir(parents=True)
    known = steps(options)
    picked = [known[int(number)] for number in options.steps.split(",")]
    report: dict[str, Any] = {"steps": options.steps}
    bad, start = 0, time.perf_counter()
    for step in picked:
        left = options.seconds - (time.perf_counter() - start)
        if left < 5:
            say(f"{step.name:10} no time left")
            continue
        result = run(step, options.out, min(step.seconds, left))
        report[step.name] = result
        (options.out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
        well = result["status"] == "0"
        bad += not well
        state = "ok" if well else f"FAILED ({result['status']})"
        say(f"{step.name:10} {result['seconds']:6.1f} s  {state:12} {result.get('line', '')}")
    return bad


if __name__ == "__main__":
    sys.exit(main())
