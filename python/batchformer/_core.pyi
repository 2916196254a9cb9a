"""The Rust core. Private: use `batchformer.ops` and the modules."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from batchformer.ops.arguments import Config, Parameters

__all__ = [
    "empty_cache",
    "encoder_layer_backward",
    "encoder_layer_forward",
    "instruction_set",
    "path_counts",
    "relations",
]

def encoder_layer_forward(
    x: Tensor, parameters: Parameters, seed: Tensor | None, config: Config, save: bool
) -> list[Tensor]: ...
def encoder_layer_backward(
    grad_y: Tensor,
    x: Tensor,
    parameters: Parameters,
    seed: Tensor | None,
    saved: tuple[Tensor, ...],
    config: Config,
) -> list[Tensor]: ...
def empty_cache() -> None: ...
def path_counts() -> list[tuple[str, int]]: ...
def instruction_set() -> str: ...
def relations(
    x: Tensor, in_proj_weight: Tensor, in_proj_bias: Tensor | None, nhead: int
) -> NDArray[np.floating[Any]]: ...
