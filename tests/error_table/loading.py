"""Rows of the import, each run on the file that raises; and sentences that no call of the tests reaches."""

import os
import runpy
import sys
from unittest import mock

import torch

import batchformer
from batchformer import _extension
from batchformer.ops import arguments
from error_table.row import Mistake, Row, Unreached

BUILT_FOR, INSTALL_AGAIN = _extension.BUILT_FOR, _extension._install_again()

NO_TORCH = Mistake(
    "The package was installed without its dependencies, or into another environment than torch.",
    f"Install both into one environment: `pip install 'torch=={BUILT_FOR}.*' batchformer`.",
)
OTHER_TORCH = Mistake(
    "Another package moved torch to another release after batchformer was installed.",
    f"The command builds batchformer for it; or go back to `pip install 'torch=={BUILT_FOR}.*'`, pinned.",
)
NO_EXTENSION = Mistake(
    "A checkout was put on the path without being built, or the wheel is for another platform.",
    "`make build` in a checkout, else `pip install --force-reinstall batchformer`.",
)
OTHER_EXTENSION = Mistake(
    "A checkout was updated and not built again: the extension is older than the Python files.",
    "`make build`.",
)
NO_SUCH_ISA = Mistake(
    "The environment variable that limits the instruction set has another value than the three.",
    "`BATCHFORMER_ISA=avx2 python train.py`, or leave it unset for the best of the processor.",
)
NO_SUCH_CHOICE = Mistake(
    "The environment variable that says what runs on CUDA has another value than the three.",
    "`BATCHFORMER_CUDA=torch python train.py`, or leave it unset for kernels where they were verified.",
)
NO_SUCH_POOL = Mistake(
    "The environment variable that bounds the memory kept between steps is not a number of MiB.",
    "`BATCHFORMER_POOL_MB=512 python train.py`, 0 to keep nothing, or leave it unset.",
)


def without_torch():
    with mock.patch.dict(sys.modules, torch=None):
        _extension._check_torch()


def beside_another_torch():
    with mock.patch.object(torch, "__version__", "2.8.0+cu128"):
        _extension._check_torch()


def without_the_extension():
    with mock.patch.dict(sys.modules, {"batchformer._core": None}), mock.patch.object(batchformer, "_core"):
        del batchformer._core
        runpy.run_path(_extension.__file__)


def with_an_older_extension():
    with mock.patch.object(_extension.core, "config_facts", return_value=[("nhead", "int")]):
        runpy.run_path(arguments.__file__)


def with_isa(name):
    with mock.patch.dict(os.environ, BATCHFORMER_ISA=name):
        _extension._check_choices()


def with_cuda(name):
    with mock.patch.dict(os.environ, BATCHFORMER_CUDA=name):
        _extension._check_choices()


def with_pool(asked):
    with mock.patch.dict(os.environ, BATCHFORMER_POOL_MB=asked):
        _extension._check_pool()


IMPORT = (
    Row(
        without_torch,
        ImportError,
        f"batchformer is built for torch {BUILT_FOR}, but no torch could be imported (…). Install it: pip "
        f"install 'torch=={BUILT_FOR}.*'",
        *NO_TORCH,
    ),
    Row(
        beside_another_torch,
        ImportError,
        f"batchformer is built for torch {BUILT_FOR}, but this is torch 2.8.0+cu128, and the C++ interface "
        f"changes with every release. Build it for this one: {INSTALL_AGAIN}",
        *OTHER_TORCH,
    ),
    Row(
        without_the_extension,
        ImportError,
        f"the extension module of batchformer, built for torch {BUILT_FOR}, could not be loaded (…). Build "
        f"it again: {INSTALL_AGAIN}",
        *NO_EXTENSION,
    ),
    Row(
        with_an_older_extension,
        ImportError,
        f"batchformer._core: expected the fields {list(arguments.Config._fields)}, got ['nhead']; build it "
        "again: make build",
        *OTHER_EXTENSION,
    ),
    Row(
        lambda: with_isa("avx3"),
        ImportError,
        "BATCHFORMER_ISA: expected 'baseline' or 'avx2' or 'avx512', got 'avx3'",
        *NO_SUCH_ISA,
    ),
    Row(
        lambda: with_cuda("on"),
        ImportError,
        "BATCHFORMER_CUDA: expected 'auto' or 'torch' or 'kernels', got 'on'",
        *NO_SUCH_CHOICE,
    ),
    Row(
        lambda: with_pool("1GB"),
        ImportError,
        "BATCHFORMER_POOL_MB: expected a whole number of MiB, 0 or more, got '1GB'",
        *NO_SUCH_POOL,
    ),
)

UNREACHED = (
    Unreached(
        "tensors of a CUDA device, and an environment variable that is read once in a process",
        RuntimeError,
        "BATCHFORMER_CUDA: expected a call that the kernels serve, as it is 'kernels', got one that they do "
        "not: …",
        "`BATCHFORMER_CUDA=kernels` asks for kernels where there are none, say in float64.",
        "`BATCHFORMER_CUDA=auto`, the default, runs torch's layer where the kernels do not serve.",
    ),
    Unreached(
        "a fault of the package, of which none is known",
        RuntimeError,
        "a fault of batchformer itself: please report it with the call that led here (…)",
        "An assertion of the core failed.",
        "Report it, and meanwhile use `torch.nn.TransformerEncoderLayer`, whose state_dict is the same.",
    ),
    Unreached(
        "memory that cannot be had; tests/test_memory.py brings it about in processes of their own",
        RuntimeError,
        "DefaultCPUAllocator: can't allocate memory: you tried to allocate … bytes. Error code 12 (Cannot "
        "allocate memory)",
        "What the layer saves for its backward, or works on, is more than the machine has left.",
        "Lower the batch size, or recompute: `TransformerEncoderLayer(512, 8, recompute=True)`.",
    ),
    Unreached(
        "torch refuses memory that it is handed, for lack of the few bytes around it",
        RuntimeError,
        "torch_from_blob failed",
        "There is no memory left, not even for a tensor around the output.",
        "Lower the batch size, or recompute: `TransformerEncoderLayer(512, 8, recompute=True)`.",
    ),
)
