"""BatchFormerV2: a transformer encoder over the samples of a batch, at every position of a token map."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from batchformer.modules import _check
from batchformer.modules._encoder import across_samples, make_encoder, which_attend
from batchformer.modules._others import AcrossSamples


class _Layout(NamedTuple):
    batch_axis: int
    channel_axis: int
    rank: int
    shape: str


_LAYOUTS = {
    "NLC": _Layout(0, 2, 3, "[N, L, {dim}]"),
    "LNC": _Layout(1, 2, 3, "[L, N, {dim}]"),
    "NCHW": _Layout(0, 1, 4, "[N, {dim}, H, W]"),
    "NHWC": _Layout(0, 3, 4, "[N, H, W, {dim}]"),
}


class BatchFormerV2(AcrossSamples):
    """A token map for both streams, originals first: twice the batch in training, x itself in evaluation.

    Put it after a block of a vision transformer or on a feature map; everything after it is shared by the
    two streams, so double the targets with :func:`duplicate`. Each position attends over the batch by itself.
    A second insertion gets x of both streams: pass streams=2, and only the second half is transformed.

    See :class:`BatchFormer` for `gather_distributed` and `memory_bank_size`. Here samples attend to each
    other at every position, so that all ranks, and all steps with a memory bank, need the same number L of
    positions.

    Args:
        dim: C, the width of the tokens.
        nhead: heads of the attention over the batch.
        dim_feedforward: width of the feed-forward network; C if None.
        dropout: of the attention, the hidden layer and both residuals.
        activation: "relu", "gelu" or a callable.
        layout: "NLC", "LNC" (DETR's), "NCHW" or "NHWC" (Swin's); N is the batch.
        two_stream: False returns the related tokens alone, with the batch as it is.
        attend: "batch", "uniform" or "alone", as for :class:`BatchFormer`.
        num_layers: more than 1 puts that many layers into ``encoder.layers``.
        recompute: keep the layer's input alone for the backward, which then runs the forward again.
        gather_distributed: samples attend to those of all ranks of torch.distributed, with gradient.
        memory_bank_size: samples attend to this many of earlier steps, too, without gradient.
        process_group: the ranks to gather from; None is the default group, looked up at every call.
        norm_first, layer_norm_eps, bias, device, dtype: as for torch.nn.TransformerEncoderLayer.

    Raises:
        ValueError: nhead that does not divide dim, a dropout outside [0, 1], a `layout` or `attend` that does
            not exist; attend="alone" with gather_distributed or memory_bank_size.

    Source: Hou et al., "BatchFormerV2: exploring sample relationships for dense representation learning",
    arXiv 2204.01254, section 3.

    Example:
        >>> module = BatchFormerV2(64)
        >>> module(torch.rand(8, 49, 64)).shape
        torch.Size([16, 49, 64])
        >>> module.eval()(torch.rand(8, 49, 64)).shape
        torch.Size([8, 49, 64])
    """

    def __init__(
        self,
        dim: int,
        nhead: int = 4,
        dim_feedforward: int | None = None,
        dropout: float = 0.5,
        activation: str | Callable[[Tensor], Tensor] = "relu",
        *,
        layout: str = "NLC",
        two_stream: bool = True,
        attend: str = "batch",
        num_layers: int = 1,
        recompute: bool = False,
        gather_distributed: bool = False,
        memory_bank_size: int = 0,
        process_group: Any = None,
        norm_first: bool = False,
        layer_norm_eps: float = 1e-5,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(
            which_attend(attend),
            gather_distributed=gather_distributed,
            memory_bank_size=memory_bank_size,
            process_group=process_group,
        )
        _check.one_of("layout", layout, tuple(_LAYOUTS))
        self.dim = dim
        self.layout = layout
        self.two_stream = two_stream
        self.encoder = make_encoder(
            dim,
            nhead,
            dim_feedforward,
            dropout,
            activation,
            num_layers=num_layers,
            recompute=recompute,
            batch_first=layout == "LNC",  # the encoder then reads x without a copy
            norm_first=norm_first,
            layer_norm_eps=layer_norm_eps,
            bias=bias,
            device=device,
            dtype=dtype,
        )

    def forward(self, x: Tensor, streams: int = 1, *, bank: Hashable = None) -> Tensor:
        """Tokens of both streams, originals first: x `[N, L, C]`, or as `layout` says, with 2N samples.

        Args:
            x: the token map.
            streams: 2 if x already holds both streams, from an insertion before this one.
            bank: a key, for a module that is called more than once in a step: each key has a memory bank of
                its own.

        Raises:
            TypeError: x is not a tensor, or not of a floating point dtype.
            ValueError: x does not have the layout, or is empty; streams is wrong; another L than the memory
                bank has. With gather_distributed on every rank, and if ranks differ.
            RuntimeError: nn.DataParallel with two streams, gather_distributed or memory_bank_size; a
                checkpoint that recomputes a forward unknown to the memory bank.
        """
        if not self.training:
            return x
        samples, others = self._meet(bank, self._samples, x, streams)  # [N, L, C]
        if self.two_stream:
            self._refuse_replicas()
        axis = self.batch_axis
        original, previous = (x, x) if streams == 1 else x.chunk(2, dim=axis)
        related = self._as_it_came(across_samples(self.encoder, samples, self.attend, others), previous)
        return torch.cat([original, related], dim=axis) if self.two_stream else related

    def tokens(self, x: Tensor) -> Tensor:
        """The samples at each position, `[N, L, C]`, of x; :meth:`forward` lists the errors."""
        return self._samples(x, streams=1)

    def _samples(self, x: Tensor, streams: int) -> Tensor:
        """What is transformed, `[N, L, C]`."""
        self._check(x, streams)
        return self._tokens(x if streams == 1 else x.chunk(2, dim=self.batch_axis)[1])

    def _map_of(self, x: Tensor) -> Sequence[int] | None:
        layout = _LAYOUTS[self.layout]
        axes = [axis for axis in range(layout.rank) if axis not in (layout.batch_axis, layout.channel_axis)]
        return [x.shape[axis] for axis in axes] if len(axes) == 2 else None

    def _as_it_came(self, related: Tensor, x: Tensor) -> Tensor:
        """The related samples `[N, L, C]` in the layout, and in the shape of x."""
        if self.layout == "NLC":
            return related
        if self.layout == "LNC":
            return related.transpose(0, 1)  # [L, N, C]
        if self.layout == "NHWC":
            return related.reshape(x.shape)  # [N, H, W, C]
        return related.transpose(1, 2).reshape(x.shape)  # [N, C, H, W]

    def _tokens(self, x: Tensor) -> Tensor:
        if self.layout == "NLC":
            return x
        if self.layout == "LNC":
            return x.transpose(0, 1)
        return x.flatten(1, 2) if self.layout == "NHWC" else x.flatten(2).transpose(1, 2)

    def _check(self, x: Tensor, streams: int) -> None:
        _check.dense("x", x)
        _check.one_of("streams", streams, (1, 2) if self.two_stream else (1,))
        layout = _LAYOUTS[self.layout]
        if x.dim() != layout.rank or x.shape[layout.channel_axis] != self.dim:
            raise ValueError(
                f"x: expected shape {layout.shape.format(dim=self.dim)} (layout {self.layout!r}: axis "
                f"{layout.batch_axis} is the batch), got {list(x.shape)}"
            )
        if streams == 2 and x.shape[layout.batch_axis] % 2:
            raise ValueError(
                f"x: expected an even number of samples on axis {layout.batch_axis}, as streams=2 means two "
                f"streams, got {list(x.shape)}"
            )

    @property
    def batch_axis(self) -> int:
        """The axis of x that is the batch."""
        return _LAYOUTS[self.layout].batch_axis

    def extra_repr(self) -> str:
        """Options that do not show in the repr of the encoder."""
        return f"layout={self.layout!r}, two_stream={self.two_stream}, {super().extra_repr()}"
