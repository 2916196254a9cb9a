"""Compositional zero-shot learning: CGE and CompCos, whose loss is computed inside of the model."""

from typing import Any

from torch import nn

from batchformer.swap_in import rows
from batchformer.swap_in.attachment import check_replica
from batchformer.swap_in.family import Family
from batchformer.swap_in.make import feature_modules
from batchformer.swap_in.options import Options
from batchformer.swap_in.places import Place


class CompositionalZeroShot(Family):
    """ExplainableML/czsl: CGE (GraphFull) and CompCos, on the image features before everything else."""

    name = "czsl"
    expects = "GraphFull or CompCos with its data set as dset (ExplainableML/czsl)"

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
        self.hook_inputs(model, self._double_batch)

    def _double_batch(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> rows.Call | None:
        """The batch is a list of tensors: image features first, then their attributes, objects and pairs."""
        if not self.training:
            return None
        check_replica(model)
        features, *targets = args[0]
        features, targets = self.at(0)(features, tuple(targets))
        return ([features, *targets], *args[1:]), kwargs
