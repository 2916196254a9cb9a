"""Balanced Softmax, in its authors' code: its trainer compares training logits with labels."""

from typing import Any

from torch import Tensor, nn

from batchformer.swap_in.family import Family
from batchformer.swap_in.options import Options
from batchformer.swap_in.places import Place


class BalancedSoftmax(Family):
    """jiawei-ren/BalancedMetaSoftmax-Classification: attach to ``networks["classifier"]``.

    The published code puts the related rows first, and sums the loss of the first half, of the second and of
    all, which is three times the mean over all: ``as_published=True``. Otherwise originals come first, and
    the loss is the mean over both.
    """

    names = ("balanced_softmax",)
    recognised = False  # any classifier has such a class
    expects = "a classifier of features, itself or in nn.DataParallel: networks['classifier']"
    place = "before the classifier"
    takes = ("as_published",)
    returns_originals = True

    @classmethod
    def fits(cls, model: nn.Module) -> bool:
        """A module whose class the code base calls a classifier."""
        return type(getattr(model, "module", model)).__name__.endswith("Classifier")

    @classmethod
    def find_places(cls, model: nn.Module, options: Options) -> list[Place]:
        """The classifier itself."""
        del options
        return [Place("", model)]

    def install(self, model: nn.Module, places: list[Place], options: Options) -> None:
        """Outside of nn.DataParallel, at the input."""
        del model
        self._as_published = options.as_published
        self.double_features_before(places)

    def arrange(self, both: Tensor, samples: int) -> Tensor:
        """In the published order, if that is asked for."""
        return both.roll(samples, 0) if self._as_published else both

    def weigh(self, loss: Any) -> Any:
        """Scaled as the published loss, if that is asked for."""
        return 3 * loss if self._as_published and self.active else loss
