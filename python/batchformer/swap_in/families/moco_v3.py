"""MoCo v3, in its authors' code."""

import functools
from typing import Any

from torch import Tensor, nn

from batchformer.swap_in.family import Family
from batchformer.swap_in.options import Options
from batchformer.swap_in.places import Place, has_modules


class MoCoV3(Family):
    """facebookresearch/moco-v3, ResNet and ViT.

    The loss of a view is the mean over the pairings, each with its own negatives: all four of both streams,
    or with ``pairings="aligned"`` those of the same stream. The published code sums the four, and froze its
    module by accident (it sat inside both encoders): ``as_published=True``.
    """

    names = ("moco_v3",)
    expects = "base_encoder, momentum_encoder and predictor (facebookresearch/moco-v3)"
    place = "before the projectors of both encoders"
    takes = ("pairings", "as_published")
    answers = True
    pairs_streams = False

    @classmethod
    def fits(cls, model: nn.Module) -> bool:
        """MoCo v3."""
        return has_modules(model, "base_encoder", "momentum_encoder") and hasattr(model, "contrastive_loss")

    @classmethod
    def find_places(cls, model: nn.Module, options: Options) -> list[Place]:
        """The projectors: fc of a ResNet, head of a ViT."""
        del options
        head = "fc" if has_modules(model, "base_encoder.fc") else "head"
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
