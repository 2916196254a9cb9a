"""BatchFormer: a transformer encoder over the samples of a batch, before the classifier."""

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from batchformer.modules import _check
from batchformer.modules._encoder import across_samples, make_encoder, which_attend
from batchformer.modules._others import AcrossSamples
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
    related = across_samples(encoder, _one_position(x, y, width=None)).squeeze(1)
    return _both_streams(x, y, related)


class BatchFormer(AcrossSamples):
    """Samples that learn from one another, in training; see :func:`batchformer`. The identity in evaluation.

    With `gather_distributed` the n samples of a rank attend to the N of all ranks, and gradients flow back to
    all of them. Ranks may have different numbers of samples, even 0 if another has some: the gradients of
    that rank are then zeros. With equal numbers DistributedDataParallel gives the gradients of one process
    with all samples. Else weight the mean loss of each rank by n * (number of ranks) / N or, equivalently,
    multiply the sum over its samples by (number of ranks) / N. Everything else has to be the same on all
    ranks, in a compiled step the numbers of samples, too, and each rank has to run forward and backward as
    often as the others. In evaluation nothing is exchanged. Without a process group a warning says that this
    process is the only rank.

    With `memory_bank_size` they also attend to the last samples of earlier steps (of all ranks, if those are
    gathered). The inputs of each layer are kept, detached; the current weights make keys of them, and get
    gradients from them. A forward with gradients enters its samples once; none enter in evaluation, under
    no_grad, or when a checkpoint runs it again. The bank is in copies and pickles, not in the state_dict.

    Args:
        dim: C, the width of the features.
        nhead: heads of the attention over the batch.
        dim_feedforward: width of the feed-forward network; C if None.
        dropout: of the attention, the hidden layer and both residuals.
        activation: "relu", "gelu" or a callable.
        two_stream: False returns the related features alone, and y as it is.
        attend: "batch"; or one of two controls. "uniform": each sample attends equally to all, so that the
            second stream and its noise stay, and only the choice among samples is missing. "alone": each
            attends to itself only. Its noise is larger: dropout of its single key drops the value of a head
            whole or doubles it, where that of N keys averages out.
        num_layers: more than 1 puts that many layers into ``encoder.layers``.
        recompute: keep the layer's input alone for the backward, which then runs the forward again.
        gather_distributed: samples attend to those of all ranks of torch.distributed, with gradient.
        memory_bank_size: samples attend to this many of earlier steps, too, without gradient.
        process_group: the ranks to gather from; None is the default group, looked up at every call.
        norm_first, layer_norm_eps, bias, device, dtype: as for torch.nn.TransformerEncoderLayer.

    Raises:
        ValueError: nhead that does not divide dim, a dropout outside [0, 1], an `attend` that does not exist;
            attend="alone" with gather_distributed or memory_bank_size.

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
        self.dim = dim
        self.two_stream = two_stream
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

    def forward(
        self,
        x: Tensor,
        y: Targets = None,  # type: ignore[assignment]
        *,
        streams: int = 1,
        bank: Hashable = None,
    ) -> tuple[Tensor, Targets]:
        """Features `[2N, C]` and targets of both streams from x `[N, C]` and y; see :func:`batchformer`.

        Args:
            x: the features.
            y: targets, or None.
            streams: 2 if x and y already hold both streams, from an insertion before this one: only the
                second half of x is transformed.
            bank: a key, for a module that is called more than once in a step: each key has a memory bank of
                its own.

        Raises:
            TypeError: x is not a tensor, or not of a floating point dtype.
            ValueError: x is not [N, C] with N > 0, y has another length, or streams is wrong. With
                gather_distributed on every rank, and if ranks differ.
            RuntimeError: nn.DataParallel with two streams and no y, with gather_distributed or with
                memory_bank_size; a checkpoint that recomputes a forward unknown to the memory bank.
        """
        if not self.training:
            return x, y
        samples, others = self._meet(bank, self._samples, x, y, streams)  # [N, 1, C]
        if self.two_stream and y is None:  # else each device has the targets of its own rows
            self._refuse_replicas()
        related = across_samples(self.encoder, samples, self.attend, others).squeeze(1)
        if not self.two_stream:
            return related, y
        return (torch.cat([x.chunk(2)[0], related]), y) if streams == 2 else _both_streams(x, y, related)

    def _samples(self, x: Tensor, y: Any, streams: int) -> Tensor:
        """What is transformed, `[N, 1, C]`."""
        _check.one_of("streams", streams, (1, 2) if self.two_stream else (1,))
        if streams == 1:
            return _one_position(x, y, self.dim)
        _check.dense("x", x)
        if x.dim() == 0 or x.shape[0] % 2:
            raise ValueError(
                "x: expected an even number of samples on axis 0, as streams=2 means two streams, got "
                f"{list(x.shape)}"
            )
        check_batch_size(y, x.shape[0])
        return _one_position(x.chunk(2)[1], None, self.dim)

    def extra_repr(self) -> str:
        """Options that do not show in the repr of the encoder."""
        return f"two_stream={self.two_stream}, {super().extra_repr()}"


def _one_position(x: Tensor, y: Any, width: int | None) -> Tensor:
    """X `[N, C]`, checked, as `[N, 1, C]`."""
    _check.dense("x", x)
    if x.dim() != 2 or (width is not None and x.shape[1] != width):
        raise ValueError(f"x: expected shape [N, {width or 'C'}] (axis 0 is the batch), got {list(x.shape)}")
    check_batch_size(y, x.shape[0])
    return x.unsqueeze(1)


def _both_streams(x: Tensor, y: Targets, related: Tensor) -> tuple[Tensor, Targets]:
    return torch.cat([x, related]), duplicate(y)  # [2N, C]
