"""Compiles all that the systems' calls launch, loads it into the driver, and asks the driver what it is."""

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from harness import KernelError, OnDevice, nvrtc, precompile, source_text
from recorded import distinct, systems

from device_steps.findings import note, say

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def make(folder: Path) -> int:
    """Compile by every NVRTC that this machine has: those of CUBINS_BY, else torch's own."""
    modules = [(source, dict(defines)) for source, defines in distinct(systems(DTYPES))]
    for path in os.environ.get("CUBINS_BY", "").split(os.pathsep):
        made = precompile(modules, path or None, "sm_90", folder)
        say(f"NVRTC {made.version}: {len(modules)} modules in {folder}")
    return 0


def main(folder: Path) -> int:
    """Exit status 1 if something is not compiled or not loaded."""
    arch = "sm_{}{}".format(*torch.cuda.get_device_capability())
    start = time.perf_counter()
    modules = distinct(systems(DTYPES))
    note(recorded_seconds=time.perf_counter() - start, modules=len(modules))
    compiler, start = nvrtc(), time.perf_counter()

    def compiled(module):
        source, defines = module
        try:
            return compiler.compiled(source_text(source), dict(defines), arch)
        except KernelError as error:
            return error

    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        results = list(pool.map(compiled, modules))
    note(compile_seconds=time.perf_counter() - start)
    figures, wrong, loading = {}, {}, 0.0
    for (source, defines), result in zip(modules, results, strict=True):
        name = f"{source} {' '.join(f'{key}={value}' for key, value in defines)}"
        if isinstance(result, KernelError):
            wrong[name] = str(result)[:1000]
            continue
        start = time.perf_counter()
        try:
            module = OnDevice(result.cubin)
            for kernel, figure in result.kernels.items():
                on_device = module.figures(kernel)
                figures[f"{kernel}: {name}"] = {
                    "registers": on_device.registers,
                    "local": on_device.stack,
                    "shared": on_device.shared,
                    "spills": figure.spills,
                    "seconds": round(figure.seconds, 2),
                }
        except KernelError as error:
            wrong[name] = str(error)
        loading += time.perf_counter() - start
        note(figures=figures, wrong=wrong, load_seconds=loading)
    others = {}
    for file in sorted(folder.glob(f"{arch}-*.cubin")):
        version = file.name.split("-")[2]
        try:
            OnDevice(file.read_bytes())
            others[version] = others.get(version, 0) + 1
        except KernelError as error:
            wrong[file.name] = str(error)
    spilled = sum(any(each["spills"]) for each in figures.values())
    note(
        f"{len(modules)} modules, {len(figures)} kernels loaded, {spilled} with spills, {len(wrong)} wrong; "
        f"made beforehand: {others or 'none'}",
        others=others,
        wrong=wrong,
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
