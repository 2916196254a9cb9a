"""Compositional zero-shot learning: CGE and CompCos, whose loss is computed inside of the model."""

from typing import Any

from torch import nn

from batchformer.swap_in.family import Family
from batchformer.swap_in.make import feature_modules
from batchformer.swap_in.options import Options
from batchformer.swap_in.places import Place
from batchformer.swap_in.signature import Call
from batchformer.targets import check_batch_size, duplicate


class CompositionalZeroShot(Family):
    """ExplainableML/czsl: CGE (GraphFull) and CompCos, on the image features before everything else."""

    names = ("czsl", "cge", "compcos")
    answers = True
    expects = "GraphFull or CompCos with its data set as dset (ExplainableML/czsl)"
    place = "on the image features"

    @classmethod
    def fits(cls, model: nn.Module) -> bool:
        """CGE or CompCos."""
        return type(model).__name__ in ("GraphFull", "CompCos") and hasattr(model, "dset")

    @classmethod
    def find_places(cls, model: nn.Module, options: Options) -> list[Place]:
        """The model itself."""
        del options
        return [Place("", model)]

    @classmethod
    def make_modules(cls, model: nn.Module, places: list[Place], options: Options) -> list[nn.Module]:
        """BatchFormer, as wide as the image features of the data set."""
        return feature_modules(model, places, options, [int(model.dset.feat_dim)])  # type: ignore[union-attr, arg-type]

    def install(self, model: nn.Module, places: list[Place], options: Options) -> None:
        """At the batch."""
        del places, options
        self.hooks.inputs(model, self._double_batch)

    def _double_batch(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
        """The batch is a list of tensors: image features first, then their attributes, objects and pairs."""
        if not self.trains(model):
            return None
        features, *targets = args[0]
        check_batch_size(tuple(targets), len(features))
        features = self.streams.relate(0, model, features)
        targets = duplicate(tuple(targets)) if self.active else targets
        return ([features, *targets], *args[1:]), kwargs
