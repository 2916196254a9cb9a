"""Models of transformers that carry things of the size of the batch along, and compute their loss themselves.

Their heads size views by the batch of the images, and take the labels, so both are doubled at the door. The
backbone still sees every image once: its input is halved, its output doubled. The blocks up to the insertion
take the first half alone; the module makes the second.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from batchformer.swap_in import labels
from batchformer.swap_in.family import Family
from batchformer.swap_in.make import token_modules
from batchformer.swap_in.options import Options
from batchformer.swap_in.places import Place, find_blocks
from batchformer.swap_in.rules import leaves, map_tensors
from batchformer.swap_in.signature import Call, by_name, parameters
from batchformer.targets import duplicate, original

_PAST_THE_BACKBONE = ("inputs_embeds", "encoder_outputs")


class Parts(NamedTuple):
    """Where things are in such a model: paths of modules."""

    backbone: str  # sees every image once
    blocks: str  # the list of those behind which BatchFormer may go in
    layout: str = "NLC"


class DoubledAtTheDoor(Family):
    """A model whose batch is doubled at its door, and halved for its backbone."""

    takes: ClassVar[tuple[str, ...]] = ("after", "shared", "wrapped")
    takes_labels = True
    carries_along = True
    batch_axes: ClassVar[Mapping[str, int | None]] = {}
    """Which axis of each argument of a block is the batch; None, if it has no such axis."""

    @classmethod
    def parts(cls, model: nn.Module) -> Parts | None:
        """Where things are in the model; None if it is not of the family."""
        raise NotImplementedError

    @classmethod
    def fits(cls, model: nn.Module) -> bool:
        """A model of the family, with or without a head."""
        return cls.parts(model) is not None

    @classmethod
    def find_places(cls, model: nn.Module, options: Options) -> list[Place]:
        """Blocks, the first if none is named."""
        return find_blocks(model, cls._parts(model).blocks, options.after, default=0)

    @classmethod
    def make_modules(cls, model: nn.Module, places: list[Place], options: Options) -> list[nn.Module]:
        """BatchFormerV2."""
        return token_modules(model, places, cls._parts(model).layout, options)

    def install(self, model: nn.Module, places: list[Place], options: Options) -> None:
        """At the door, around the backbone, and at the outputs of the blocks."""
        del options
        parts = self._parts(model)
        self._names = parameters(model.forward)
        self.hooks.inputs(model, self._double_arguments)
        backbone = model.get_submodule(parts.backbone)
        self.hooks.inputs(backbone, self._each_image_once)
        self.hooks.output(backbone, self._double_maps)
        self.overwrite_tokens_after(places, model.get_submodule(parts.blocks), self.batch_axes)

    @classmethod
    def _parts(cls, model: nn.Module) -> Parts:
        parts = cls.parts(model)
        assert parts is not None, "the model fits"
        return parts

    def _double_arguments(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Call | None:
        """Everything with an entry for each image; labels were doubled when the model was entered."""
        if not self.active:
            return None
        del model
        given = by_name(self._names, args, kwargs)
        for name in _PAST_THE_BACKBONE:
            if given.get(name) is not None:
                raise ValueError(f"{name}: expected None in training with BatchFormer, got a value")
        images = given["pixel_values"]
        samples = len(images)
        self.double_early(samples, images)
        return (), {
            name: duplicate(value) if _has_rows(value, samples) and not labels.are(name) else value
            for name, value in given.items()
        }

    def _each_image_once(
        self, backbone: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Call | None:
        del backbone
        if not self.active:
            return None
        given = [*args, *kwargs.values()]
        samples = self.streams.current(given[0]).samples
        if samples is None or len(given[0]) != 2 * samples:
            model = type(self.model).__name__
            raise RuntimeError(
                f"model: expected a call of {model}, which has BatchFormer, got one of a part of it"
            )

        def once(each: Any) -> Any:
            return original(each) if _has_rows(each, 2 * samples) else each

        return tuple(map(once, args)), {name: once(each) for name, each in kwargs.items()}

    def _double_maps(self, backbone: nn.Module, args: Any, output: Any) -> Any:
        """Maps, their masks and positions: what has an entry for each image."""
        del backbone, args
        if not self.active:
            return None
        first = next(iter(leaves(output)))
        samples = self.streams.current(first).samples
        at_door = self.double_early(samples, first)
        return map_tensors(output, lambda each: at_door(each) if _has_rows(each, samples) else each)


def _has_rows(value: Any, rows: int) -> bool:
    return isinstance(value, Tensor) and value.dim() > 1 and len(value) == rows
