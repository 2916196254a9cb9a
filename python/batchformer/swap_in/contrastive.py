"""Contrastive learning with a momentum encoder: MoCo v2, MoCo v3, PaCo.

One module serves the query encoder and the key encoder. It is a child of the model itself, so that neither
the average over the encoders' parameters meets it, nor what switches off the gradients of the key encoder.
"""

import functools
from typing import Any

import torch
from torch import Tensor, nn

from batchformer.swap_in.family import Family
from batchformer.swap_in.make import feature_modules
from batchformer.swap_in.options import Options
from batchformer.swap_in.places import Place, input_width


class MoCoV2(Family):
    """facebookresearch/moco.

    ``pairings="all"`` pairs each query of either stream with the keys of both, as the official code does: 4N
    rows; ``"aligned"`` pairs those of the same stream: 2N rows. Either way 2N keys enter the queue in a step,
    so its size has to be a multiple of that.
    """

    name = "moco_v2"
    expects = "encoder_q.fc, encoder_k.fc and a queue (facebookresearch/moco)"
    takes = ("pairings",)
    answers = True
    targets = ()

    @classmethod
    def fits(cls, model: nn.Module) -> bool:
        """MoCo, v1 or v2."""
        return _has(model, "encoder_q.fc", "encoder_k.fc") and hasattr(model, "queue") and not _is_paco(model)

    @classmethod
    def find_places(cls, model: nn.Module, options: Options) -> list[Place]:
        """The projection heads."""
        del options
        return [Place(path, model.get_submodule(path)) for path in ("encoder_q.fc", "encoder_k.fc")]

    def install(self, model: nn.Module, places: list[Place], options: Options) -> None:
        """At the inputs of the heads, where keys are put back into order, and where they enter the queue."""
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
        """Keys of each stream in their order by themselves: the shuffle was of N images, not of 2N rows."""
        unshuffle = functools.partial(self.hooks.stock, "_batch_unshuffle_ddp")
        if not self.active:
            return unshuffle(keys, *args)
        streams = [unshuffle(stream, *args) for stream in keys.chunk(2)]
        return torch.cat(2 * streams if self._all else streams)  # [4N, ...] or [2N, ...]

    def _enqueue(self, keys: Tensor, *args: Any) -> Any:
        if self.active and self._all:
            keys = keys.chunk(2)[0]  # [2N, ...]
        return self.hooks.stock("_dequeue_and_enqueue", keys, *args)


class MoCoV3(Family):
    """facebookresearch/moco-v3, ResNet and ViT.

    The loss of a view is the mean over the pairings, each with its own negatives: all four of both streams,
    or with ``pairings="aligned"`` those of the same stream. The published code sums the four, and froze its
    module by accident (it sat inside both encoders): ``as_published=True``.
    """

    name = "moco_v3"
    expects = "base_encoder, momentum_encoder and predictor (facebookresearch/moco-v3)"
    takes = ("pairings", "as_published")
    answers = True

    @classmethod
    def fits(cls, model: nn.Module) -> bool:
        """MoCo v3."""
        return _has(model, "base_encoder", "momentum_encoder") and hasattr(model, "contrastive_loss")

    @classmethod
    def find_places(cls, model: nn.Module, options: Options) -> list[Place]:
        """The projectors: fc of a ResNet, head of a ViT."""
        del options
        head = "fc" if _has(model, "base_encoder.fc") else "head"
        paths = (f"base_encoder.{head}", f"momentum_encoder.{head}")
        return [Place(path, model.get_submodule(path)) for path in paths]

    def install(self, model: nn.Module, places: list[Place], options: Options) -> None:
        """At the inputs of the projectors, and before the contrastive loss."""
        del model
        self._all = options.pairings == "all"
        self._sum = options.as_published
        if options.as_published:
            self.attachment.requires_grad_(False)
            self.watch.frozen_on_purpose()
        self.double_features_before(places)
        self.hooks.replace("contrastive_loss", self._contrastive_loss)

    def _contrastive_loss(self, queries: Tensor, keys: Tensor) -> Any:
        loss = functools.partial(self.hooks.stock, "contrastive_loss")
        if not self.active:
            return loss(queries, keys)
        losses = [
            loss(query, key)
            for i, query in enumerate(queries.chunk(2))
            for j, key in enumerate(keys.chunk(2))
            if self._all or i == j
        ]
        return sum(losses) if self._sum else sum(losses) / len(losses)


class PaCo(Family):
    """dvlab-research/Parametric-Contrastive-Learning (PaCo/LT), for which there is no official code.

    BatchFormer works on the pooled features of both encoders, so that the projection, the classifier and the
    supervised contrastive loss see both streams; the two rows of an image have one label. 2N keys enter the
    queue in a step, so its size has to be a multiple of that.
    """

    name = "paco"
    expects = (
        "encoder_q, encoder_k, linear, queue and queue_l (dvlab-research/Parametric-Contrastive-Learning)"
    )
    returns_originals = True  # of the logits; features and labels for the loss have both streams already
    targets = ()

    @classmethod
    def fits(cls, model: nn.Module) -> bool:
        """PaCo's MoCo, with labels in its queue."""
        return _has(model, "encoder_q", "encoder_k", "linear") and _is_paco(model)

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
        """At the outputs of the pooling, and where keys are put back into order."""
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
        """Keys of each stream in their order by themselves, and labels of both."""
        unshuffle = functools.partial(self.hooks.stock, "_batch_unshuffle_ddp")
        if not self.active:
            return unshuffle(keys, labels, *args)
        streams = [unshuffle(stream, labels, *args) for stream in keys.chunk(2)]
        return tuple(torch.cat(each) for each in zip(*streams, strict=True))


def _has(model: nn.Module, *paths: str) -> bool:
    modules = dict(model.named_modules(remove_duplicate=False))
    return all(path in modules for path in paths)


def _is_paco(model: nn.Module) -> bool:
    return hasattr(model, "queue") and hasattr(model, "queue_l")
