"""The memory bank of one place and one layer: the layer's inputs for the latest samples."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

from batchformer.modules._recomputation import Forwards, Snapshot
from batchformer.ops.first_forward import first_forward


class Remembered(NamedTuple):
    """What a call sees of a bank."""

    rows: Tensor
    """[M, L, C], the newest first, without a history, in dtype and on the device of the call's x."""
    count: Tensor | None  # type: ignore[assignment]  # hides tuple.count()
    """How many of the rows there are, a 0-d int64 tensor on the CPU; None: all."""
    enters: bool
    """Whether the samples of the call are to enter the bank."""


class MemoryBank:
    """The inputs of a layer for the last `size` samples, which a later batch attends to, too.

    It is no module and has no buffers: it is in no state_dict, and neither DistributedDataParallel nor an
    average of weights touches it. Copies and pickles include its rows.

    Args:
        size: samples that it holds at most, at least 1.

    Raises:
        ValueError: a size below 1.

    Example:
        >>> bank, x = MemoryBank(1024), torch.rand(32, 1, 64)
        >>> seen = bank.look(x)
        >>> if seen.enters:
        ...     bank.enter(x)
        >>> seen.rows.shape, bank.look(x).rows.shape
        (torch.Size([0, 1, 64]), torch.Size([32, 1, 64]))
    """

    def __init__(self, size: int) -> None:
        if size < 1:
            raise ValueError(f"memory_bank_size: expected at least 1, got {size}")
        self.size = size
        # [size, L, C], or [size, H, W, C] of maps, from the first entry on; `count` of the rows are samples
        self.rows: Tensor | None = None
        self.count = _none()
        self._forwards = Forwards()

    def look(self, x: Tensor, positions: Sequence[int] | None = None) -> Remembered:
        """What the bank holds; in a checkpoint's recomputation, what it held in the first forward.

        Samples enter once, in a forward with gradients: not under no_grad, nor in a recomputation, except
        that of a checkpoint with use_reentrant=True, whose forward is without gradients. In a compiled graph
        all `size` rows are returned together with their count, as shapes are fixed there.

        Args:
            x (Tensor[N, L, C]): the input of the layer.
            positions: height and width of the map, if the L positions come from one; else None.

        Raises:
            ValueError: other positions than the remembered samples have.
            RuntimeError: a recomputation whose first forward is not known; a transform of torch.func; an
                export in training.
        """
        self.check(x, positions)
        rows, count = self.rows, self.count
        if isinstance(x, FakeTensor):  # run by Python, so no graph of torch.compile
            if torch.compiler.is_exporting():
                raise RuntimeError(
                    f"memory_bank_size: expected eval() for torch.export and torch.onnx, whose graphs "
                    f"remember nothing, got a bank of {self.size} samples in training"
                )
            return Remembered(x.new_zeros((0, *x.shape[1:])), None, enters=False)
        if torch.compiler.is_compiling():
            if rows is None:
                rows = x.new_zeros((self.size, *x.shape[1:]))
            return Remembered(_like(rows.flatten(1, -2), x), first_forward(count), torch.is_grad_enabled())
        if torch._C._are_functorch_transforms_active():
            raise RuntimeError(
                f"memory_bank_size: expected none inside of a transform of torch.func, which would leave its "
                f"own tensors in the bank, got {self.size}"
            )
        forward, enters = self._forwards.call(x.shape, Snapshot(rows, count))
        enters = enters and not torch.is_inference_mode_enabled()
        rows, count = forward.snapshot
        if rows is None:
            return Remembered(x.new_zeros((0, *x.shape[1:])), None, enters)
        return Remembered(_like(rows[: int(count)].flatten(1, -2), x), None, enters)

    def check(self, x: Tensor, positions: Sequence[int] | None = None) -> None:
        """Raise ValueError if x has other positions than the remembered samples; see :meth:`look`."""
        if self.rows is None:
            return
        sizes = [x.shape[1]] if positions is None else [*positions]
        if list(self.rows.shape[1:-1]) != sizes:
            expected, got = (" x ".join(map(str, each)) for each in (self.rows.shape[1:-1], sizes))
            raise ValueError(
                f"x: expected {expected} positions of a sample, as those in the memory bank have, got {got}; "
                f"pad or resize all batches to one size, or leave memory_bank_size out"
            )

    def enter(self, entering: Tensor, positions: Sequence[int] | None = None) -> None:
        """None; puts samples in front of the others, and drops the oldest beyond `size`.

        A sample that is not finite enters as zeros.

        Args:
            entering (Tensor[n, L, C]): of this process, or of all.
            positions: as for :meth:`look`.
        """
        if entering.shape[1] == 0:
            return  # or the bank would be one of samples without positions
        entering = _finite(entering.detach())
        entering = entering if positions is None else entering.unflatten(1, tuple(positions))
        samples = entering.shape[0]
        rows = self.rows
        if rows is None:
            rows = entering.new_zeros((self.size, *entering.shape[1:]))
        kept = _like(rows[: max(self.size - samples, 0)], entering)
        # A new tensor, as earlier forwards hold the old one.
        self.rows = torch.cat([entering[: self.size], kept])  # [size, L, C]
        self.count = (self.count + samples).clamp(max=self.size)

    def apply(self, convert: Callable[[Tensor], Tensor]) -> None:
        """None; converts the rows as nn.Module._apply does parameters."""
        if self.rows is None:
            return
        before, self.rows = self.rows, convert(self.rows)
        emptied = getattr(convert, "__qualname__", "").startswith("Module.to_empty.")
        if emptied or (before.is_meta and not self.rows.is_meta):  # uninitialised memory
            self.rows, self.count = None, _none()
        elif self.rows.dtype != before.dtype:
            self.rows = _finite(self.rows)

    def __getstate__(self) -> dict[str, Any]:
        return {"size": self.size, "rows": self.rows, "count": self.count}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _forwards=Forwards())


def _like(rows: Tensor, x: Tensor) -> Tensor:
    """The rows in dtype and on the device of x."""
    converted = rows.to(x)
    return converted if rows.dtype == x.dtype else _finite(converted)


def _finite(rows: Tensor) -> Tensor:
    """The rows, those that are not finite as zeros: they would overflow all that attend to them later."""
    finite = rows.isfinite().flatten(1).all(1)  # [M]
    return rows.where(finite.view(-1, *[1] * (rows.dim() - 1)), 0)


def _none() -> Tensor:
    return torch.zeros((), dtype=torch.int64, device="cpu")
