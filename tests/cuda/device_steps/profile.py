"""Where the time of a training step goes: each kernel's, what it moves, its share of the memory's rate."""

import sys
from collections import defaultdict

import torch
from traffic import bytes_of_step

from batchformer.benchmark.competitors import OURS, Setting, make_competitors
from batchformer.benchmark.launches import profile_step
from batchformer.benchmark.shapes import find_shapes
from device_steps.facts import copy_rate
from device_steps.findings import note, say


def main(dtype_name: str, words: list[str]) -> int:
    """Exit status 1 if a shape has no profile."""
    dtype = getattr(torch, dtype_name)
    rate = copy_rate()
    note(copy_bytes_per_second=rate)
    profiles, without = {}, []
    for shape in find_shapes(words):
        setting = Setting(torch.device("cuda"), dtype, 0.5)
        try:
            (ours,) = make_competitors([OURS], shape, setting)
            for _ in range(3):
                ours.step()
            profile = profile_step(ours.step, setting.device)
        except RuntimeError as error:
            say(f"{shape}: {error}")
            profile = None
        if profile is None:
            without.append(str(shape))
            continue
        by_kernel: dict[str, list[float]] = defaultdict(list)
        for kernel in profile.ran:
            by_kernel[kernel.name].append(kernel.seconds)
        busy = profile.summary.busy
        say(f"\n{shape} {dtype_name}: {1e6 * busy:.0f} us in {profile.summary.kernels} kernels")
        table = []
        for name, seconds in sorted(by_kernel.items(), key=lambda item: -sum(item[1])):
            row = {"kernel": name[:100], "count": len(seconds), "us": round(1e6 * sum(seconds), 1)}
            row["share"] = round(sum(seconds) / busy, 3)
            moved = bytes_of_step(name, shape, dtype.itemsize)
            if moved is not None:
                row |= {"bytes": moved, "of_memory_rate": round(moved / sum(seconds) / rate, 3)}
            table.append(row)
            share = f"{row['of_memory_rate']:.0%} of the copy's rate" if "of_memory_rate" in row else ""
            say(f"  {row['us']:9.1f} us {row['share']:5.0%} x{row['count']:<3} {name[:70]:70} {share}")
        profiles[str(shape)] = {"busy_us": 1e6 * busy, "launches": profile.launches, "kernels": table}
        note(profiles=profiles)
    line = f"{len(profiles)} shapes, copy {rate / 1e12:.2f} TB/s"
    note(f"{line}; without: {', '.join(without)}" if without else line)
    return 1 if without else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
