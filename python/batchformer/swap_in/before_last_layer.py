"""Insertion before the layers that compute the classes, in classifiers of one library, without a path."""

import math
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from batchformer.swap_in.family import Family
from batchformer.swap_in.make import feature_modules, token_modules
from batchformer.swap_in.options import Options
from batchformer.swap_in.places import Place, input_width

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_HEADS = 4  # of BatchFormer; 2 or 1 if they do not divide the width


class BeforeLastLayer(Family):
    """A place before each layer that computes the classes: after a batch norm of the head, if it has one.

    A batch norm after the place would include the related rows in the statistics that evaluation uses.
    A linear layer takes features, for BatchFormer. A convolution takes maps, even of one position, for
    BatchFormerV2 at each of them.
    """

    place = "before the classifier"
    takes = ("shared", "outputs", "wrapped")
    takes_labels = True

    @classmethod
    def takes_positions(cls, place: Place) -> bool:
        """Whether the layer is applied to several positions of a sample."""
        return isinstance(place.module, _CONVOLUTIONS)

    @classmethod
    def make_modules(cls, model: nn.Module, places: list[Place], options: Options) -> list[nn.Module]:
        """One module for all layers, or one for each if they take features of several widths."""
        widths = [_width(place.module) for place in places]
        if len(set(widths)) > 1:
            options = replace(options, shared=False)
        heads = math.gcd(_HEADS, *(width or 0 for width in widths))
        options = replace(options, module={"nhead": heads} | options.module)
        if any(map(cls.takes_positions, places)):
            return token_modules(model, places, "NLC", options, widths)
        return feature_modules(model, places, options, widths)

    def install(self, model: nn.Module, places: list[Place], options: Options) -> None:
        """At the inputs of the layers."""
        del model, options
        self._by_position = any(map(self.takes_positions, places))
        self.double_features_before(places)

    def relate_features(self, number: int, place: nn.Module, features: Tensor) -> Tensor:
        """Relates features, or maps and tokens at each of their positions."""
        if not self._by_position:
            return super().relate_features(number, place, features)
        channels = 1 if isinstance(place, _CONVOLUTIONS) else -1
        channels_last = features.movedim(channels, -1)  # [N, ..., C]
        tokens = channels_last.reshape(features.shape[0], -1, channels_last.shape[-1])  # [N, L, C]
        both = self.streams.relate(number, place, tokens)  # [2N, L, C]
        return both.reshape(-1, *channels_last.shape[1:]).movedim(-1, channels)  # as features


def last_layers(path: str, classifier: nn.Module, classes: int | None = None) -> list[Place]:
    """The layers of a classifier that compute the classes; itself if it is one, or has none that is known.

    Args:
        path: of the classifier.
        classifier: a layer, layers in their order, a list of classifiers side by side, or another head.
        classes: how many, for another head that has several such layers.
    """
    if isinstance(classifier, nn.ModuleList):
        children = classifier.named_children()
        return [each for name, child in children for each in last_layers(f"{path}.{name}", child, classes)]
    layers = [
        Place(f"{path}.{name}" if name else path, layer)
        for name, layer in classifier.named_modules()
        if isinstance(layer, (nn.Linear, *_CONVOLUTIONS))
    ]
    if not isinstance(classifier, nn.Sequential):
        named = [layer for layer in layers if _outputs(layer.module) == classes]
        # A layer with as many outputs by chance feeds another of them.
        fed = [any(_width(later.module) == classes for later in named[i + 1 :]) for i in range(len(named))]
        layers = [layer for layer, feeds in zip(named, fed, strict=True) if not feeds] or layers[-1:]
        return layers or [Place(path, classifier)]
    return layers[-1:] or [Place(path, classifier)]


def _width(layer: nn.Module) -> int | None:
    return layer.in_channels if isinstance(layer, _CONVOLUTIONS) else input_width(layer)


def _outputs(layer: nn.Module) -> Any:
    return layer.out_channels if isinstance(layer, _CONVOLUTIONS) else layer.out_features
