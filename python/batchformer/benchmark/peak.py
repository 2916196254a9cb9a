"""The most that the processor could compute: the peak of its fused multiply-adds, measured."""

import time

import torch

from batchformer._extension import core

ROUNDS = 1 << 19
"""A millisecond: short enough to fall between two disturbances, long compared with starting the threads."""
RUNS = 200


def measure_fma_peak(dtype: torch.dtype) -> float:
    """Floating point operations a second of torch's threads together, with the core's instruction set.

    The best of many runs of a loop of fused multiply-adds in registers, in float64 or else float32.
    """
    return max(_rate(double=dtype == torch.float64) for _ in range(RUNS))


def _rate(*, double: bool) -> float:
    start = time.perf_counter()
    flops = core.fma_flops(ROUNDS, double=double)
    return flops / (time.perf_counter() - start)
