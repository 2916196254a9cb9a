"""RIDE, in its authors' code: its trainer compares training logits with labels."""

from dataclasses import replace

from torch import nn

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

    names = ("ride",)
    expects = "backbone.linears, one for each of backbone.num_experts (frank-xwang/RIDE-LongTailRecognition)"
    place = "before the classifiers of all experts"
    returns_originals = True

    @classmethod
    def fits(cls, model: nn.Module) -> bool:
        """A RIDE model of several experts; others, too, call a list of layers so."""
        backbone = getattr(model, "backbone", None)
        linears = getattr(backbone, "linears", None)
        return isinstance(linears, nn.ModuleList) and len(linears) == getattr(backbone, "num_experts", None)

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


def _initialise_linear(module: nn.Module) -> None:
    """As RIDE initialises all linear layers of its models for CIFAR."""
    if isinstance(module, nn.Linear):
        nn.init.kaiming_normal_(module.weight)
