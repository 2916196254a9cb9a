"""Batches larger than a step's: a long tail, learned eight images at a time, with samples from elsewhere."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from examples.tables.arms import ARMS, BATCHFORMER, UNIFORM, insert, wrap
from examples.tables.letters import CLASSES, every_letter, minimise, one_of_each
from examples.tables.long_tailed.data import long_tailed_letters
from examples.tables.long_tailed.measuring import CALIBRATED, CALIBRATED_COLUMNS, calibrated_columns
from examples.tables.long_tailed.systems import balanced_softmax
from examples.tables.network import ConvNet
from examples.tables.optimization import DivergenceError, Recipe
from examples.tables.relating import related
from examples.tables.table import CPU, Job, Outcome, Table

ONE, TWO = SYSTEMS = ("one process", "two processes")
REMEMBERED = {f"{BATCHFORMER}, {size} remembered": size for size in (8, 56, 248)}
REMEMBERED[f"{UNIFORM}, 248 remembered"] = 248
GATHERED = (f"{BATCHFORMER}, gathered", f"{UNIFORM}, gathered")
PROCESSES = 2
RECIPE = Recipe(steps=9600, batch_size=8, learning_rate=0.03, weight_decay=2e-3)  # batch size of a process


def settings(job: Job) -> Mapping[str, Any]:
    """All that decides the numbers of a run."""
    chosen = asdict(RECIPE) | {"processes": 1, "most": 100, "imbalance": 100, "tested": 2}
    if job.system == TWO:
        chosen |= {"processes": PROCESSES, "steps": RECIPE.steps // PROCESSES}  # as many images
    return job.adapted(chosen, quick={"steps": 6, "most": 20, "tested": 1})


def train(job: Job) -> Outcome:
    """One run; of two processes by torchrun."""
    from examples.tables import rank_of_two  # which imports this module

    if job.system == ONE:
        return train_rank(job, rank=0)
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder, "outcome.json")
        torchrun = ["torch.distributed.run", "--standalone", f"--nproc-per-node={PROCESSES}"]
        program = ["-m", rank_of_two.__name__, json.dumps(asdict(job)), str(found)]
        reading, writing = os.pipe()  # closed when this process ends
        try:
            done = subprocess.run(
                [sys.executable, "-m", *torchrun, *program],
                check=False,
                stdin=reading,
                capture_output=True,
                text=True,
            )
        finally:
            os.close(reading)
            os.close(writing)
        gave = json.loads(found.read_text(encoding="utf-8")) if found.exists() else {}
        if gave.get("diverged"):
            raise DivergenceError(gave["diverged"])
        if done.returncode:
            raise RuntimeError(f"torchrun: expected two processes to train, got\n{done.stderr[-3000:]}")
        return Outcome(**gave)


def train_rank(job: Job, rank: int) -> Outcome:
    """The outcome of the network that this process trains, in a group of processes if there are two.

    Each step draws the next images of all processes, and this process takes its part.
    """
    chosen = settings(job)
    images, counts = long_tailed_letters(job.seed, chosen["most"], chosen["imbalance"])
    torch.manual_seed(job.seed)
    model = ConvNet(CLASSES).to(memory_format=torch.channels_last)
    options: dict[str, Any] = {"memory_bank_size": REMEMBERED[job.arm]} if job.arm in REMEMBERED else {}
    if job.arm in GATHERED:
        options["gather_distributed"] = True
    attachment = insert(model, job.arm.split(",")[0], before="classifier", **options)
    criterion = wrap(attachment, balanced_softmax((counts / counts.sum()).log()))
    torch.manual_seed(job.seed * PROCESSES + rank)  # or the processes would draw the same dropout
    network = model if chosen["processes"] == 1 else DistributedDataParallel(model)
    recipe = Recipe.of(chosen)
    whole = replace(recipe, batch_size=recipe.batch_size * chosen["processes"])

    def loss(x: Tensor, y: Tensor) -> Tensor:
        part = slice(rank * recipe.batch_size, (rank + 1) * recipe.batch_size)
        return criterion(network(x[part]), y[part])

    minimise(loss, network, images, whole, job.seed)
    metrics = calibrated_columns(model, counts, job.seed, chosen["tested"])
    shown = one_of_each(every_letter(job.seed, "relations", 1))
    return Outcome(metrics, **related(attachment, shown, job))


TABLE = Table(
    name="larger_batches",
    title="Larger batches",
    systems=SYSTEMS,
    short=SYSTEMS[:1],
    short_seeds=1,
    devices=(CPU,),  # its processes exchange samples by gloo
    columns=CALIBRATED_COLUMNS,
    primary=("All", CALIBRATED),
    arms=(*ARMS, *REMEMBERED, *GATHERED),
    without=(*((TWO, arm) for arm in REMEMBERED), *((ONE, arm) for arm in GATHERED)),
    contrasts=(
        (BATCHFORMER, UNIFORM),
        *((arm, BATCHFORMER) for arm in REMEMBERED if arm.startswith(BATCHFORMER)),
        (f"{BATCHFORMER}, 248 remembered", f"{UNIFORM}, 248 remembered"),
        (GATHERED[0], BATCHFORMER),
        GATHERED,
    ),
    settings=settings,
    train=train,
    paper="""\
None: the papers relate the samples of one process and one step.

Network, images and loss are those of Balanced Softmax in the long-tailed table, imbalance 100. Two processes
take half as many steps, so that all arms see as many images; compare arms within one system alone.
""",
    tuned="""\
Column All of the baseline in one process, on seed 100 after 9600 steps, one run each, by learning rate
and weight decay: 0.1 and 2e-3 78.5; 0.1 and 5e-3 57.8; 0.03 and 2e-3 81.6, used; 0.03 and 5e-3 79.6. Two
processes have the same settings.
""",
    grid={"learning_rate": (0.03, 0.1), "weight_decay": (2e-3, 5e-3)},
)
