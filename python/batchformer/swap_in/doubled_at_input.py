"""Models of transformers that pass tensors of the batch's size along, and compute their loss themselves.

Their heads size views by the batch of the images, and take the labels, so both are doubled at the model's
input. The backbone still sees every image once: its input is halved, its output doubled. The blocks up to the
insertion get the first half alone; the module makes the second.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

from torch import nn

from batchformer.swap_in import labels
from batchformer.swap_in.family import Family
from batchformer.swap_in.make import token_modules
from batchformer.swap_in.options import Options
from batchformer.swap_in.places import Place, find_blocks
from batchformer.swap_in.rules import has_rows, leaves, map_tensors
from batchformer.swap_in.signature import Call, by_name, parameters
from batchformer.targets import duplicate

_PAST_THE_BACKBONE = ("inputs_embeds", "encoder_outputs")


class Parts(NamedTuple):
    """Paths of the parts of such a model."""

    backbone: str  # sees every image once
    blocks: str  # the list of blocks, after any of which BatchFormer can go
    layout: str = "NLC"
    further: tuple[str, ...] = ()  # further such lists: one for each level of a pyramid


class DoubledAtInput(Family):
    """A model whose batch is doubled at its input, and halved for its backbone."""

    takes: ClassVar[tuple[str, ...]] = ("after", "shared", "wrapped")
    takes_labels = True
    carries_along = True
    batch_axes: ClassVar[Mapping[str, int | None]] = {}
    """Which axis of each argument of a block is the batch; None, if it has no such axis."""

    @classmethod
    def parts(cls, model: nn.Module) -> Parts | None:
        """The paths of the model's parts; None if it is not of the family."""
        raise NotImplementedError

    @classmethod
    def fits(cls, model: nn.Module) -> bool:
        """A model of the family, with or without a head."""
        return cls.parts(model) is not None

    @classmethod
    def find_places(cls, model: nn.Module, options: Options) -> list[Place]:
        """Blocks, the first if none is named; with several lists, those of the same indices in each."""
        lists = cls._lists(cls._parts(model))
        return [place for path in lists for place in find_blocks(model, path, options.after, default=0)]

    @classmethod
    def make_modules(cls, model: nn.Module, places: list[Place], options: Options) -> list[nn.Module]:
        """BatchFormerV2."""
        return token_modules(model, places, cls._parts(model).layout, options)

    def install(self, model: nn.Module, places: list[Place], options: Options) -> None:
        """At the input, around the backbone, and at the outputs of the blocks."""
        del options
        parts = self._parts(model)
        self.double_at_input(model)
        self.hooks.output(model.get_submodule(parts.backbone), self._double_maps)
        for path in self._lists(parts):
            first = next(place for place in places if place.path.startswith(f"{path}."))
            self.take_originals_until(first, model.get_submodule(path), self.batch_axes)
        self.double_tokens_after(places)

    def double_at_input(self, model: nn.Module) -> None:
        """Double the arguments of the model, and halve those of its backbone, whose output has N entries."""
        self._names = parameters(model.forward)
        self.hooks.inputs(model, self._double_arguments)
        self.hooks.inputs(model.get_submodule(self._parts(model).backbone), self.each_image_once)

    def once_for_both(self, part: nn.Module) -> None:
        """Halve the inputs of a part of the model, where both halves are equal, and double its outputs."""
        self.hooks.inputs(part, self.each_image_once)
        self.hooks.output(part, self._double_maps)

    @classmethod
    def _parts(cls, model: nn.Module) -> Parts:
        parts = cls.parts(model)
        assert parts is not None, "the model fits"
        return parts

    @staticmethod
    def _lists(parts: Parts) -> tuple[str, ...]:
        return (parts.blocks, *parts.further)

    def _double_arguments(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Call | None:
        """Doubles all that has an entry for each image; labels were doubled when the forward began."""
        if not self.active:
            return None
        del model
        given = by_name(self._names, args, kwargs)
        for name in _PAST_THE_BACKBONE:
            if given.get(name) is not None:
                raise ValueError(f"{name}: expected None in training with BatchFormer, got a value")
        images = given.get("pixel_values")
        if images is None:  # as in a user's model around one of transformers
            raise ValueError(
                "pixel_values: expected images of that name in training with BatchFormer, got None"
            )
        samples = len(images)
        self.double_early(samples, images)
        return (), {
            name: duplicate(value) if has_rows(value, samples) and not labels.are(name) else value
            for name, value in given.items()
        }

    def _double_maps(self, backbone: nn.Module, args: Any, output: Any) -> Any:
        """Doubles what has an entry for each image: maps, their masks and positions."""
        del backbone, args
        if not self.active:
            return None
        first = next(leaves(output))
        samples = self.streams.current(first).samples
        double = self.double_early(samples, first)
        return map_tensors(output, lambda each: double(each) if has_rows(each, samples) else each)
