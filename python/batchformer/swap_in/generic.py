"""Insertion by path, into any model: before classifiers (BatchFormer) or after blocks (BatchFormerV2)."""

from typing import ClassVar

from torch import nn

from batchformer.swap_in.family import Family
from batchformer.swap_in.make import token_modules
from batchformer.swap_in.options import Options
from batchformer.swap_in.places import Place, find, layout_of


class BeforeClassifiers(Family):
    """BatchFormer on the features that one or more classifiers take."""

    names = ("before",)
    takes = ("before", "shared", "outputs", "optional", "wrapped", "pairings")
    takes_labels = True

    @classmethod
    def find_places(cls, model: nn.Module, options: Options) -> list[Place]:
        """The classifiers."""
        return find(model, "before", options.before)

    def install(self, model: nn.Module, places: list[Place], options: Options) -> None:
        """At the inputs of the classifiers."""
        del model, options
        self.double_features_before(places)


class AfterBlocks(Family):
    """BatchFormerV2 on the tokens that one or more blocks give; what comes after sees twice the batch."""

    names = ("after",)
    takes: ClassVar[tuple[str, ...]] = (
        "after",
        "layout",
        "shared",
        "outputs",
        "optional",
        "wrapped",
        "pairings",
    )
    takes_labels = True

    @classmethod
    def find_places(cls, model: nn.Module, options: Options) -> list[Place]:
        """The blocks."""
        return find(model, "after", options.after)

    @classmethod
    def make_modules(cls, model: nn.Module, places: list[Place], options: Options) -> list[nn.Module]:
        """BatchFormerV2 of the blocks' layout."""
        layouts = {layout_of(place, options.layout) for place in places}
        if len(layouts) > 1:
            raise ValueError(f"layout: expected one for all places, got {sorted(layouts)}")
        return token_modules(model, places, layouts.pop(), options)

    def install(self, model: nn.Module, places: list[Place], options: Options) -> None:
        """At the outputs of the blocks."""
        del model, options
        self.double_tokens_after(places)
