"""`batchformer::encoder_layer` and its backward: kernel, fake, autograd. Their schemas are in `table`."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from batchformer._extension import core
from batchformer.ops.arguments import NEEDS_COUNT, PARAMETER_COUNT, Config, Parameters, unpack
from batchformer.ops.direct import nobody_watches, saved_as_they_are
from batchformer.ops.forward_mode import refuse_tangents
from batchformer.ops.table import (
    BACKWARD_SCHEMA,
    FORWARD_SCHEMA,
    check_dense,
    check_devices,
    empty_saved,
    needed,
)

library = torch.library.Library("batchformer", "DEF")

_TAGS = (torch.Tag.pt2_compliant_tag,)
_LARGEST_SEED = 2**63 - 1
_NOTHING = (False,) * NEEDS_COUNT

Outputs = tuple[Tensor, list[Tensor]]
"""y, and the tensors that the backward takes."""


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
    needs: Sequence[bool] = _NOTHING
    if torch.is_grad_enabled() and not recompute:
        needs = [tensor is not None and tensor.requires_grad for tensor in (x, *parameters)]
    if nobody_watches((x, *parameters)):
        return _differentiable(core.encoder_layer_forward, x, parameters, seed, config, needs)[0]
    y: Tensor = torch.ops.batchformer.encoder_layer.default(x, *parameters, seed, *config, needs)[0]
    return y


def path_counts() -> dict[str, int]:
    """How often each path has run a forward or a backward in this process: {"cpu": calls, "aten": calls}."""
    return dict(core.path_counts())


def empty_cache() -> None:
    """None; gives the memory back to the system that the "cpu" path has kept for its next calls.

    That is scratch, what the forward saves, and large gradients, freed and not used again yet: at most as
    much as was in use at once in the last few hundred calls, and at most 1024 MiB, or as many as the
    environment variable BATCHFORMER_POOL_MB named when the path first ran (0: nothing is kept). Outputs are
    in memory of torch's.

    >>> empty_cache()
    """
    core.empty_cache()


def instruction_set() -> str:
    """Which instructions the "cpu" path runs: "avx512", "avx2" or "baseline".

    The best of the processor, or the lower one that the environment variable BATCHFORMER_ISA named when the
    path first ran.
    """
    return core.instruction_set()


library.define(FORWARD_SCHEMA, tags=_TAGS)


def _forward(x: Tensor, *arguments: Any) -> Outputs:
    parameters, seed, config, (needs,) = unpack(arguments)
    check_dense({"x": x, **parameters._asdict()})
    return core.encoder_layer_forward(x, parameters, seed, config, needs)


def _forward_fake(x: Tensor, *arguments: Any) -> Outputs:
    parameters, seed, config, (needs,) = unpack(arguments)
    check_devices(x, parameters, seed)
    return x.new_empty(x.shape), empty_saved(x, parameters, config, needs)


library.impl("encoder_layer", _forward, "CompositeExplicitAutograd")
torch.library.register_fake("batchformer::encoder_layer", _forward_fake, lib=library)


library.define(BACKWARD_SCHEMA, tags=_TAGS)


def _backward(grad_y: Tensor, x: Tensor, *arguments: Any) -> list[Tensor]:
    refuse_tangents((grad_y, x, *arguments))
    parameters, seed, config, (saved, needs) = unpack(arguments)
    check_dense({"grad_y": grad_y, "x": x, **parameters._asdict()})
    return core.encoder_layer_backward(grad_y, x, parameters, seed, config, saved, needs)


def _backward_fake(grad_y: Tensor, x: Tensor, *arguments: Any) -> list[Tensor]:
    parameters, seed, _, (saved, needs) = unpack(arguments)
    check_devices(x, parameters, seed, grad_y=grad_y, **{f"saved[{i}]": each for i, each in enumerate(saved)})
    return [tensor.new_empty(tensor.shape) for tensor in needed((x, *parameters), needs)]


library.impl("encoder_layer_backward", _backward, "CompositeExplicitAutograd")
torch.library.register_fake("batchformer::encoder_layer_backward", _backward_fake, lib=library)


class _EncoderLayer(torch.autograd.Function):
    """The op with its derivative. A forward that left too little is run again by the backward.

    `torch.library.register_autograd` would make the same, but reads the schema's arguments one by one at
    every call: 90 µs, more than a small layer takes.
    """

    @staticmethod
    def forward(
        ctx: Any,
        forward: Callable[..., Outputs],
        left: list[Tensor],
        seed: Tensor | None,
        config: Config,
        needs: Sequence[bool],
        x: Tensor,
        *parameters: Tensor | None,
    ) -> Tensor:
        """`left` takes what the op leaves; as an output of this function each of it would become a node."""
        y, saved = forward(x, parameters, seed, config, needs)
        ctx.config, ctx.needs = config, needs
        ctx.plain = forward is core.encoder_layer_forward and saved_as_they_are()
        ctx.save_for_backward(x, *parameters, seed, *saved)
        left.extend(saved)
        return y

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        x, *tensors = ctx.saved_tensors
        parameters, seed = tensors[:PARAMETER_COUNT], tensors[PARAMETER_COUNT]
        saved, needs, config = tensors[PARAMETER_COUNT + 1 :], ctx.needs, ctx.config
        wanted = ctx.needs_input_grad[-NEEDS_COUNT:]
        # A second derivative is refused by the op.
        direct = ctx.plain and not torch.is_grad_enabled() and nobody_watches((grad_y,))
        forward, backward = _CORE if direct else _OPS
        if any(want and not need for want, need in zip(wanted, needs, strict=True)):
            needs = wanted
            _, saved = forward(x, parameters, seed, config, needs)
        grads = iter(backward(grad_y, x, parameters, seed, config, saved, needs))
        return *(None,) * 5, *(next(grads) if need else None for need in needs)


def _forward_op(
    x: Tensor, parameters: Parameters, seed: Tensor | None, config: Config, needs: Sequence[bool]
) -> Outputs:
    outputs: Outputs = torch.ops.batchformer.encoder_layer.default(x, *parameters, seed, *config, needs)
    return outputs


def _backward_op(
    grad_y: Tensor,
    x: Tensor,
    parameters: Parameters,
    seed: Tensor | None,
    config: Config,
    saved: Sequence[Tensor],
    needs: Sequence[bool],
) -> list[Tensor]:
    grads: list[Tensor] = torch.ops.batchformer.encoder_layer_backward.default(
        grad_y, x, *parameters, seed, *config, saved, needs
    )
    return grads


_CORE = core.encoder_layer_forward, core.encoder_layer_backward
_OPS = _forward_op, _backward_op


def _differentiable(
    forward: Callable[..., Outputs],
    x: Tensor,
    parameters: Parameters,
    seed: Tensor | None,
    config: Config,
    needs: Sequence[bool],
) -> Outputs:
    """What `forward` gives, as a node of autograd's graph if a gradient can be asked for."""
    if not (torch.is_grad_enabled() and torch._C._any_requires_grad(x, *parameters)):
        return forward(x, parameters, seed, config, needs)
    saved: list[Tensor] = []
    y: Tensor = _EncoderLayer.apply(forward, saved, seed, config, needs, x, *parameters)
    return y, saved


def _with_autograd(keyset: torch._C.DispatchKeySet, x: Tensor, *arguments: Any) -> Outputs:
    def below_autograd(
        x: Tensor, parameters: Parameters, seed: Tensor | None, config: Config, needs: Sequence[bool]
    ) -> Outputs:
        with torch._C._AutoDispatchBelowAutograd():
            outputs: Outputs = torch.ops.batchformer.encoder_layer.default.redispatch(
                keyset & torch._C._after_autograd_keyset, x, *parameters, seed, *config, needs
            )
        return outputs

    refuse_tangents((x, *arguments))
    parameters, seed, config, (needs,) = unpack(arguments)
    return _differentiable(below_autograd, x, parameters, seed, config, needs)


def _no_second_derivative(*_: Any) -> None:
    raise RuntimeError(
        "batchformer::encoder_layer: a second derivative is not supported. For a gradient penalty use "
        "torch.nn.TransformerEncoderLayer, whose state_dict is the same."
    )


library.impl("encoder_layer", _with_autograd, "Autograd", with_keyset=True)
torch.library.register_autograd("batchformer::encoder_layer_backward", _no_second_derivative, lib=library)
