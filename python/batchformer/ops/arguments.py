"""The arguments of the encoder layer's ops, in the order of their schema."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor


class Parameters(NamedTuple):
    """The layer's tensors, named like their keys in the state_dict; a bias that is not there is None."""

    in_proj_weight: Tensor  # [3C, C]
    in_proj_bias: Tensor | None  # [3C]
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
    """What of the layer is not a tensor."""

    nhead: int
    dropout: Sequence[float]
    """The probability of dropping: attention probabilities, hidden layer, first residual, second residual."""
    activation: str
    """"relu" or "gelu"."""
    norm_first: bool
    batch_first: bool
    """False: x is [N, L, C]; True: [L, N, C]. The layer attends over N."""
    layer_norm_eps: Sequence[float]
    """Of norm1 and of norm2."""


PARAMETERS = """
    Tensor in_proj_weight, Tensor? in_proj_bias, Tensor out_proj_weight, Tensor? out_proj_bias,
    Tensor linear1_weight, Tensor? linear1_bias, Tensor linear2_weight, Tensor? linear2_bias,
    Tensor norm1_weight, Tensor? norm1_bias, Tensor norm2_weight, Tensor? norm2_bias
"""
CONFIG = """
    int nhead, float[4] dropout, str activation, bool norm_first, bool batch_first, float[2] layer_norm_eps
"""
SAVED = """
    Tensor qkv, Tensor logsumexp, Tensor attended, Tensor residual1, Tensor hidden, Tensor residual2,
    Tensor mean1, Tensor rstd1, Tensor mean2, Tensor rstd2
"""

PARAMETER_COUNT = len(Parameters._fields)
CONFIG_COUNT = len(Config._fields)
SAVED_COUNT = SAVED.count("Tensor")


def parameters_and_config(arguments: Sequence[Any]) -> tuple[Parameters, Tensor | None, Config]:
    """The parameters, the seed and the config, from (*parameters, seed, *config, ..)."""
    parameters = Parameters(*arguments[:PARAMETER_COUNT])
    seed = arguments[PARAMETER_COUNT]
    config = Config(*arguments[PARAMETER_COUNT + 1 :][:CONFIG_COUNT])
    return parameters, seed, config
