"""What a step launches on a device, as torch's profiler sees it: kernels, launches, and how long they run."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch", "cuGraphLaunch", "cudaLaunchCooperative")
"""How the names of calls begin that launch kernels: one kernel each, or a whole graph of them."""
COPIES = ("Memcpy", "Memset")
BOTH = (ProfilerActivity.CUDA, ProfilerActivity.CPU)


class Kernel(NamedTuple):
    """What ran on the device, a kernel or a copy."""

    name: str
    seconds: float

    @property
    def copies(self) -> bool:
        """Whether it moves or fills memory and is no kernel."""
        return self.name.startswith(COPIES)


@dataclass(frozen=True)
class Launches:
    """A step as the device and its queue see it."""

    kernels: int
    launches: int  # calls of the host; a whole graph of kernels is one
    busy: float  # seconds that kernels and copies take, added up


class Profile(NamedTuple):
    """All that ran on the device, in order, and the host's calls that launched it."""

    ran: list[Kernel]
    launches: int

    @property
    def summary(self) -> Launches:
        """The numbers of the table."""
        kernels = sum(not kernel.copies for kernel in self.ran)
        return Launches(kernels, self.launches, sum(kernel.seconds for kernel in self.ran))


def profile_step(step: Callable[[], object], device: torch.device) -> Profile | None:
    """One step under the profiler; None where the machine does not allow profiling."""
    _begin_once(device)
    torch.cuda.synchronize(device)
    with profile(activities=BOTH, acc_events=True) as profiler:
        step()
        torch.cuda.synchronize(device)
    result = profiler.profiler
    found = read([] if result is None else result.kineto_results.events())
    return found if found.ran else None


@cache
def _begin_once(device: torch.device) -> None:
    """The first profile of a process starts late and may miss what runs."""
    with profile(activities=BOTH, acc_events=True):
        torch.zeros(1, device=device)
        torch.cuda.synchronize(device)


def read(events: list[torch._C._autograd._KinetoEvent]) -> Profile:
    """The device's work among the profiler's events; ranges named by users or compilers are left out."""
    ran = [
        (event.start_ns(), Kernel(event.name(), event.duration_ns() / 1e9))
        for event in events
        if event.device_type() == DeviceType.CUDA and not event.is_user_annotation()
    ]
    launches = sum(
        event.device_type() == DeviceType.CPU and event.name().startswith(LAUNCHES) for event in events
    )
    return Profile([kernel for _, kernel in sorted(ran)], launches)
