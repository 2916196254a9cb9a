"""The schemas of the ops and the shapes of their outputs, made from the core's table."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from batchformer._extension import core
from batchformer.ops.arguments import NEEDS_COUNT, Config, Parameters

_PARAMETERS = ", ".join(
    f"Tensor{'?' if optional else ''} {name}" for name, _, optional in core.parameter_facts()
)
_CONFIG = ", ".join(f"{kind} {name}" for name, kind in core.config_facts())
_NEEDS = f"int[{NEEDS_COUNT}] needs"  # flags; torch's tracer takes no lists of bools
_SAVED = core.saved_facts()
_ARGUMENTS = f"{_PARAMETERS}, Tensor? keys_values, Tensor? key_count, Tensor? seed, {_CONFIG}"

FORWARD_SCHEMA = f"encoder_layer(Tensor x, {_ARGUMENTS}, {_NEEDS}) -> (Tensor y, Tensor[] saved)"
BACKWARD_SCHEMA = (
    f"encoder_layer_backward(Tensor grad_y, Tensor x, {_ARGUMENTS}, Tensor[] saved, {_NEEDS}) -> Tensor[]"
)


def empty_saved(x: Tensor, parameters: Parameters, config: Config, needs: Sequence[bool]) -> list[Tensor]:
    """What a forward with these needs saves for the backward: shapes and dtypes, without values."""
    first, second, channels = x.shape
    samples, positions = (second, first) if config.batch_first else (first, second)
    sizes = {
        "N": samples,
        "L": positions,
        "C": channels,
        "F": parameters.linear1_weight.shape[0],
        "H": config.nhead,
        "P": parameters.in_proj_weight.shape[0],
    }
    dtypes = {
        "x": x.dtype,
        "linears": parameters.in_proj_weight.dtype,
        "sums": torch.float64 if x.dtype == torch.float64 else torch.float32,
    }
    # Only L = 1 changes what is kept; any other dependence on sizes would specialise compiled graphs.
    kept = core.saved_kept(config, needs, 1 if positions == 1 else 2)
    whose = core.saved_dtypes(x.device.type, bool(sizes["F"] > 0))
    return [
        x.new_empty([times * sizes[letter] for times, letter in shape], dtype=dtypes[dtype])
        for (_, shape), dtype, is_kept in zip(_SAVED, whose, kept, strict=True)
        if is_kept
    ]


def check_devices(x: Tensor, parameters: Parameters, **others: Tensor | None) -> None:
    """Raise ValueError unless all tensors are on the device of x; the core checks real ones the same way."""
    tensors = parameters._asdict() | others
    for name, tensor in tensors.items():
        if tensor is not None and tensor.device != x.device:
            raise ValueError(f"{name}: expected device {x.device} as x has, got {tensor.device}")


def check_dense(tensors: Mapping[str, Tensor | None]) -> None:
    """Raise TypeError unless all tensors have strides: the core reads their memory."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.layout is not torch.strided:
            raise TypeError(f"{name}: expected a dense tensor (torch.strided), got layout {tensor.layout}")


def needed(tensors: Sequence[Tensor | None], needs: Sequence[bool]) -> Iterator[Tensor]:
    """Those of (x, *parameters, keys_values) whose gradient is needed."""
    return (tensor for tensor, need in zip(tensors, needs, strict=True) if need and tensor is not None)
