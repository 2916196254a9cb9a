"""Memory that cannot be had: RLIMIT_AS in steps through a training step, of our layer beside torch's.

    python tests/memory_sweep.py --limits 32 --threads 1 2

Each line is a limit: "ran", "raised" in the forward or the backward, or how the process "died"; then torch's
layer is tried, too. A process that does not die runs the step again without the limit and compares all bits.
Exits with 1 if ours dies where torch's does not.
"""

import argparse
import ctypes
import os
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch

import batchformer as bf

MIB = 2**20
OUTCOMES = ("ran", "raised in forward", "raised in backward")


class Case(NamedTuple):
    """One of the ways through the core."""

    shape: tuple[int, int, int]
    need: int
    """MiB above what the process has with which a step runs."""


CASES = {
    "tiles": Case((8, 200, 128), 10),
    "one position": Case((1024, 1, 128), 12),
    "few rows in many parts": Case((200, 20, 32), 6),
}


def step(layer: torch.nn.Module, x: torch.Tensor) -> tuple[str, list[torch.Tensor]]:
    """The outcome, and if it ran the output and all gradients."""
    torch.manual_seed(1)
    x = x.detach().requires_grad_()
    y = None
    try:
        y = layer(x)
        grads = torch.autograd.grad(y, (x, *layer.parameters()), torch.ones_like(y))
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):
            raise
        return OUTCOMES[1 if y is None else 2], []
    return OUTCOMES[0], [y.detach(), *grads]


def run_under_limit(make: Callable[..., torch.nn.Module], case: Case, threads: int, mib: float) -> int:
    """The index of the outcome, in a process of its own whose threads and pool have run."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    channels = case.shape[2]
    layer, x = make(channels, 4, channels, 0.5), torch.randn(case.shape)
    _, expected = step(layer, x)
    bf.ops.empty_cache()
    step(layer, x[: len(x) // 4 + 1])
    ctypes.CDLL(None).malloc_trim(0)
    limit = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + int(mib * MIB)
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    try:
        outcome, _ = step(layer, x)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    again, actual = step(layer, x)
    assert again == "ran"
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
    return OUTCOMES.index(outcome)


def outcome_of(make: Callable[..., torch.nn.Module], case: Case, threads: int, mib: float) -> str:
    """What became of a process: a fork of this one, which has started no threads."""
    child = os.fork()
    if child == 0:
        code = 100
        try:
            code = run_under_limit(make, case, threads, mib)
        except BaseException as error:  # a fork must not go on as its parent
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(code)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return OUTCOMES[status] if 0 <= status < len(OUTCOMES) else f"died ({status})"


def sweep(cases: list[str], threads: list[int], limits: int) -> Iterator[tuple[str, int, float, str, str]]:
    """Case, threads, MiB, and the outcomes of our layer and of torch's."""
    torch.set_num_threads(1)
    step(bf.TransformerEncoderLayer(8, 4, 8), torch.randn(2, 3, 8))  # what is imported at the first call
    for name in cases:
        for count in threads:
            for number in range(limits):
                mib = CASES[name].need * number / (limits - 1)
                ours = outcome_of(bf.TransformerEncoderLayer, CASES[name], count, mib)
                theirs = "not tried"
                if ours not in OUTCOMES:
                    theirs = outcome_of(torch.nn.TransformerEncoderLayer, CASES[name], count, mib)
                yield name, count, mib, ours, theirs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--limits", type=int, default=32)
    asked = parser.parse_args()
    findings = 0
    for name, threads, mib, ours, theirs in sweep(asked.cases, asked.threads, asked.limits):
        findings += ours not in OUTCOMES and theirs in OUTCOMES
        sys.stdout.write(f"{name}, {threads} threads, {mib:5.1f} MiB: ours {ours}, torch's {theirs}\n")
        sys.stdout.flush()
    sys.stdout.write(f"{findings} findings\n")
    sys.exit(findings > 0)


if __name__ == "__main__":
    main()
