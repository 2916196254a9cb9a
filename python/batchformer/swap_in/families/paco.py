"""PaCo, in its authors' code: supervised contrastive learning with a momentum encoder."""

import functools
from typing import Any

import torch
from torch import Tensor, nn

from batchformer.swap_in.family import Family
from batchformer.swap_in.make import feature_modules
from batchformer.swap_in.options import Options
from batchformer.swap_in.places import Place, has_modules, input_width


class PaCo(Family):
    """dvlab-research/Parametric-Contrastive-Learning (PaCo/LT), for which there is no official code.

    BatchFormer works on the pooled features of both encoders, so that the projection, the classifier and the
    supervised contrastive loss see both streams; the two rows of an image have one label. 2N keys enter the
    queue in a step, so its size has to be a multiple of that.
    """

    names = ("paco",)
    expects = (
        "encoder_q, encoder_k, linear, queue and queue_l (dvlab-research/Parametric-Contrastive-Learning)"
    )
    place = "after the pooling of both encoders"
    returns_originals = True  # of the logits; features and labels for the loss have both streams already
    targets = ()
    pairs_streams = False

    @classmethod
    def fits(cls, model: nn.Module) -> bool:
        """PaCo's MoCo, with labels in its queue."""
        return has_modules(model, "encoder_q", "encoder_k", "linear") and hasattr(model, "queue_l")

    @classmethod
    def find_places(cls, model: nn.Module, options: Options) -> list[Place]:
        """The pooling of both encoders: the last module but one, whose output PaCo captures."""
        del options
        places = []
        for path in ("encoder_q", "encoder_k"):
            name, pool = [*model.get_submodule(path).named_children()][-2]
            places.append(Place(f"{path}.{name}", pool))
        return places

    @classmethod
    def make_modules(cls, model: nn.Module, places: list[Place], options: Options) -> list[nn.Module]:
        """BatchFormer, as wide as the features that PaCo classifies."""
        width = input_width(model.get_submodule("linear"))
        return feature_modules(model, places, options, [width, width])

    def install(self, model: nn.Module, places: list[Place], options: Options) -> None:
        """At the outputs of the pooling, and where keys are unshuffled."""
        del model, options
        for number, place in enumerate(places):  # before PaCo's own hook, so that this captures both streams
            self.hooks.output(place.module, functools.partial(self._double_pooled, number), first=True)
        self.hooks.replace("_batch_unshuffle_ddp", self._unshuffle)

    def _double_pooled(self, number: int, pool: nn.Module, args: Any, pooled: Tensor) -> Tensor | None:
        del args
        if not self.trains(pool):
            return None
        return self.streams.relate(number, pool, pooled.flatten(1)).reshape(
            -1, *pooled.shape[1:]
        )  # [2N, C, 1, 1]

    def _unshuffle(self, keys: Tensor, labels: Tensor, *args: Any) -> Any:
        """Unshuffles the keys of each stream by themselves; with the labels of both."""
        unshuffle = functools.partial(self.hooks.stock, "_batch_unshuffle_ddp")
        if not self.active:
            return unshuffle(keys, labels, *args)
        streams = [unshuffle(stream, labels, *args) for stream in keys.chunk(2)]
        return tuple(torch.cat(each) for each in zip(*streams, strict=True))
