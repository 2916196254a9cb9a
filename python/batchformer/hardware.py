"""The names of this machine's processor and CUDA devices."""

import platform
from pathlib import Path

import torch


def processor() -> str:
    """The model of the processor, or its architecture where the system does not tell more."""
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def cuda_device(index: int) -> str:
    """Name, compute capability and multiprocessors of a CUDA device."""
    properties = torch.cuda.get_device_properties(index)
    return (
        f"{properties.name}, sm_{properties.major}{properties.minor}, "
        f"{properties.multi_processor_count} multiprocessors"
    )
