"""The extension module, loaded beside the torch that it links; a load error that explains itself."""

import os

BUILT_FOR = "2.11.0"


def _check_torch() -> None:
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            f"batchformer is built for torch {BUILT_FOR}, but no torch could be imported ({error}). "
            f"Install it: pip install torch=={BUILT_FOR}"
        ) from error
    if torch.__version__.split("+")[0] != BUILT_FOR:
        raise ImportError(
            f"batchformer is built for torch {BUILT_FOR}, but this is torch {torch.__version__}, and the C++ "
            f"interface changes with every release. Install the one it is built for: "
            f"pip install torch=={BUILT_FOR}"
        )


def _check_instruction_set() -> None:
    legal = ("baseline", "avx2", "avx512")
    asked = os.environ.get("BATCHFORMER_ISA", "avx512")
    if asked not in legal:
        names = " or ".join(map(repr, legal))
        raise ImportError(f"BATCHFORMER_ISA: expected {names}, got {asked!r}")


def _check_pool() -> None:
    asked = os.environ.get("BATCHFORMER_POOL_MB", "0")
    if not (asked.isascii() and asked.isdecimal()):
        raise ImportError(f"BATCHFORMER_POOL_MB: expected a whole number of MiB, 0 or more, got {asked!r}")


_check_instruction_set()
_check_pool()
_check_torch()  # imports torch, which brings the libraries that the extension needs

try:
    from batchformer import _core as core
except ImportError as error:
    raise ImportError(
        f"the extension module of batchformer, built for torch {BUILT_FOR}, could not be loaded ({error}). "
        f"Install the package anew, or in a checkout build it: make build"
    ) from error

__all__ = ["BUILT_FOR", "core"]
