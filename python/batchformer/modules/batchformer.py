"""BatchFormer: a transformer encoder over the samples of a batch, before the classifier."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from batchformer.modules import _check
from batchformer.modules._encoder import across_samples, make_encoder, which_attend
from batchformer.targets import check_batch_size, duplicate

Targets = TypeVar("Targets")


def batchformer(x: Tensor, y: Targets, encoder: nn.Module, is_training: bool) -> tuple[Tensor, Targets]:
    """Features and targets of both streams, originals first; in evaluation x and y as they are.

    The paper's few lines as a function, for an encoder of your own.

    Args:
        x (Tensor[N, C]): one feature vector a sample.
        y: targets that :func:`duplicate` can double, or None.
        encoder: a transformer encoder (layer) of width C.
        is_training: False takes BatchFormer out.

    Raises:
        TypeError: x is not a tensor, or not of a floating point dtype.
        ValueError: x is not [N, C] with N > 0, or y has another length.

    Source: Hou et al., "BatchFormer: learning to explore sample relationships for robust representation
    learning" (CVPR 2022), arXiv 2203.01522, section 3.

    Example:
        >>> encoder = TransformerEncoderLayer(64, 4, 64, 0.5)
        >>> x, y = batchformer(torch.rand(32, 64), torch.arange(32), encoder, is_training=True)
        >>> x.shape, y.shape
        (torch.Size([64, 64]), torch.Size([64]))
    """
    if not is_training:
        return x, y
    return _both_streams(x, y, _related(x, y, encoder, "batch", width=None))


class BatchFormer(nn.Module):
    """Samples that learn from one another, in training; see :func:`batchformer`. The identity in evaluation.

    Args:
        dim: C, the width of the features.
        nhead: heads of the attention over the batch.
        dim_feedforward: width of the feed-forward network; C if None.
        dropout: of the attention, the hidden layer and both residuals.
        activation: "relu", "gelu" or a callable.
        two_stream: False returns the related features alone, and y as it is.
        attend: "batch", or "alone" for the control in which each sample attends to itself only.
        num_layers: more than 1 puts that many layers into ``encoder.layers``.
        recompute: keep the layer's input alone for the backward, which then runs the forward again.
        norm_first, layer_norm_eps, bias, device, dtype: as for torch.nn.TransformerEncoderLayer.

    Raises:
        ValueError: nhead that does not divide dim, a dropout outside [0, 1], an `attend` that does not exist.

    Example:
        >>> module = BatchFormer(64)
        >>> x, y = module(torch.rand(32, 64), torch.arange(32))
        >>> x.shape, y.shape
        (torch.Size([64, 64]), torch.Size([64]))
        >>> x, y = module.eval()(torch.rand(32, 64), torch.arange(32))
        >>> x.shape, y.shape
        (torch.Size([32, 64]), torch.Size([32]))
    """

    def __init__(
        self,
        dim: int,
        nhead: int = 4,
        dim_feedforward: int | None = None,
        dropout: float = 0.5,
        activation: str | Callable[[Tensor], Tensor] = "relu",
        *,
        two_stream: bool = True,
        attend: str = "batch",
        num_layers: int = 1,
        recompute: bool = False,
        norm_first: bool = False,
        layer_norm_eps: float = 1e-5,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.two_stream = two_stream
        self.attend = which_attend(attend)
        self.encoder = make_encoder(
            dim,
            nhead,
            dim_feedforward,
            dropout,
            activation,
            num_layers=num_layers,
            recompute=recompute,
            norm_first=norm_first,
            layer_norm_eps=layer_norm_eps,
            bias=bias,
            device=device,
            dtype=dtype,
        )

    def forward(self, x: Tensor, y: Targets = None, *, streams: int = 1) -> tuple[Tensor, Targets]:  # type: ignore[assignment]
        """Features `[2N, C]` and targets of both streams from x `[N, C]` and y; see :func:`batchformer`.

        Args:
            x: the features.
            y: targets, or None.
            streams: 2 if x and y already hold both streams, from an insertion before this one: only the
                second half of x is transformed.

        Raises:
            TypeError: x is not a tensor, or not of a floating point dtype.
            ValueError: x is not [N, C] with N > 0, y has another length; streams that cannot be.
        """
        if not self.training:
            return x, y
        _check.one_of("streams", streams, (1, 2) if self.two_stream else (1,))
        if streams == 1:
            related = _related(x, y, self.encoder, self.attend, width=self.dim)
            return _both_streams(x, y, related) if self.two_stream else (related, y)
        _check.dense("x", x)
        if x.dim() == 0 or x.shape[0] % 2:
            raise ValueError(
                f"x: expected an even number of samples on axis 0, as streams=2 says both are there, got "
                f"{list(x.shape)}"
            )
        check_batch_size(y, x.shape[0])
        original, previous = x.chunk(2)
        return torch.cat([original, _related(previous, None, self.encoder, self.attend, width=self.dim)]), y

    def extra_repr(self) -> str:
        """What does not show in the encoder."""
        return f"two_stream={self.two_stream}, attend={self.attend!r}"


def _related(x: Tensor, y: Any, encoder: nn.Module, attend: str, *, width: int | None) -> Tensor:
    """The samples of x `[N, C]` after attending to each other: `[N, C]`."""
    _check.dense("x", x)
    if x.dim() != 2 or (width is not None and x.shape[1] != width):
        raise ValueError(f"x: expected shape [N, {width or 'C'}] (axis 0 is the batch), got {list(x.shape)}")
    check_batch_size(y, x.shape[0])
    return across_samples(encoder, x.unsqueeze(1), attend).squeeze(1)


def _both_streams(x: Tensor, y: Targets, related: Tensor) -> tuple[Tensor, Targets]:
    return torch.cat([x, related]), duplicate(y)  # [2N, C]
