"""The other samples that those of a module attend to: samples of other ranks, and remembered ones."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from numbers import Integral
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor

from batchformer.modules import _check
from batchformer.modules._composed import check_attention
from batchformer.modules._facts import check_fits, facts, layers_of
from batchformer.modules._keys import Keys
from batchformer.modules._memory import MemoryBank
from batchformer.modules.encoder_layer import TransformerEncoderLayer
from batchformer.ranks import Ranks, agree, check_group, gather, ranks_of


class Others:
    """The other samples that those of one forward attend to, layer by layer."""

    def __init__(
        self,
        ranks: Ranks | None,
        samples: Sequence[int],
        facts: Mapping[str, int | str] | None,
        bank_of: Callable[[int], MemoryBank] | None,
        *,
        positions: Sequence[int] | None,
        uniform: bool,
    ) -> None:
        self._ranks, self._samples, self._facts = ranks, samples, facts
        self._bank_of, self._positions, self._uniform = bank_of, positions, uniform

    @property
    def alone(self) -> bool:
        """Whether no other rank has samples to attend to."""
        return self._ranks is None

    def through(self, layer: Any, number: int, x: Tensor) -> Tensor:
        """Output of a layer, by its number in the encoder, in the shape of x.

        The layer is called as a module, and projects keys in its forward, so that hooks around it, as of
        FSDP2, cover every use of its parameters.

        Args:
            layer: of the encoder.
            number: 0 for the first.
            x (Tensor[N, L, C]): or Tensor[L, N, C] with batch_first.
        """
        keys = Keys(self._ranks, self._samples, self._facts, uniform=self._uniform)
        if self._bank_of is None:
            return layer(x, keys=keys)  # type: ignore[no-any-return]
        rows = x.transpose(0, 1) if layer.self_attn.batch_first else x  # [N, L, C]
        bank = self._bank_of(number)
        seen = bank.look(rows, self._positions)
        y: Tensor = layer(x, keys=keys._replace(rows=seen.rows, row_count=seen.count))
        if seen.enters:
            entering = rows.detach()
            if self._ranks is not None:
                entering = gather(entering, self._samples, self._ranks, self._facts)
            bank.enter(entering, self._positions)
        return y


class _Group:
    """A process group, which cannot be copied: a copy of a module shares it."""

    def __init__(self, group: Any) -> None:
        self.group = group

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Group":
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"process_group: expected None in a module that is pickled, as a group exists in its processes "
            f"alone, got {self.group.group_name!r}; save the state_dict"
        )


class AcrossSamples(nn.Module):
    """A module whose samples attend to each other and, on request, to those of other ranks and steps."""

    encoder: nn.Module
    # As class attributes for modules that an earlier release has pickled.
    attend = "batch"
    gather_distributed = False
    memory_bank_size = 0
    _group: _Group | None = None

    def __init__(
        self, attend: str, *, gather_distributed: bool, memory_bank_size: int, process_group: Any
    ) -> None:
        super().__init__()
        _check.one_of("gather_distributed", gather_distributed, (True, False))
        is_number = isinstance(memory_bank_size, Integral) and not isinstance(memory_bank_size, bool)
        if not is_number or memory_bank_size < 0:
            raise ValueError(
                f"memory_bank_size: expected a number of samples, 0 or more, got {memory_bank_size!r}"
            )
        if process_group is not None and not gather_distributed:
            got = type(process_group).__name__
            raise ValueError(f"process_group: expected None without gather_distributed, got a {got}")
        if process_group is not None:
            check_group(process_group)
        if attend == "alone" and (gather_distributed or memory_bank_size):
            raise ValueError(
                f"attend: expected 'batch' or 'uniform' with gather_distributed or memory_bank_size, got "
                f"{attend!r}"
            )
        self.attend = attend
        self.gather_distributed = bool(gather_distributed)
        self.memory_bank_size = int(memory_bank_size)
        self._group = None if process_group is None else _Group(process_group)
        self._banks: dict[tuple[Hashable, int], MemoryBank] = {}

    @property
    def process_group(self) -> Any:
        """The ranks whose samples are attended to; None is the default group, looked up at every call."""
        return None if self._group is None else self._group.group

    def _meet(
        self, bank: Hashable, check: Callable[..., Tensor], *arguments: Any
    ) -> tuple[Tensor, Others | None]:
        """The samples `[N, L, C]` that `check` makes of the arguments, and the others that they attend to.

        Raises:
            ValueError: what `check` raises, on every rank; or ranks that differ.
        """
        asked = self.gather_distributed or self.memory_bank_size > 0
        if not asked and self.attend != "uniform":
            return check(*arguments), None
        if asked:
            how = "gather_distributed or memory_bank_size, as replicas live for one step in one process"
            _check.not_a_replica(type(self).__name__, self, f" with {how}")
        bank_of = None if self.memory_bank_size == 0 else lambda layer: self._bank(bank, layer)
        ranks = ranks_of(self.process_group) if self.gather_distributed else None
        compiling = torch.compiler.is_compiling()
        try:
            x = self._checked(check, *arguments)
            positions = self._map_of(arguments[0])
            if bank_of is not None:
                bank_of(0).check(x, positions)
        except (TypeError, ValueError) as error:
            if ranks is not None and not compiling:
                device = next(self.encoder.parameters()).device
                agree(ranks, 0, {}, device, fault=str(error))  # raises on every rank, so that none waits
            raise
        samples: list[int] = []
        told = None if ranks is None else self._facts(x, positions, bank)
        if ranks is not None and told is not None:
            if compiling:  # equal numbers by contract, which the graph checks
                samples = [x.shape[0]] * ranks.size
            else:
                samples, told = agree(ranks, x.shape[0], told, x.device), None
        uniform = self.attend == "uniform"
        return x, Others(ranks, samples, told, bank_of, positions=positions, uniform=uniform)

    def _refuse_replicas(self) -> None:
        """Raise RuntimeError in a replica of nn.DataParallel, whose streams come out in another order."""
        how = "two streams, as that gathers both streams of each device in turn"
        _check.not_a_replica(type(self).__name__, self, f" with {how}")

    def _map_of(self, x: Tensor) -> Sequence[int] | None:
        """Height and width of the maps that are in x; None if it holds none."""
        del x
        return None

    def _checked(self, check: Callable[..., Tensor], *arguments: Any) -> Tensor:
        x = check(*arguments)  # [N, L, C]
        for layer in layers_of(self.encoder):
            if not isinstance(layer, TransformerEncoderLayer):
                raise TypeError(
                    f"encoder: expected batchformer's TransformerEncoderLayer, whose forward takes keys, got "
                    f"{type(layer).__name__}; a checkpoint or torch.compile goes around the whole module"
                )
            check_attention(layer)
        check_fits(x, layers_of(self.encoder)[0].self_attn.in_proj_weight)
        return x

    def _bank(self, bank: Hashable, layer: int) -> MemoryBank:
        key = (bank, layer)
        if key in self._banks:
            return self._banks[key]
        new = MemoryBank(self.memory_bank_size)
        if not isinstance(new.count, FakeTensor):  # a real tensor must not be mixed with a fake one
            self._banks[key] = new
        return new

    def _facts(self, x: Tensor, positions: Sequence[int] | None, bank: Hashable) -> dict[str, int | str]:
        """What has to be the same on all ranks."""
        found = facts(x, positions, layers_of(self.encoder)) | {
            "attend": self.attend,
            "memory_bank_size": self.memory_bank_size,
            "two_stream": int(bool(getattr(self, "two_stream", True))),
            "bank": str(bank),
        }
        if self.memory_bank_size and not torch.compiler.is_compiling():  # a graph reads no values of tensors
            found["memory bank: number of samples"] = int(self._bank(bank, 0).count)
        return found

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "AcrossSamples":
        """Converts the remembered samples with the parameters."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for bank in self._banks.values():
            bank.apply(fn)
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Also for the state of an earlier release, which had no banks."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.__dict__.setdefault("_banks", {})

    def extra_repr(self) -> str:
        """The options that are on."""
        facts = [f"attend={self.attend!r}"]
        if self.gather_distributed:
            facts.append("gather_distributed=True")
        if self.memory_bank_size:
            facts.append(f"memory_bank_size={self.memory_bank_size}")
        if self.process_group is not None:
            facts.append(f"process_group={self.process_group.group_name!r}")
        return ", ".join(facts)
