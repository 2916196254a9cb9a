"""The Rust core. Private: use `batchformer.ops` and the modules."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from batchformer.ops.arguments import Config
from batchformer.ops.on_cuda import Signature

__all__ = [
    "__version__",
    "aten_alone",
    "config_facts",
    "cuda_decisions",
    "cuda_hash",
    "cuda_reason",
    "cuda_self_check",
    "cuda_sources",
    "cuda_status",
    "cuda_switch",
    "empty_cache",
    "emulate_cuda",
    "encoder_layer_backward",
    "encoder_layer_forward",
    "fma_flops",
    "instruction_set",
    "launch_cuda",
    "op_devices",
    "parameter_facts",
    "passed",
    "path_counts",
    "relations",
    "saved_dtypes",
    "saved_facts",
    "saved_kept",
    "torch_is_faster",
]

__version__: str

def encoder_layer_forward(
    x: Tensor,
    parameters: Sequence[Tensor | None],
    keys_values: Tensor | None,
    key_count: Tensor | None,
    seed: Tensor | None,
    config: Config,
    needs: Sequence[bool],
    tf32: bool,
) -> tuple[Tensor, list[Tensor]]: ...
def encoder_layer_backward(
    grad_y: Tensor,
    x: Tensor,
    parameters: Sequence[Tensor | None],
    keys_values: Tensor | None,
    key_count: Tensor | None,
    seed: Tensor | None,
    config: Config,
    saved: Sequence[Tensor],
    needs: Sequence[bool],
    tf32: bool,
) -> list[Tensor]: ...
def empty_cache() -> None: ...
def cuda_reason(signature: Signature, may_try: bool) -> tuple[str, bool] | None: ...
def cuda_self_check(signature: Signature) -> float: ...
def cuda_decisions() -> list[tuple[tuple[Any, ...], str | None]]: ...
def cuda_switch() -> str: ...
def cuda_sources(device: int) -> list[tuple[str, str, str, str]]: ...
def cuda_status() -> dict[str, str | None]: ...
def cuda_hash(source: str, defines: Sequence[tuple[str, str]]) -> str: ...
def emulate_cuda(callback: Callable[..., object] | None) -> None: ...
def launch_cuda(
    device: int | None,
    kernel: tuple[str, str, Sequence[tuple[str, str]], Sequence[int], int, int],
    arguments: Sequence[tuple[str, Any]],
    times: int = 1,
) -> None: ...
def aten_alone(alone: bool) -> None: ...
def path_counts() -> list[tuple[str, int]]: ...
def instruction_set() -> str: ...
def fma_flops(rounds: int, *, double: bool) -> int: ...
def parameter_facts() -> list[tuple[str, list[tuple[int, str]], bool]]: ...
def config_facts() -> list[tuple[str, str]]: ...
def saved_facts() -> list[tuple[str, list[tuple[int, str]]]]: ...
def op_devices() -> list[str]: ...
def torch_is_faster() -> list[tuple[str, int, int]]: ...
def passed(config: Config, needs: Sequence[bool]) -> tuple[list[bool], bool]: ...
def saved_dtypes(device_type: str, has_hidden: bool) -> list[str]: ...
def saved_kept(config: Config, needs: Sequence[bool], positions: int) -> list[bool]: ...
def relations(
    x: Tensor, in_proj_weight: Tensor, in_proj_bias: Tensor | None, nhead: int
) -> NDArray[np.floating[Any]]: ...
