"""What all places have in common: finding them, making the modules, and the hooks that run them."""

import functools
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from batchformer.modules.batchformer_v2 import BatchFormerV2
from batchformer.swap_in import rows
from batchformer.swap_in.attachment import Attachment, check_replica
from batchformer.swap_in.make import feature_modules
from batchformer.swap_in.options import Options
from batchformer.swap_in.places import Place, check_not_split


class Family(Attachment):
    """An attachment that knows where things are in the models of one family."""

    name: ClassVar[str]
    expects: ClassVar[str]  # what such a model has, and whose it is
    takes: ClassVar[tuple[str, ...]] = ()  # the options that mean something to it

    @classmethod
    def fits(cls, model: nn.Module) -> bool:
        """Whether the model is one of the family."""
        raise NotImplementedError

    @classmethod
    def find_places(cls, model: nn.Module, options: Options) -> list[Place]:
        """Where in the model to insert."""
        raise NotImplementedError

    @classmethod
    def make_modules(cls, model: nn.Module, places: list[Place], options: Options) -> list[nn.Module]:
        """One module for all places, or one for each: BatchFormer of the width that the places tell."""
        return feature_modules(model, places, options)

    def install(self, model: nn.Module, places: list[Place], options: Options) -> None:
        """Register the hooks."""
        raise NotImplementedError

    def __init__(self, model: nn.Module, options: Options) -> None:
        # All that can be refused is refused before the model is touched.
        places = self.find_places(model, options)
        check_not_split(model, places)
        super().__init__(model, places, self.make_modules(model, places, options))
        self.install(model, places, options)
        if options.rejoin:
            self.hook_output(model, self.split_output)

    def double_features_before(self, places: Sequence[Place]) -> None:
        """Features of both streams for classifiers."""
        for number, place in enumerate(places):
            self.hook_inputs(place.module, functools.partial(self._double_features, number))

    def double_tokens_after(self, places: Sequence[Place]) -> None:
        """Tokens of both streams from blocks: twice the batch after the first place."""
        for number, place in enumerate(places):
            self.hook_output(place.module, functools.partial(self._double_tokens, number))

    def overwrite_tokens_after(
        self, places: Sequence[Place], blocks: nn.Module, batch_axes: Mapping[str, int | None]
    ) -> None:
        """Related tokens in the second half, in a network whose batch has been doubled before.

        The second half would be thrown away at the first place: the blocks up to there get the first alone.

        Args:
            places: blocks.
            blocks: the list of all of them.
            batch_axes: which axis of each argument of a block is the batch; None, if it has no such axis.
                Blocks that take anything else are run on both halves.
        """
        for block in blocks.children():
            names = tuple(inspect.signature(block.forward).parameters)
            if set(names) <= set(batch_axes):
                self.hook_inputs(block, functools.partial(self._take_originals, names, batch_axes))
            if block is places[0].module:
                break
        for number, place in enumerate(places):
            self.hook_output(place.module, functools.partial(self._overwrite_tokens, number))

    def at(self, number: int) -> Any:
        """The module of a place: its own, or the one that all share."""
        return self.inserted[number if len(self.inserted) > 1 else 0]

    def _double_features(
        self, number: int, place: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> rows.Call | None:
        if not self.training:
            return None
        check_replica(place)
        if args:
            self.samples = len(args[0])
            return (self.at(number)(args[0])[0], *args[1:]), kwargs
        name, features = next(iter(kwargs.items()))
        self.samples = len(features)
        return args, kwargs | {name: self.at(number)(features)[0]}

    def _double_tokens(self, number: int, place: nn.Module, args: Any, output: Any) -> Any:
        del args
        if not self.training:
            return None
        check_replica(place)
        module, tokens = self.at(number), rows.first(output)
        if not isinstance(module, BatchFormerV2):  # features
            self.samples = len(tokens)
            return rows.with_first(output, module(tokens)[0])
        if number == 0 or not self.two_stream:
            self.samples = tokens.shape[module.batch_axis]
            return rows.with_first(output, module(tokens))
        return rows.with_first(output, module(tokens, streams=2))

    def _overwrite_tokens(self, number: int, place: nn.Module, args: Any, output: Any) -> Any:
        if number > 0 or not self.active:
            return self._double_tokens(number, place, args, output)
        check_replica(place)
        module, tokens = self.at(0), rows.first(output)
        return rows.with_first(output, module(self._originals(tokens, module.batch_axis)))

    def _take_originals(
        self,
        names: Sequence[str],
        batch_axes: Mapping[str, int | None],
        block: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> rows.Call | None:
        del block
        if not self.active:
            return None
        given = rows.by_name(names, args, kwargs)
        axes = {name: axis for name, axis in batch_axes.items() if axis is not None and name in given}
        if not all(given[name] is None or isinstance(given[name], Tensor) for name in axes):
            return None  # a mask of another kind
        return (), given | {name: self._originals(given[name], axis) for name, axis in axes.items()}

    def _originals(self, value: Tensor | None, axis: int) -> Tensor | None:
        """The first half of what has both streams along the axis."""
        doubled = value is not None and value.shape[axis] == 2 * self.samples
        return value.narrow(axis, 0, self.samples) if value is not None and doubled else value
