"""Classifiers of torchvision, of images and of videos."""

from torch import nn

from batchformer.swap_in.before_last_layer import BeforeLastLayer, last_layers
from batchformer.swap_in.options import Options
from batchformer.swap_in.places import Place

_NAMES = ("fc", "classifier", "head")
_OTHER_TASKS = ("detection", "segmentation", "optical_flow")


class TorchvisionClassifier(BeforeLastLayer):
    """torchvision's models that classify, and those that inherit from them; its ViT is a vision transformer.

    The auxiliary classifiers of GoogLeNet and Inception are before the place: their logits have N rows.
    """

    names = ("torchvision",)
    expects = "fc, classifier or head of a model of torchvision that classifies"

    @classmethod
    def fits(cls, model: nn.Module) -> bool:
        """A model of torchvision.models, for no other task than classes, with a classifier."""
        modules = [each.__module__.split(".") for each in type(model).__mro__]
        of_torchvision = any(
            module[:2] == ["torchvision", "models"] and module[2:3] and module[2] not in _OTHER_TASKS
            for module in modules
        )
        return of_torchvision and _name_of_classifier(model) is not None

    @classmethod
    def find_places(cls, model: nn.Module, options: Options) -> list[Place]:
        """The last layer of the classifier."""
        del options
        name = _name_of_classifier(model)
        assert name is not None, "the model fits"
        classifier = model.get_submodule(name)
        if isinstance(classifier, nn.Identity):
            raise ValueError(
                f"model: expected a {type(model).__name__} with a classifier, got nn.Identity() as "
                f"{name!r}; put one there before attach()"
            )
        return last_layers(name, classifier)


def _name_of_classifier(model: nn.Module) -> str | None:
    return next((name for name, _ in model.named_children() if name in _NAMES), None)
