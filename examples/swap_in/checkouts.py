"""Research code from before torch 2, on a CPU and without what only its data sets and logs need."""

import contextlib
import functools
import importlib.machinery
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from unittest.mock import MagicMock

import torch
import torchvision


def use(folder: Path, *stand_ins: str) -> None:
    """Make the modules of a checkout importable; `stand_ins` are packages that it imports without need."""
    sys.path.insert(0, str(folder.resolve()))
    for name in stand_ins:
        if name not in sys.modules:
            stand_in = MagicMock(name=name)
            stand_in.__spec__ = importlib.machinery.ModuleSpec(name, None)
            sys.modules[name] = stand_in


def module(name: str, **contents: object) -> None:
    """A module of that name with these contents, for an import that no longer exists."""
    sys.modules[name] = ModuleType(name)
    vars(sys.modules[name]).update(contents)


def on_a_cpu() -> None:
    """Without a GPU, .cuda() leaves tensors and modules where they are."""
    if not torch.cuda.is_available():
        torch.Tensor.cuda = lambda self, *args, **kwargs: self
        torch.nn.Module.cuda = lambda self, *args, **kwargs: self


def as_one_process() -> None:
    """A process group of one, for code that gathers from all GPUs."""
    if not torch.distributed.is_initialized():
        store = tempfile.NamedTemporaryFile()  # noqa: SIM115 - for the life of the process
        as_one_process.store = store
        torch.distributed.init_process_group("gloo", init_method=f"file://{store.name}", rank=0, world_size=1)


@contextlib.contextmanager
def an_old_torchvision(version: str = "0.9") -> Iterator[None]:
    """For imports that compare the release of torchvision as a float, where 0.26 is less than 0.7."""
    actual, torchvision.__version__ = torchvision.__version__, version
    yield
    torchvision.__version__ = actual


def small_resnet(name: str = "resnet18") -> functools.partial:
    """A constructor of a torchvision ResNet, as MoCo and PaCo take it."""
    return functools.partial(getattr(torchvision.models, name), weights=None)
