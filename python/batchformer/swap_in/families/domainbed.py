"""Domain generalization: DomainBed and SWAD, whose update() computes the loss and steps the optimizer."""

from typing import Any

import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from batchformer.swap_in.criterion import Judge
from batchformer.swap_in.family import Family
from batchformer.swap_in.options import Options
from batchformer.swap_in.places import Place

_ONE_CROSS_ENTROPY = ("ERM", "Mixstyle", "Mixstyle2")


class DomainBed(Family):
    """khanrc/swad and facebookresearch/DomainBed: the samples of all domains attend to one another.

    For algorithms whose update is a cross entropy over all rows; others split the rows by domain. The
    algorithm has built its optimizer already, so hand it the new parameters:
    ``algorithm.optimizer.add_param_group({"params": [*attachment.parameters()]})``.
    """

    names = ("domainbed", "swad")
    expects = "featurizer, classifier and the update of ERM, Mixstyle or Mixstyle2 (khanrc/swad, DomainBed)"
    place = "before the classifier"

    @classmethod
    def fits(cls, model: nn.Module) -> bool:
        """An algorithm whose update() is that of one of the three."""
        owner = next((each for each in type(model).__mro__ if "update" in vars(each)), object)
        parts = all(
            isinstance(getattr(model, name, None), nn.Module) for name in ("featurizer", "classifier")
        )
        return parts and owner.__name__ in _ONE_CROSS_ENTROPY

    @classmethod
    def find_places(cls, model: nn.Module, options: Options) -> list[Place]:
        """The classifier."""
        del options
        return [Place("classifier", model.get_submodule("classifier"))]

    def install(self, model: nn.Module, places: list[Place], options: Options) -> None:
        """At the input of the classifier, and around the update."""
        del model, options
        self.double_features_before(places)
        self.hooks.replace("update", self._update)

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """An algorithm has no forward."""
        return self.model.predict(*args, **kwargs)  # type: ignore[operator]

    def _update(self, *args: Any, **kwargs: Any) -> Any:
        with _DoubledCrossEntropy(Judge(self, F.cross_entropy, None)):
            return self.hooks.stock("update", *args, **kwargs)


class _DoubledCrossEntropy(TorchFunctionMode):
    """Doubles the targets of cross_entropy() while active: for a loss that cannot be wrapped."""

    def __init__(self, judge: Judge) -> None:
        super().__init__()
        self._judge = judge

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        kwargs = kwargs or {}
        if func is F.cross_entropy:
            args, kwargs = self._judge.double(args, kwargs)
        return func(*args, **kwargs)
