"""torch.nn.TransformerEncoderLayer with the whole layer in one op."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from batchformer import ops
from batchformer.modules import _check, _declined
from batchformer.modules._composed import check_attention, composed
from batchformer.modules._keys import (
    Keys,
    are_of_own_samples_alone,
    in_proj,
    keys_and_values,
    of_queries,
    split_in_proj,
)


class TransformerEncoderLayer(nn.TransformerEncoderLayer):
    """Drop-in for :class:`torch.nn.TransformerEncoderLayer`: same constructor, state_dict and results.

    What the op does not cover runs torch's own implementation: masks, an activation other than ReLU and the
    exact GELU, nested or empty inputs, transforms of torch.func, forward-mode AD, tensor subclasses, and
    whatever was put inside the layer or around all modules: hooks, other modules, replaced forwards, torch
    function modes. So do devices other than the CPU and those with CUDA on which the kernels have been
    verified. :meth:`declined` says why.

    Args:
        d_model, nhead, dim_feedforward, activation, layer_norm_eps: as for torch's layer.
        dropout: as for torch's layer; the op rounds the probability to a multiple of 2⁻¹⁶.
        batch_first, norm_first, bias, device, dtype: as for torch's layer.
        recompute: keep the input alone for the backward, which then runs the forward again: a third more time
            for a fraction of the memory.

    Raises:
        ValueError: nhead that does not divide d_model, a dropout outside [0, 1].

    Example:
        >>> layer = TransformerEncoderLayer(d_model=512, nhead=8)
        >>> layer(torch.rand(10, 32, 512)).shape
        torch.Size([10, 32, 512])
    """

    recompute = False  # of layers that accelerate() swaps

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: str | Callable[[Tensor], Tensor] = F.relu,
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        recompute: bool = False,
    ) -> None:
        _check.heads(nhead, d_model, "d_model")
        _check.probability("dropout", dropout)
        if isinstance(activation, str):
            _check.one_of("activation", activation, ("relu", "gelu"))
        super().__init__(
            d_model,
            nhead,
            dim_feedforward,
            dropout,
            activation,
            layer_norm_eps,
            batch_first,
            norm_first,
            bias,
            device,
            dtype,
        )
        self.recompute = recompute

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
        *,
        keys: Keys | None = None,
    ) -> Tensor:
        """Output of the layer, in the shape of `src`.

        Args:
            src (Tensor[S, B, C]): the layer attends over S; [B, S, C] with batch_first; or [S, C].
            src_mask: as for torch's layer, which then runs.
            src_key_padding_mask: as for torch's layer, which then runs.
            is_causal: as for torch's layer, which then runs.
            keys: further samples that the S attend to, as :class:`BatchFormer` passes them.

        Raises:
            TypeError: src is not a tensor, not dense, or not of a floating point dtype.
            ValueError: a src of another rank or width, or of another dtype or device than the layer; a mask
                together with keys.
        """
        _check.tensor("src", src)
        if not src.is_nested:
            _check.dense("src", src)
            self._check_shape(src)
        if keys is not None:
            if src_mask is not None or src_key_padding_mask is not None or is_causal:
                raise ValueError("keys: expected a call without a mask, got one with a mask")
            return self._forward_with_keys(src, keys)
        parameters = self._parameters_or_reason(src, src_mask, src_key_padding_mask, is_causal)
        if isinstance(parameters, str):
            return self._forward_of_torch(src, src_mask, src_key_padding_mask, is_causal)
        _refuse_what_autocast_gives(src, parameters.in_proj_weight)
        config = self._config()
        if src.dim() == 3:
            return ops.encoder_layer(src, parameters, config, recompute=self.recompute)
        axis = 0 if config.batch_first else 1
        return ops.encoder_layer(src.unsqueeze(axis), parameters, config, recompute=self.recompute).squeeze(
            axis
        )

    def declined(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> str | None:
        """Why a call with these arguments runs torch's own implementation; None if it runs the op."""
        reason = self._parameters_or_reason(src, src_mask, src_key_padding_mask, is_causal)
        return reason if isinstance(reason, str) else None

    def _parameters_or_reason(
        self, src: Tensor, src_mask: Tensor | None, src_key_padding_mask: Tensor | None, is_causal: bool
    ) -> ops.Parameters | str:
        """What the op is given, or why torch's own implementation runs."""
        if src_mask is not None or src_key_padding_mask is not None or is_causal:
            return "the call has a mask"
        inside = self._inside()
        reason = _declined.for_call(src) or _declined.for_modules(self, inside)
        reason = reason or _declined.for_precision(src, inside["self_attn"].batch_first)
        if reason is not None:
            return reason
        parameters = self._parameters_of_op()
        reason = _declined.for_tensors(src, parameters)
        if reason is None and src.device.type == "cuda":
            attention = inside["self_attn"]
            reason = ops.on_cuda.reason(
                src,
                parameters,
                nhead=attention.num_heads,
                activation=_declined.activation_name(self.activation) or "",
                norm_first=self.norm_first,
                batch_first=attention.batch_first,
            )
        return reason or parameters

    def _forward_with_keys(self, src: Tensor, keys: Keys) -> Tensor:
        """Output of the layer for src `[S, B, C]` alone, after attending to all that `keys` names."""
        attention = self._inside()["self_attn"]
        parameters = self._parameters_or_reason(src, None, None, is_causal=False)
        if not isinstance(parameters, str):
            _refuse_what_autocast_gives(src, parameters.in_proj_weight)
        if are_of_own_samples_alone(keys) and not isinstance(parameters, str):
            weight, bias = in_proj(attention, uniform=keys.uniform)
            parameters = parameters._replace(in_proj_weight=weight, in_proj_bias=bias)
            return ops.encoder_layer(src, parameters, self._config(), recompute=self.recompute)
        check_attention(self)
        projection = split_in_proj(attention, uniform=keys.uniform)
        # Outside of the recomputed part: keys of others are exchanged once, and stay those of this forward.
        keys_values, key_count = keys_and_values(self, src, keys, projection)
        rank = None if keys.ranks is None else keys.ranks.rank
        if isinstance(parameters, str):
            return self._recomputed(composed, self, src, keys_values, key_count, projection, rank)
        return ops.encoder_layer(
            src,
            of_queries(parameters, projection),
            self._config(),
            recompute=self.recompute,
            keys_values=keys_values,
            key_count=key_count,
            rank=rank or 0,
        )

    def _forward_of_torch(self, *arguments: Any) -> Tensor:
        return self._recomputed(super().forward, *arguments)

    def _recomputed(self, function: Callable[..., Tensor], *arguments: Any) -> Tensor:
        """The output of the function; with `recompute` its arguments alone are kept for the backward."""
        # torch.func's gradients do not support the hooks on saved tensors that checkpoint uses
        if not self.recompute or not torch.is_grad_enabled() or torch._C._are_functorch_transforms_active():
            return function(*arguments)
        y: Tensor = checkpoint(function, *arguments, use_reentrant=False)
        return y

    def _inside(self) -> dict[str, Any]:
        """The modules of the layer. Every call needs all; attribute access takes three times as long."""
        return self._modules

    def _check_shape(self, src: Tensor) -> None:
        attention = self._inside().get("self_attn")
        if not isinstance(attention, nn.MultiheadAttention):
            return  # torch's own implementation runs, which asks for what the other attention takes
        channels = attention.embed_dim
        if src.dim() not in (2, 3) or src.shape[-1] != channels:
            axes = "[B, S" if attention.batch_first else "[S, B"
            expected = f"{axes}, {channels}] or [S, {channels}]"
            raise ValueError(f"src: expected shape {expected}, got {list(src.shape)}")

    def _parameters_of_op(self) -> ops.Parameters:
        inside = self._inside()
        attention, linear1, linear2 = inside["self_attn"], inside["linear1"], inside["linear2"]
        out_proj, norm1, norm2 = attention.out_proj, inside["norm1"], inside["norm2"]
        return ops.Parameters(
            _tensor(attention, "in_proj_weight"),
            _tensor(attention, "in_proj_bias"),
            _tensor(out_proj, "weight"),
            _tensor(out_proj, "bias"),
            _tensor(linear1, "weight"),
            _tensor(linear1, "bias"),
            _tensor(linear2, "weight"),
            _tensor(linear2, "bias"),
            _tensor(norm1, "weight"),
            _tensor(norm1, "bias"),
            _tensor(norm2, "weight"),
            _tensor(norm2, "bias"),
        )

    def _config(self) -> ops.Config:
        inside = self._inside()
        attention = inside["self_attn"]
        return ops.Config(
            nhead=attention.num_heads,
            dropout=(
                attention.dropout if attention.training else 0.0,
                _probability(inside["dropout"]),
                _probability(inside["dropout1"]),
                _probability(inside["dropout2"]),
            ),
            activation=_declined.activation_name(self.activation) or "",
            norm_first=self.norm_first,
            batch_first=attention.batch_first,
            layer_norm_eps=(inside["norm1"].eps, inside["norm2"].eps),
        )


def _tensor(module: nn.Module, name: str) -> Any:
    """`module.name`, for parameters without nn.Module.__getattr__, which takes three times as long."""
    parameters = module._parameters
    return parameters[name] if name in parameters else getattr(module, name)


def _probability(dropout: nn.Dropout) -> float:
    return dropout.p if dropout.training else 0.0


def _refuse_what_autocast_gives(src: Tensor, weight: Tensor) -> None:
    """Raise ValueError for float32 with weights in half precision, which the op takes, outside autocast."""
    if (
        weight.dtype in (torch.float16, torch.bfloat16)
        and src.dtype == torch.float32
        and not torch.is_autocast_enabled(src.device.type)
    ):
        dtype = str(weight.dtype).removeprefix("torch.")
        raise ValueError(f"x: expected dtype {dtype} as in_proj_weight has, got float32")
