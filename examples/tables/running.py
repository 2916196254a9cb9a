"""Runs of a table, several at a time in processes of one thread each, with a progress bar."""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
import warnings
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from threadpoolctl import threadpool_limits
from torch.nn.attention import SDPBackend, sdpa_kernel

from examples.tables.lifetime import end_after
from examples.tables.optimization import DivergenceError
from examples.tables.results import Result, Results
from examples.tables.table import CPU, Job, Outcome, Table


def run_all(
    table: Table, jobs: Sequence[Job], results: Results, workers: int, console: Console
) -> list[Result]:
    """The results of all jobs, in their order: those on disk, and the rest computed.

    A run has one thread, as on batches this small a second one gains little, and as the sums of one thread
    are the same however many runs go on at once.
    """
    found = {job: results.load(job) for job in jobs}
    missing = [job for job, result in found.items() if result is None]
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with (
        Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress,
        contextlib.closing(_computed(table, missing, workers)) as computed,  # also if interrupted between two
    ):
        bar = progress.add_task(table.name, total=len(jobs), completed=len(jobs) - len(missing))
        for job, outcome, seconds in computed:
            found[job] = results.save(job, outcome, seconds)
            progress.advance(bar)
            if not console.is_terminal:  # no progress bar in a log
                done = sum(result is not None for result in found.values())
                console.print(
                    f"{done} of {len(jobs)}: {describe(table, job)}, {seconds:.0f} s",
                    soft_wrap=True,
                    markup=False,
                )
    return [result for result in found.values() if result is not None]


def describe(table: Table, job: Job) -> str:
    """A run in words."""
    words = [table.name, job.system, job.arm, f"seed {job.seed}"]
    words += [f"{name} {value}" for name, value in job.changes] + ["twice the steps"] * job.lengthened
    return ", ".join(words)


def _computed(
    table: Table, jobs: Sequence[Job], workers: int
) -> Generator[tuple[Job, Outcome, float], None, None]:
    """Jobs with their outcome and their seconds, as they end."""
    if workers == 1 or len(jobs) < 2:
        threads = torch.get_num_threads()
        try:
            _one_thread()
            for job in jobs:
                yield job, *_train(table, job)
        finally:
            torch.set_num_threads(threads)
        return
    # Not forked: a process that has run torch's threads cannot be.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(jobs)), context, _begin) as pool:
        with _without_interruption():
            waiting = {pool.submit(_train, table, job): job for job in jobs}
        try:
            for done in as_completed(waiting):
                yield waiting[done], *done.result()
        except BaseException:  # above all an interruption: do not wait minutes for runs that have begun
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in multiprocessing.active_children():
                worker.terminate()
            raise


@contextlib.contextmanager
def _without_interruption() -> Iterator[None]:
    """Within, Ctrl-C does nothing, and for processes that begin within it never does.

    The parent process ends its workers; without this each of them would print a traceback.
    """
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set this
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _begin() -> None:
    """Initialise a worker."""
    program = multiprocessing.parent_process()
    assert program is not None
    end_after(program.join)
    _one_thread()


def _one_thread() -> None:
    torch.set_num_threads(1)
    threadpool_limits(1)  # for NumPy's products, and scikit-learn's


@contextlib.contextmanager
def _reproducible(device: str) -> Iterator[None]:
    """Within, a GPU sums in the same order in each run, where torch has a way to."""
    if device == CPU:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when the first product is computed
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        # While torch only warns, its fused attention takes the algorithm that is not deterministic.
        with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*does not have a deterministic implementation")
            warnings.filterwarnings(
                "ignore", "Attempting to run cuBLAS, but there was no current CUDA context"
            )
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def _train(table: Table, job: Job) -> tuple[Outcome, float]:
    started = time.perf_counter()
    try:
        with _reproducible(job.device):
            outcome = table.train(job)
    except DivergenceError as error:  # a result, too: other runs go on, and this one would diverge again
        outcome = Outcome(dict.fromkeys(table.columns), diverged=str(error))
    return outcome, time.perf_counter() - started
