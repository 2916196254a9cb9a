"""How often a place has run before in a forward, also in the recomputations of a checkpoint."""

import torch
from torch import Tensor

from batchformer.modules._recomputation import Forwards, Snapshot
from batchformer.swap_in.forward import Forward


class Occurrences:
    """Tells the banks of a place apart: two views, or a block that runs twice, have their own."""

    def __init__(self) -> None:
        self._forwards = Forwards()

    def before(self, forward: Forward, number: int, x: Tensor) -> int:
        """How often the place of this number has run in the forward, when x came there first.

        Raises:
            RuntimeError: a recomputation of an unknown forward.
        """
        times = forward.ran.count(number)
        if torch.compiler.is_compiling():
            return times
        # A checkpoint around the place alone recomputes it when the forward has ended, and all have run.
        first, _ = self._forwards.call(x.shape, Snapshot(None, torch.tensor(times)))
        _, first_times = first.snapshot
        return int(first_times)

    def __reduce__(self) -> tuple[type["Occurrences"], tuple[()]]:
        """Without forwards that are under way: they are not those of a copy."""
        return Occurrences, ()
