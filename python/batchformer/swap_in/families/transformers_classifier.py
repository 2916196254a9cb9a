"""Classifiers of transformers that pool before they classify: of images, videos, audio and sequences."""

from torch import nn

from batchformer.swap_in import tasks
from batchformer.swap_in.family import Family
from batchformer.swap_in.options import Options
from batchformer.swap_in.places import Place, find

_TAKE_OTHERS = (  # than features [N, C]
    *tasks.TAKE_THE_LAST,  # of all tokens, where a subclass has a forward of its own
    "T5GemmaForSequenceClassification",
    "T5Gemma2ForSequenceClassification",
    "VideoPrismForVideoClassification",  # [N, 1, C]
    "SwiftFormerForImageClassification",  # two heads
)


class TransformersClassifier(Family):
    """BatchFormer on the pooled features `[N, C]` that the last layer, with one output a label, takes."""

    names = ("transformers_classifier",)
    expects = "an image, video, audio or sequence classification model (transformers)"
    place = "before the classifier"
    takes = ("outputs", "wrapped")
    takes_labels = True

    @classmethod
    def fits(cls, model: nn.Module) -> bool:
        """A model of such a task, except those that classify all tokens and pool afterwards."""
        pooling = getattr(getattr(model, "config", None), "classifier_pooling", None)
        takes_others = pooling == "late" or tasks.is_for(model, *_TAKE_OTHERS)  # late: of EuroBERT
        known = tasks.is_for(model, *tasks.CLASSIFICATION) and not takes_others
        return known and tasks.classifier_of(model) is not None

    @classmethod
    def find_places(cls, model: nn.Module, options: Options) -> list[Place]:
        """The last layer of the head, after all others."""
        del options
        return find(model, "before", tasks.classifier_of(model) or "")

    def install(self, model: nn.Module, places: list[Place], options: Options) -> None:
        """At the input of the classifier."""
        del model, options
        self.double_features_before(places)
