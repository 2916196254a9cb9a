"""Long-tailed recognition: RIDE and Balanced Softmax, whose trainers compare training logits with labels."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from batchformer.swap_in import rows
from batchformer.swap_in.attachment import Criterion
from batchformer.swap_in.family import Family
from batchformer.swap_in.make import feature_modules
from batchformer.swap_in.options import Options
from batchformer.swap_in.places import Place, input_width

_CIFAR_WIDTH = 128  # up to here RIDE's models are those for CIFAR


class Ride(Family):
    """frank-xwang/RIDE-LongTailRecognition: one module before the classifiers of all experts.

    The published results come from one stream, the related features instead of the original ones:
    ``reproduce=True``. The number of heads and, for CIFAR, the initialisation are the official ones.
    """

    name = "ride"
    expects = "backbone.linears, a classifier for each expert (frank-xwang/RIDE-LongTailRecognition)"
    takes = ("reproduce",)

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
        own = {"nhead": 1 if width <= _CIFAR_WIDTH else 4, "two_stream": not options.reproduce}
        options = replace(options, module=own | options.module)
        modules = feature_modules(model, places, options, [width] * len(places))
        if width <= _CIFAR_WIDTH:
            modules[0].apply(_initialise_linear)
        return modules

    def install(self, model: nn.Module, places: list[Place], options: Options) -> None:
        """At the inputs of the classifiers, and at the output, for the trainer's meters."""
        del options
        self.double_features_before(places)
        self.hook_output(model, self.split_output)

    def wrap(self, criterion: Criterion, *, targets: Sequence[str | int] | None = None) -> Criterion:
        """See :meth:`Attachment.wrap`; what the trainer passes as extra_info is no target."""
        return super().wrap(criterion, targets=targets or (1, "target", "teacher"))

    def rejoin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> rows.Call:
        """Also the experts' logits `[N, E, K]`, which the trainer hands on as a view `[E, N, K]`."""
        extra = kwargs.get("extra_info") or {}
        logits = extra.get("logits")  # of the CIFAR models a list, which has never been split
        experts = [related for original, related in self._stash if original.dim() == 3]
        if isinstance(logits, Tensor) and experts:
            logits = torch.cat([logits, experts[0].transpose(0, 1)], dim=1)  # [E, 2N, K]
            kwargs = kwargs | {"extra_info": extra | {"logits": logits}}
        return super().rejoin(args, kwargs)


class BalancedSoftmax(Family):
    """jiawei-ren/BalancedMetaSoftmax-Classification: attach to ``networks["classifier"]``.

    The published code puts the related rows first, and sums the loss of the first half, of the second and of
    all, which is three times the mean over all: ``reproduce=True``. Otherwise originals come first, and the
    loss is the mean over both.
    """

    name = "balanced_softmax"
    expects = "a classifier of features, itself or in nn.DataParallel: networks['classifier']"
    takes = ("reproduce",)

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
        """Outside of nn.DataParallel: at the input, and at the output, for the trainer's meters."""
        self._reproduce = options.reproduce
        self.double_features_before(places)
        self.hook_output(model, self.split_output)

    def wrap(self, criterion: Criterion, *, targets: Sequence[str | int] | None = None) -> Criterion:
        """See :meth:`Attachment.wrap`; criteria are modules here."""
        wrapped = super().wrap(criterion, targets=targets)
        if self._reproduce and isinstance(criterion, nn.Module):
            self.hook_output(criterion, self._weigh)
        return wrapped

    def joined(self, tensor: Tensor) -> Tensor:
        """Both streams, in the published order if that is asked for."""
        joined = super().joined(tensor)
        return joined.roll(len(tensor), 0) if self._reproduce and joined is not tensor else joined

    def _weigh(self, criterion: nn.Module, args: Any, loss: Tensor) -> Tensor | None:
        del criterion, args
        return 3 * loss if self.active else None


def _initialise_linear(module: nn.Module) -> None:
    """As RIDE initialises all linear layers of its models for CIFAR."""
    if isinstance(module, nn.Linear):
        nn.init.kaiming_normal_(module.weight)
