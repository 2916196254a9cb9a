"""Loads the extension module, which links torch's libraries; an error says what to do."""

import json
import os
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any


def _built_for() -> str:
    """The minor release of torch that the extension was compiled against; the build writes the file."""
    file = Path(__file__).with_name("built_for.txt")
    return file.read_text().strip() if file.exists() else "(none yet)"


def _install_again() -> str:
    """The command that builds the package for the installed torch."""
    try:
        origin = json.loads(distribution("batchformer").read_text("direct_url.json") or "{}")
    except PackageNotFoundError:  # used from a checkout
        return "make build"
    # pip would take the wheel that it built for the other torch from its cache.
    return f"pip install --force-reinstall --no-deps --no-cache-dir {_where_from(origin)}"


def _where_from(origin: dict[str, Any]) -> str:
    """What pip was told to install, from what it wrote down (PEP 610)."""
    if "url" not in origin or "archive_info" in origin:
        return "batchformer"
    if "vcs_info" in origin:
        version = origin["vcs_info"].get("requested_revision") or origin["vcs_info"]["commit_id"]
        return f"{origin['vcs_info']['vcs']}+{origin['url']}@{version}"
    editable = origin.get("dir_info", {}).get("editable", False)
    return f"--editable {origin['url']}" if editable else str(origin["url"])


BUILT_FOR = _built_for()


def _check_torch() -> None:
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            f"batchformer is built for torch {BUILT_FOR}, but no torch could be imported ({error}). "
            f"Install it: pip install 'torch=={BUILT_FOR}.*'"
        ) from error
    if torch.__version__.split(".")[:2] != BUILT_FOR.split("."):
        raise ImportError(
            f"batchformer is built for torch {BUILT_FOR}, but this is torch {torch.__version__}, and the C++ "
            f"interface changes with every release. Build it for this one: {_install_again()}"
        )


def _check_choices() -> None:
    for variable, legal in {
        "BATCHFORMER_ISA": ("baseline", "avx2", "avx512"),
        "BATCHFORMER_CUDA": ("auto", "torch", "kernels"),
    }.items():
        asked = os.environ.get(variable, legal[0])
        if asked not in legal:
            names = " or ".join(map(repr, legal))
            raise ImportError(f"{variable}: expected {names}, got {asked!r}")


def _check_pool() -> None:
    asked = os.environ.get("BATCHFORMER_POOL_MB", "0")
    if not (asked.isascii() and asked.isdecimal()):
        raise ImportError(f"BATCHFORMER_POOL_MB: expected a whole number of MiB, 0 or more, got {asked!r}")


_check_choices()
_check_pool()
_check_torch()  # imports torch, which brings the libraries that the extension needs

try:
    from batchformer import _core as core
except ImportError as error:
    raise ImportError(
        f"the extension module of batchformer, built for torch {BUILT_FOR}, could not be loaded ({error}). "
        f"Build it again: {_install_again()}"
    ) from error

__all__ = ["BUILT_FOR", "core"]
