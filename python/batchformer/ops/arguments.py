"""The arguments of the encoder layer's ops, in the order of their schema."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from batchformer._extension import core


class Parameters(NamedTuple):
    """The layer's tensors, named like their keys in the state_dict; a bias that is not there is None."""

    in_proj_weight: Tensor  # [3C, C]; with keys_values [C, C], of the queries alone
    in_proj_bias: Tensor | None  # [3C]; with keys_values [C]
    out_proj_weight: Tensor  # [C, C]
    out_proj_bias: Tensor | None  # [C]
    linear1_weight: Tensor  # [F, C]
    linear1_bias: Tensor | None  # [F]
    linear2_weight: Tensor  # [C, F]
    linear2_bias: Tensor | None  # [C]
    norm1_weight: Tensor  # [C]
    norm1_bias: Tensor | None  # [C]
    norm2_weight: Tensor  # [C]
    norm2_bias: Tensor | None  # [C]


class Config(NamedTuple):
    """The options of the layer: all that is not a tensor."""

    nhead: int
    """Heads of the attention, a divisor of C."""
    dropout: Sequence[float]
    """Dropout probabilities of the attention, the hidden layer, the first and the second residual."""
    activation: str
    """"relu" or "gelu"."""
    norm_first: bool
    """Whether each norm comes before its block instead of after it."""
    batch_first: bool
    """Whether x is [L, N, C] instead of [N, L, C]. The layer attends over N."""
    layer_norm_eps: Sequence[float]
    """eps of norm1 and of norm2."""


# The classes are for readers and type checkers; the core's table is authoritative.
for _fields, _facts in ((Parameters._fields, core.parameter_facts()), (Config._fields, core.config_facts())):
    if list(_fields) != (_names := [fact[0] for fact in _facts]):
        raise ImportError(
            f"batchformer._core: expected the fields {list(_fields)}, got {_names}; build it again: make "
            "build"
        )

PARAMETER_COUNT = len(Parameters._fields)
CONFIG_COUNT = len(Config._fields)
NEEDS_COUNT = 1 + PARAMETER_COUNT + 1
"""Flags of which gradients are needed: of x, then of each parameter, then of keys and values."""


class Arguments(NamedTuple):
    """What both ops take after their leading tensors."""

    parameters: Parameters
    keys_values: Tensor | None
    """`[K, L, 2C]`, or `[L, K, 2C]` with batch_first: what the N samples attend to instead of each other."""
    key_count: Tensor | None
    """A 0-d int64 tensor on the CPU: how many of the K count, from the first on; all if None."""
    seed: Tensor | None
    config: Config
    rest: tuple[Any, ...]
    """The forward: needs; the backward: saved, needs."""


def unpack(arguments: Sequence[Any]) -> Arguments:
    """The arguments by name, from (*parameters, keys_values, key_count, seed, *config, ..)."""
    parameters, rest = arguments[:PARAMETER_COUNT], arguments[PARAMETER_COUNT:]
    keys_values, key_count, seed, *rest = rest
    config = Config(*rest[:CONFIG_COUNT])
    return Arguments(
        Parameters(*parameters), keys_values, key_count, seed, config, tuple(rest[CONFIG_COUNT:])
    )
