"""`batchformer::encoder_layer` and its backward: schema, kernel, fake, autograd."""

from typing import Any

import torch
from torch import Tensor

from batchformer._extension import core
from batchformer.ops.arguments import (
    CONFIG,
    PARAMETER_COUNT,
    PARAMETERS,
    SAVED,
    SAVED_COUNT,
    Config,
    Parameters,
)
from batchformer.ops.arguments import parameters_and_config as unpack

library = torch.library.Library("batchformer", "DEF")

_TAGS = (torch.Tag.pt2_compliant_tag,)
_LARGEST_SEED = 2**63 - 1


def encoder_layer(x: Tensor, parameters: Parameters, config: Config, *, recompute: bool = False) -> Tensor:
    """Output of a transformer encoder layer that attends over N, in the shape and dtype of x, contiguous.

    Args:
        x (Tensor[N, L, C]): or Tensor[L, N, C] with config.batch_first.
        parameters: of x's dtype and device.
        config: the probabilities of dropout are those of this call: 0 for evaluation.
        recompute: keep x alone for the backward, which then runs the forward again.

    Raises:
        TypeError: x is not of a floating point dtype.
        ValueError: shapes, dtypes or devices that do not fit together, or an empty x.

    Source: Vaswani et al., "Attention is all you need" (2017); pre-norm: Xiong et al. (2020).
    """
    seed = None
    if any(p > 0 for p in config.dropout):
        seed = torch.randint(_LARGEST_SEED, (), dtype=torch.int64, device=x.device)
    differentiable = (x, *(parameter for parameter in parameters if parameter is not None))
    save = (
        not recompute and torch.is_grad_enabled() and any(tensor.requires_grad for tensor in differentiable)
    )
    y: Tensor = torch.ops.batchformer.encoder_layer.default(x, *parameters, seed, *config, save)[0]
    return y


def path_counts() -> dict[str, int]:
    """How often each path has run a forward or a backward in this process: {"cpu": calls, "aten": calls}."""
    return dict(core.path_counts())


def empty_cache() -> None:
    """None; gives the memory back to the system that the "cpu" path has kept for its next calls.

    That is scratch and what the forward saves, freed and not used again yet: at most as much as was in use
    at once in the last few hundred calls, and at most 1024 MiB, or as many as the environment variable
    BATCHFORMER_POOL_MB named when the path first ran (0: nothing is kept). Outputs and gradients are in
    memory of torch's.

    >>> batchformer.ops.empty_cache()
    """
    core.empty_cache()


def instruction_set() -> str:
    """Which instructions the "cpu" path runs: "avx512", "avx2" or "baseline".

    The best of the processor, or the lower one that the environment variable BATCHFORMER_ISA named when the
    path first ran.
    """
    return core.instruction_set()


library.define(
    f"encoder_layer(Tensor x, {PARAMETERS}, Tensor? seed, {CONFIG}, bool save) -> (Tensor y, {SAVED})",
    tags=_TAGS,
)


def _forward(x: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    parameters, seed, config = unpack(arguments)
    outputs = core.encoder_layer_forward(x, parameters, seed, config, arguments[-1])
    return *outputs, *(x.new_empty(0) for _ in range(1 + SAVED_COUNT - len(outputs)))


def _forward_fake(x: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    parameters, _, config = unpack(arguments)
    y = x.new_empty(x.shape)
    if not arguments[-1]:
        return y, *(x.new_empty(0) for _ in range(SAVED_COUNT))
    first, second, channels = x.shape
    samples, positions = (second, first) if config.batch_first else (first, second)
    linear = parameters.linear1_weight
    feedforward = linear.shape[0]
    if _is_fused(x, parameters):
        tokens = (positions, samples)
        tiled = positions > 1 and samples <= 128 and samples * positions >= 512  # Dims::tiled of the core
        return (
            y,
            x.new_empty(*tokens, 3 * channels),
            x.new_empty(*tokens, config.nhead),
            x.new_empty(0 if tiled else (*tokens, channels)),
            x.new_empty(*tokens, channels),
            x.new_empty(*tokens, feedforward),
            x.new_empty(0 if config.norm_first else (*tokens, channels)),
            *(x.new_empty(tokens) for _ in range(4)),
        )
    sums = torch.float64 if x.dtype == torch.float64 else torch.float32
    statistics = [x.new_empty(first, second, dtype=sums) for _ in range(4)]
    return (
        y,
        linear.new_empty(first, second, 3 * channels),
        x.new_empty(positions, config.nhead, samples, dtype=sums),
        linear.new_empty(first, second, channels),
        x.new_empty(x.shape),
        linear.new_empty(first, second, feedforward),
        x.new_empty(0 if config.norm_first else x.shape),
        *statistics,
    )


def _is_fused(x: Tensor, parameters: Parameters) -> bool:
    """Whether the core's fused path runs: `path::choose` there, which knows no fake tensors."""
    fused = x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)
    return fused and parameters.in_proj_weight.dtype == x.dtype


library.impl("encoder_layer", _forward, "CompositeExplicitAutograd")
torch.library.register_fake("batchformer::encoder_layer", _forward_fake, lib=library)


library.define(
    "encoder_layer_backward("
    f"Tensor grad_y, Tensor x, {PARAMETERS}, Tensor? seed, {CONFIG}, {SAVED}) -> Tensor[]",
    tags=_TAGS,
)


def _backward(grad_y: Tensor, x: Tensor, *arguments: Any) -> list[Tensor]:
    parameters, seed, config = unpack(arguments)
    saved = arguments[-SAVED_COUNT:]
    return core.encoder_layer_backward(grad_y, x, parameters, seed, saved, config)


def _backward_fake(_grad_y: Tensor, x: Tensor, *arguments: Any) -> list[Tensor]:
    parameters, _, _ = unpack(arguments)
    present = (parameter for parameter in parameters if parameter is not None)
    return [x.new_empty(x.shape), *(parameter.new_empty(parameter.shape) for parameter in present)]


library.impl("encoder_layer_backward", _backward, "CompositeExplicitAutograd")
torch.library.register_fake("batchformer::encoder_layer_backward", _backward_fake, lib=library)


class _EncoderLayer(torch.autograd.Function):
    """The op with its derivative. A forward that saved nothing is run again by the backward.

    `torch.library.register_autograd` would make the same, but reads the schema's 24 arguments one by one at
    every call: 90 µs, more than a small layer takes.
    """

    @staticmethod
    def forward(ctx: Any, keyset: torch._C.DispatchKeySet, x: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
        outputs = _below_autograd(keyset, x, *arguments)
        parameters, seed, config = unpack(arguments)
        ctx.config = config
        ctx.set_materialize_grads(False)  # else a zero tensor is filled for every saved output
        saved = outputs[1:] if arguments[-1] else ()
        ctx.mark_non_differentiable(*outputs[1:])
        ctx.save_for_backward(x, *parameters, seed, *saved)
        return outputs

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        x, *tensors = ctx.saved_tensors
        parameters, seed = tensors[:PARAMETER_COUNT], tensors[PARAMETER_COUNT]
        saved, config = tensors[PARAMETER_COUNT + 1 :], ctx.config
        not_tensors = (None,) * (1 + len(config) + 1)  # seed, config, save
        if grad_y is None:
            return None, None, *(None for _ in parameters), *not_tensors
        if not saved:
            saved = torch.ops.batchformer.encoder_layer.default(x, *parameters, seed, *config, True)[1:]
        grads = iter(
            torch.ops.batchformer.encoder_layer_backward.default(
                grad_y, x, *parameters, seed, *config, *saved
            )
        )
        of_x = next(grads)
        of_parameters = (None if parameter is None else next(grads) for parameter in parameters)
        return None, of_x, *of_parameters, *not_tensors


def _below_autograd(keyset: torch._C.DispatchKeySet, *arguments: Any) -> tuple[Tensor, ...]:
    with torch._C._AutoDispatchBelowAutograd():
        outputs: tuple[Tensor, ...] = torch.ops.batchformer.encoder_layer.default.redispatch(
            keyset & torch._C._after_autograd_keyset, *arguments
        )
    return outputs


def _with_autograd(keyset: torch._C.DispatchKeySet, *arguments: Any) -> tuple[Tensor, ...]:
    if torch.is_grad_enabled() and torch._C._any_requires_grad(*arguments):
        outputs: tuple[Tensor, ...] = _EncoderLayer.apply(keyset, *arguments)  # type: ignore[no-untyped-call]
        return outputs
    return _below_autograd(keyset, *arguments)


def _no_second_derivative(*_: Any) -> None:
    raise RuntimeError(
        "batchformer::encoder_layer: a second derivative is not supported. For a gradient penalty use "
        "torch.nn.TransformerEncoderLayer, whose state_dict is the same."
    )


library.impl("encoder_layer", _with_autograd, "Autograd", with_keyset=True)
torch.library.register_autograd("batchformer::encoder_layer_backward", _no_second_derivative, lib=library)
