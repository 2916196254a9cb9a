"""MoCo v1 and v2, in their authors' code."""

import functools
from typing import Any

import torch
from torch import Tensor, nn

from batchformer.swap_in.family import Family
from batchformer.swap_in.options import Options
from batchformer.swap_in.places import Place, has_modules


class MoCoV2(Family):
    """facebookresearch/moco.

    ``pairings="all"`` pairs each query of either stream with the keys of both, as the official code does: 4N
    rows; ``"aligned"`` pairs those of the same stream: 2N rows. Either way 2N keys enter the queue in a step,
    so its size has to be a multiple of that.
    """

    names = ("moco_v2",)
    expects = "encoder_q.fc, encoder_k.fc and a queue (facebookresearch/moco)"
    place = "before the projection heads of both encoders"
    takes = ("pairings",)
    answers = True
    pairs_streams = False
    targets = ()

    @classmethod
    def fits(cls, model: nn.Module) -> bool:
        """MoCo, v1 or v2."""
        return (
            has_modules(model, "encoder_q.fc", "encoder_k.fc")
            and hasattr(model, "queue")
            and not hasattr(model, "queue_l")
        )

    @classmethod
    def find_places(cls, model: nn.Module, options: Options) -> list[Place]:
        """The projection heads."""
        del options
        return [Place(path, model.get_submodule(path)) for path in ("encoder_q.fc", "encoder_k.fc")]

    def install(self, model: nn.Module, places: list[Place], options: Options) -> None:
        """At the inputs of the heads, where keys are unshuffled, and where they enter the queue."""
        self._all = options.pairings == "all"
        self.double_features_before(places)
        self.hooks.output(model.get_submodule("encoder_q"), self._pair_queries)
        self.hooks.replace("_batch_unshuffle_ddp", self._unshuffle)
        self.hooks.replace("_dequeue_and_enqueue", self._enqueue)

    def _pair_queries(self, encoder: nn.Module, args: Any, queries: Tensor) -> Tensor | None:
        del encoder, args
        if not (self.active and self._all):
            return None
        original, related = queries.chunk(2)
        return torch.cat([original, original, related, related])  # [4N, ...]

    def _unshuffle(self, keys: Tensor, *args: Any) -> Any:
        """Unshuffles the keys of each stream by themselves: N images were shuffled, not 2N rows."""
        unshuffle = functools.partial(self.hooks.stock, "_batch_unshuffle_ddp")
        if not self.active:
            return unshuffle(keys, *args)
        streams = [unshuffle(stream, *args) for stream in keys.chunk(2)]
        return torch.cat(2 * streams if self._all else streams)  # [4N, ...] or [2N, ...]

    def _enqueue(self, keys: Tensor, *args: Any) -> Any:
        if self.active and self._all:
            keys = keys.chunk(2)[0]  # [2N, ...]
        return self.hooks.stock("_dequeue_and_enqueue", keys, *args)
