"""Classifiers of timm: every model with get_classifier()."""

from collections.abc import Callable
from typing import Any

from torch import nn

from batchformer.swap_in.before_last_layer import BeforeLastLayer, last_layers
from batchformer.swap_in.options import Options
from batchformer.swap_in.places import Place, path_of

_OF_TOKENS = "aux_head"


class TimmClassifier(BeforeLastLayer):
    """timm's models, and those that inherit from them, except the vision transformers with plain blocks.

    Several heads share a module, if they have one width. The place is before the last layer of each, after a
    batch norm of the head. Before a convolution it is BatchFormerV2, at each position.
    """

    names = ("timm",)
    expects = "get_classifier() of a model of timm"

    @classmethod
    def fits(cls, model: nn.Module) -> bool:
        """A model of timm with get_classifier()."""
        of_timm = any(each.__module__.startswith("timm.models.") for each in type(model).__mro__)
        return of_timm and callable(getattr(model, "get_classifier", None))

    @classmethod
    def takes_positions(cls, place: Place) -> bool:
        """Convolutions, and VOLO's auxiliary head, which takes all tokens."""
        return place.path == _OF_TOKENS or super().takes_positions(place)

    @classmethod
    def find_places(cls, model: nn.Module, options: Options) -> list[Place]:
        """The last layer of the classifier, or of each, as of a distilled model."""
        del options
        places, classifiers = [], _classifiers(model)
        classes = getattr(model, "num_classes", None)
        if classes == 0 or any(isinstance(classifier, nn.Identity) for classifier in classifiers):
            raise ValueError(
                f"model: expected one with a classifier, got a {type(model).__name__} without; "
                f"model.reset_classifier(num_classes) before attach()"
            )
        for classifier in classifiers:
            places += last_layers(path_of(classifier, model) or "", classifier, classes)
        return places


def _classifiers(model: nn.Module) -> list[nn.Module]:
    get: Callable[[], Any] = getattr(model, "get_classifier")  # noqa: B009  (nn.Module's attributes have a type)
    found = get()
    # VOLO adds to its logits what this gives for tokens, and does not call it a classifier.
    tokens = getattr(model, _OF_TOKENS, None) if getattr(model, "global_pool", None) else None
    heads = [*found, tokens] if isinstance(found, tuple) else [found, tokens]
    return [each for each in heads if each is not None]
