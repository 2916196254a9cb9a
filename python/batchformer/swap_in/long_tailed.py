"""Long-tailed recognition: RIDE and Balanced Softmax, whose trainers compare training logits with labels."""

from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from batchformer.swap_in.family import Family
from batchformer.swap_in.make import feature_modules
from batchformer.swap_in.options import Options
from batchformer.swap_in.places import Place, input_width

_CIFAR_WIDTH = 128  # up to here RIDE's models are those for CIFAR


class Ride(Family):
    """frank-xwang/RIDE-LongTailRecognition: one module before the classifiers of all experts.

    The published results come from one stream, the related features instead of the original ones:
    ``two_stream=False``. The number of heads and, for CIFAR, the initialisation are the official ones.
    """

    name = "ride"
    expects = "backbone.linears, a classifier for each expert (frank-xwang/RIDE-LongTailRecognition)"
    returns_originals = True

    @classmethod
    def fits(cls, model: nn.Module) -> bool:
        """A RIDE model of several experts."""
        return isinstance(getattr(getattr(model, "backbone", None), "linears", None), nn.ModuleList)

    @classmethod
    def find_places(cls, model: nn.Module, options: Options) -> list[Place]:
        """The classifiers."""
        del options
        linears = model.get_submodule("backbone.linears")
        return [Place(f"backbone.linears.{name}", linear) for name, linear in linears.named_children()]

    @classmethod
    def make_modules(cls, model: nn.Module, places: list[Place], options: Options) -> list[nn.Module]:
        """BatchFormer with the official heads."""
        width = input_width(places[0].module)
        if width is None:  # RIDE's NormedLinear, whose weight is [in, out]
            width = int(places[0].module.get_parameter("weight").shape[0])
        options = replace(options, module={"nhead": 1 if width <= _CIFAR_WIDTH else 4} | options.module)
        modules = feature_modules(model, places, options, [width] * len(places))
        if width <= _CIFAR_WIDTH:
            modules[0].apply(_initialise_linear)
        return modules

    def install(self, model: nn.Module, places: list[Place], options: Options) -> None:
        """At the inputs of the classifiers."""
        del model, options
        self.double_features_before(places)


class BalancedSoftmax(Family):
    """jiawei-ren/BalancedMetaSoftmax-Classification: attach to ``networks["classifier"]``.

    The published code puts the related rows first, and sums the loss of the first half, of the second and of
    all, which is three times the mean over all: ``as_published=True``. Otherwise originals come first, and
    the loss is the mean over both.
    """

    name = "balanced_softmax"
    expects = "a classifier of features, itself or in nn.DataParallel: networks['classifier']"
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
        """As much as the published loss, if that is asked for."""
        return 3 * loss if self._as_published and self.active else loss


def _initialise_linear(module: nn.Module) -> None:
    """As RIDE initialises all linear layers of its models for CIFAR."""
    if isinstance(module, nn.Linear):
        nn.init.kaiming_normal_(module.weight)
