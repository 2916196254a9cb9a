"""`batchformer::encoder_layer` and its backward: kernel, fake, autograd. Their schemas are in `table`."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from batchformer._extension import core
from batchformer.ops.arguments import NEEDS_COUNT, Config, Parameters, unpack
from batchformer.ops.direct import nobody_watches, saved_as_they_are
from batchformer.ops.forward_mode import refuse_tangents
from batchformer.ops.on_cuda import allows_tf32
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
# Of SplitMix64, whose finaliser makes unrelated states of seeds that differ in any bit.
_ODD = 0x9E37_79B9_7F4A_7C15
_NOTHING = (False,) * NEEDS_COUNT
_AUTOCAST = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU).add(torch._C.DispatchKey.AutocastCUDA)

Outputs = tuple[Tensor, list[Tensor]]
"""y, and the tensors that the backward takes."""


def encoder_layer(
    x: Tensor,
    parameters: Parameters,
    config: Config,
    *,
    recompute: bool = False,
    keys_values: Tensor | None = None,
    key_count: Tensor | None = None,
    rank: int = 0,
) -> Tensor:
    """Output of a transformer encoder layer that attends over N, in the shape and dtype of x, contiguous.

    Args:
        x (Tensor[N, L, C]): or Tensor[L, N, C] with config.batch_first.
        parameters: of x's dtype and device.
        config: the probabilities of dropout are those of this call: 0 for evaluation.
        recompute: keep the arguments alone for the backward, which then runs the forward again.
        keys_values (Tensor[K, L, 2C]): or Tensor[L, K, 2C] with config.batch_first: keys and values that the
            N samples attend to instead of their own; parameters.in_proj_weight `[C, C]` and in_proj_bias
            `[C]` are then those of the queries alone.
        key_count: how many of the K keys count, from the first on, as a 0-d int64 tensor on the CPU; all if
            None. The gradient of the others is 0.
        rank: processes with equal random states and different ranks draw different masks of dropout.

    Raises:
        TypeError: x is not of a floating point dtype.
        ValueError: shapes, dtypes or devices that do not fit together, an empty x, or a key_count that is not
            from 1 to K.

    Source: Vaswani et al., "Attention is all you need" (2017); pre-norm: Xiong et al. (2020).
    """
    seed = None
    if any(p > 0 for p in config.dropout):
        seed = torch.randint(_LARGEST_SEED, (), dtype=torch.int64, device=x.device)
        seed = mix(seed, rank) if rank else seed
    inputs = (x, *parameters, keys_values)
    needs: Sequence[bool] = _NOTHING
    if torch.is_grad_enabled() and not recompute:
        needs = [tensor is not None and tensor.requires_grad for tensor in inputs]
    call = Call(key_count, seed, config, needs)
    if nobody_watches((*inputs, key_count)):
        return _differentiable(_forward_core, inputs, call)[0]
    return _forward_op(inputs, call)[0]


def mix(seed: Tensor, rank: int) -> Tensor:
    """A seed for this rank, int64 from 0 to 2⁶³ - 1 as `seed` is: equal seeds become different ones."""
    return seed ^ (rank * _ODD & _LARGEST_SEED)  # times an odd number: one to one modulo 2⁶³


def path_counts() -> dict[str, int]:
    """How often each path has run a forward or a backward in this process.

    {"cpu": calls, "cuda": calls, "aten": calls}; calls that torch's own layer ran are not counted.
    """
    return dict(core.path_counts())


def empty_cache() -> None:
    """None; returns the memory to the system that the "cpu" path keeps for later calls.

    That is freed memory of scratch buffers, saved tensors and large gradients: at most as much as was in use
    at once in the last few hundred calls, and at most 1024 MiB, or the MiB that the environment variable
    BATCHFORMER_POOL_MB named when the path first ran (0: nothing is kept). Outputs use torch's allocator; the
    storage of a gradient of 1 MiB or more, which does not, cannot be resized.

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
    parameters, keys_values, key_count, seed, config, (needs,) = unpack(arguments)
    check_dense({"x": x, **parameters._asdict(), "keys_values": keys_values})
    return _forward_core((x, *parameters, keys_values), Call(key_count, seed, config, needs))


def _forward_fake(x: Tensor, *arguments: Any) -> Outputs:
    parameters, keys_values, _, seed, config, (needs,) = unpack(arguments)
    check_devices(x, parameters, seed=seed, keys_values=keys_values)
    return x.new_empty(x.shape), empty_saved(x, parameters, config, needs)


library.impl("encoder_layer", _forward, "CompositeExplicitAutograd")
torch.library.register_fake("batchformer::encoder_layer", _forward_fake, lib=library)


library.define(BACKWARD_SCHEMA, tags=_TAGS)


def _backward(grad_y: Tensor, x: Tensor, *arguments: Any) -> list[Tensor]:
    refuse_tangents((grad_y, x, *arguments))
    parameters, keys_values, key_count, seed, config, (saved, needs) = unpack(arguments)
    check_dense({"grad_y": grad_y, "x": x, **parameters._asdict(), "keys_values": keys_values})
    call = Call(key_count, seed, config, needs)
    return _backward_core(grad_y, (x, *parameters, keys_values), call, saved)


def _backward_fake(grad_y: Tensor, x: Tensor, *arguments: Any) -> list[Tensor]:
    parameters, keys_values, _, seed, _, (saved, needs) = unpack(arguments)
    kept = {f"saved[{i}]": each for i, each in enumerate(saved)}
    check_devices(x, parameters, seed=seed, keys_values=keys_values, grad_y=grad_y, **kept)
    return [tensor.new_empty(tensor.shape) for tensor in needed((x, *parameters, keys_values), needs)]


library.impl("encoder_layer_backward", _backward, "CompositeExplicitAutograd")
torch.library.register_fake("batchformer::encoder_layer_backward", _backward_fake, lib=library)


class Call(NamedTuple):
    """What the forward takes besides the tensors that may have gradients."""

    key_count: Tensor | None
    seed: Tensor | None
    config: Config
    needs: Sequence[bool]


Inputs: TypeAlias = Sequence[Any]
"""(x, *parameters, keys_values), of which the last and biases may be None."""


class _EncoderLayer(torch.autograd.Function):
    """The op with its derivative. A forward that saved too little is run again by the backward.

    `torch.library.register_autograd` would do the same, but reads the schema's arguments one by one at every
    call: 90 µs, more than a small layer takes.
    """

    @staticmethod
    def forward(
        ctx: Any,
        forward: Callable[[Inputs, Call], Outputs],
        left: list[Tensor],
        call: Call,
        *inputs: Tensor | None,
    ) -> Tensor:
        """`left` takes what the op saves; as outputs of this function these tensors would become nodes."""
        y, saved = forward(inputs, call)
        ctx.config, ctx.needs = call.config, call.needs
        ctx.plain = forward is _forward_core and saved_as_they_are()
        ctx.save_for_backward(*inputs, call.key_count, call.seed, *saved)
        left.extend(saved)
        return y

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        inputs, (key_count, seed, *saved) = tensors[:NEEDS_COUNT], tensors[NEEDS_COUNT:]
        call = Call(key_count, seed, ctx.config, ctx.needs)
        wanted = ctx.needs_input_grad[-NEEDS_COUNT:]
        # A second derivative is refused by the op.
        direct = ctx.plain and not torch.is_grad_enabled() and nobody_watches((grad_y,))
        forward, backward = _CORE if direct else _OPS
        if any(want and not need for want, need in zip(wanted, call.needs, strict=True)):
            call = call._replace(needs=wanted)
            with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST):  # the inputs have their dtypes already
                _, saved = forward(inputs, call)
        grads = iter(backward(grad_y, inputs, call, saved))
        return *(None,) * 3, *(next(grads) if need else None for need in call.needs)


def _forward_core(inputs: Inputs, call: Call) -> Outputs:
    x, *parameters, keys_values = inputs
    return core.encoder_layer_forward(x, parameters, keys_values, *call, allows_tf32(x))


def _backward_core(grad_y: Tensor, inputs: Inputs, call: Call, saved: Sequence[Tensor]) -> list[Tensor]:
    x, *parameters, keys_values = inputs
    key_count, seed, config, needs = call
    tf32 = allows_tf32(x)
    return core.encoder_layer_backward(
        grad_y, x, parameters, keys_values, key_count, seed, config, saved, needs, tf32
    )


def _forward_op(inputs: Inputs, call: Call) -> Outputs:
    key_count, seed, config, needs = call
    outputs: Outputs = torch.ops.batchformer.encoder_layer.default(*inputs, key_count, seed, *config, needs)
    return outputs


def _backward_op(grad_y: Tensor, inputs: Inputs, call: Call, saved: Sequence[Tensor]) -> list[Tensor]:
    key_count, seed, config, needs = call
    grads: list[Tensor] = torch.ops.batchformer.encoder_layer_backward.default(
        grad_y, *inputs, key_count, seed, *config, saved, needs
    )
    return grads


_CORE = _forward_core, _backward_core
_OPS = _forward_op, _backward_op


def _differentiable(forward: Callable[[Inputs, Call], Outputs], inputs: Inputs, call: Call) -> Outputs:
    """What `forward` gives, as a node of autograd's graph if a gradient can be asked for."""
    if not (torch.is_grad_enabled() and torch._C._any_requires_grad(*inputs)):
        return forward(inputs, call)
    saved: list[Tensor] = []
    y: Tensor = _EncoderLayer.apply(forward, saved, call, *inputs)
    return y, saved


def _with_autograd(keyset: torch._C.DispatchKeySet, x: Tensor, *arguments: Any) -> Outputs:
    def below_autograd(inputs: Inputs, call: Call) -> Outputs:
        key_count, seed, config, needs = call
        with torch._C._AutoDispatchBelowAutograd():
            outputs: Outputs = torch.ops.batchformer.encoder_layer.default.redispatch(
                keyset & torch._C._after_autograd_keyset, *inputs, key_count, seed, *config, needs
            )
        return outputs

    refuse_tangents((x, *arguments))
    parameters, keys_values, key_count, seed, config, (needs,) = unpack(arguments)
    call = Call(key_count, seed, config, needs)
    return _differentiable(below_autograd, (x, *parameters, keys_values), call)


def _no_second_derivative(*_: Any) -> None:
    raise RuntimeError(
        "batchformer::encoder_layer: a second derivative is not supported. For a gradient penalty use "
        "torch.nn.TransformerEncoderLayer, whose state_dict is the same."
    )


library.impl("encoder_layer", _with_autograd, "Autograd", with_keyset=True)
torch.library.register_autograd("batchformer::encoder_layer_backward", _no_second_derivative, lib=library)
