"""What the models of all families have in common: where BatchFormer goes in, and the hooks that run it."""

import copy
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from batchformer import marks
from batchformer.marks import AtInput, Mark, Unmarked
from batchformer.swap_in import forward as forwards
from batchformer.swap_in import tokens
from batchformer.swap_in.compiled import Compiled
from batchformer.swap_in.entry import Entry
from batchformer.swap_in.hooks import Hooks
from batchformer.swap_in.make import feature_modules
from batchformer.swap_in.options import Options
from batchformer.swap_in.places import Place
from batchformer.swap_in.rules import Batch, Name, has_rows
from batchformer.swap_in.signature import Call, by_name, by_place, first_of, in_place, name_of, parameters
from batchformer.swap_in.streams import Streams
from batchformer.swap_in.traced import check_not_traced
from batchformer.swap_in.watch import Watch
from batchformer.targets import original, twice

Part = TypeVar("Part")


class Family:
    """Where BatchFormer goes in the models of one family, and the hooks that run it there.

    A forward of the model in training is followed from start to end (forward.py): each place that gets N
    samples doubles them, one that gets both streams transforms the second, and at the end every place has to
    have run. Doubled tensors are marked (marks.py), for later places and for the criterion. A place that runs
    outside of a forward of the model counts as a forward of its own.
    """

    names: ClassVar[tuple[str, ...]]  # of attach(); the first is the family's own
    expects: ClassVar[str]  # what such a model has, and whose code it is
    place: ClassVar[str] = "where it is said"  # where BatchFormer goes in by default
    recognised: ClassVar[bool] = True  # whether attach() recognises its models without a preset
    takes: ClassVar[tuple[str, ...]] = ()  # the options that it supports
    takes_paths: ClassVar[bool] = False  # whether `after` takes paths instead of indices
    carries_along: ClassVar[bool] = False  # whether tensors that go with the tokens are doubled, too
    takes_labels: ClassVar[bool] = False  # whether labels are doubled at the model's input
    answers: ClassVar[bool] = False  # whether the model computes the loss of both streams by itself
    own_loss: ClassVar[str] = ""  # the call with which it returns the loss of both streams
    returns_originals: ClassVar[bool] = False  # whatever `outputs` says: its scripts compare them with labels
    targets: ClassVar[tuple[str | int, ...] | None] = None  # of a criterion, if the user names none
    gives_pairs: ClassVar[bool] = False  # whether outputs are similarities between samples
    pairs_streams: ClassVar[bool] = True  # whether a criterion without targets is called for each pairing
    part_alone: ClassVar[str] = "which has BatchFormer, got one of a part of it"  # in the error about that

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
        """One module for all places, or one for each: BatchFormer, as wide as the places."""
        return feature_modules(model, places, options)

    def install(self, model: nn.Module, places: list[Place], options: Options) -> None:
        """Register the hooks."""
        raise NotImplementedError

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The output of the model, called as its scripts call it."""
        return self.model(*args, **kwargs)

    def arrange(self, both: Tensor, samples: int) -> Tensor:
        """Both streams of an output, in the order for a criterion, where the model returned the originals."""
        del samples
        return both

    def weigh(self, loss: Any) -> Any:
        """What a wrapped criterion returns, from what it computed."""
        return loss

    def __init__(self, attachment: Any, model: nn.Module, places: list[Place], options: Options) -> None:
        self.attachment = attachment
        self.model = model
        self.hooks = Hooks(model)
        self.pairings = options.pairings
        self.criteria = 0  # how many are wrapped
        self.watch = Watch()
        self.compiled = Compiled()
        self._own_sizes: dict[int, dict[Name, bool]] = {}  # of each classifier, see Batch
        self.entry = Entry(self, model, places, options)
        self.streams = Streams(self, places)
        self.hooks.inputs(model, self.entry.enter, first=True)
        self.install(model, places, options)
        self.hooks.output(model, self.entry.leave)
        self.hooks.output(model, self.entry.abandon, always=True)

    def __deepcopy__(self, memo: dict[Any, Any]) -> "Family":
        """A copy with the model; a copied part of the model, or criterion, belongs to this one, too."""
        copied = copied_with(self.model, self, memo)
        if copied is not self:
            for criterion in memo.pop(self._waiting, ()):
                criterion.belong_to(copied)
        return copied

    def mark_of(self, tensor: Tensor) -> Mark | None:
        """The mark of a tensor; Unmarked, if a graph computed it that ran op by op.

        So run those of the backend "eager" of torch.compile, and of others that return them as they are.
        """
        found = marks.find(tensor)
        if found is not None or tensor.grad_fn is None:
            return found
        return Unmarked() if self.has_computed(tensor) or marks.is_computed_by_the_op(tensor) else None

    def has_computed(self, tensor: Tensor) -> bool:
        """Whether a parameter of BatchFormer is in the history of a tensor; as inputs of a graph all are."""
        inside = {id(parameter) for parameter in self.attachment.parameters()}
        return any(id(leaf) in inside for leaf in marks.leaves_of(tensor))

    def adopt_later(self, criterion: Any, memo: dict[Any, Any]) -> None:
        """Note a copy of a criterion, for a copy of the model that is made later in the same deepcopy."""
        memo.setdefault(self._waiting, []).append(criterion)

    @property
    def _waiting(self) -> tuple[str, int]:
        return "copied criteria", id(self)  # a key of deepcopy's memo, whose others are integers

    @property
    def active(self) -> bool:
        """Whether a forward of the model now doubles the batch."""
        return bool(self.attachment.training and self.attachment.two_stream)

    def double_early(self, samples: int, tensor: Tensor) -> Callable[[Tensor], Tensor]:
        """Note that the batch is doubled before the first place, and return what doubles its tensors.

        Args:
            samples: N.
            tensor: one of the tensors that are doubled.
        """
        forward = self.streams.current(tensor)
        forward.early, forward.samples = True, samples

        def double(each: Tensor) -> Tensor:
            doubled: Tensor = twice(each)
            if not torch.compiler.is_compiling():
                marks.put_by_history(doubled, AtInput(forward, samples))
            return doubled

        return double

    def each_image_once(self, part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
        """Pre-hook of a part that sees each image once, as a backbone: its arguments, of the originals alone.

        Args:
            part: the module.
            args: of the part; the first argument is of the batch.
            kwargs: of the part.

        Raises:
            RuntimeError: a batch that the model has not doubled.
        """
        if not self.active:
            return None
        given = by_place(args, kwargs)
        batch = given[first_of(part.forward, given)]
        samples = self.streams.current(batch).samples
        if samples is None or len(batch) != 2 * samples:
            model = type(self.model).__name__
            raise RuntimeError(f"model: expected a call of {model}, {self.part_alone}")

        def originals(each: Any) -> Any:
            return original(each) if has_rows(each, 2 * samples) else each

        return tuple(map(originals, args)), {name: originals(each) for name, each in kwargs.items()}

    def double_features_before(self, places: Sequence[Place]) -> None:
        """Register hooks that give classifiers features of both streams."""
        for number, place in enumerate(places):
            self.streams.sides[number] = "before"
            self.hooks.inputs(place.module, functools.partial(self._double_features, number))

    def double_tokens_after(self, places: Sequence[Place]) -> None:
        """Register hooks that make blocks return tokens of both streams."""
        for number, place in enumerate(places):
            self.streams.sides[number] = "after"
            self.hooks.output(place.module, functools.partial(self._double_tokens, number))

    def overwrite_tokens_after(
        self, places: Sequence[Place], blocks: nn.Module, batch_axes: Mapping[str, int | None]
    ) -> None:
        """Register hooks that put related tokens into the second half of a batch doubled before.

        The blocks up to the first place get the first half alone, as the second is discarded there.

        Args:
            places: blocks.
            blocks: the list of all of them.
            batch_axes: see :meth:`take_originals_until`.
        """
        self.take_originals_until(places[0], blocks, batch_axes)
        self.double_tokens_after(places)

    def take_originals_until(
        self, place: Place, blocks: nn.Module, batch_axes: Mapping[str, int | None]
    ) -> None:
        """Register hooks that give the blocks up to the place the first half of a batch doubled before.

        Args:
            place: one of the blocks.
            blocks: the list of all of them.
            batch_axes: which axis of each argument of a block is the batch; None, if it has no such axis.
                Blocks that take anything else are run on both halves.
        """
        for block in blocks.children():
            names = tuple(inspect.signature(block.forward).parameters)
            if set(names) <= set(batch_axes):
                self.hooks.inputs(block, functools.partial(self._take_originals, names, batch_axes))
            if block is place.module:
                break

    def _double_features(
        self, number: int, place: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None
    ) -> Any:
        if not self.trains(place):
            return None
        by_keyword = kwargs or {}
        given = by_place(args, by_keyword)
        first = first_of(place.forward, given)
        check_not_traced([given[first]])
        y = self.relate_features(number, place, given[first])
        others = [key for key in given if key != first]
        if self.active and others:  # such as the labels that an angular margin takes
            own_sizes = self._own_sizes.setdefault(number, {})
            batch = Batch([y.shape[0] // 2], [], [], own_sizes)
            names = parameters(place.forward)
            for key in others:
                given |= batch.double({key: given[key]}, {key: name_of(names, key)})
            own_sizes |= batch.own_sizes
        given[first] = y
        call = in_place(given, args, by_keyword)
        return call[0] if kwargs is None else call  # torch.ao copies hooks as ones without keywords

    def relate_features(self, number: int, place: nn.Module, features: Tensor) -> Tensor:
        """What a classifier gets: features of both streams, or the related ones alone."""
        return self.streams.relate(number, place, features)

    def _double_tokens(self, number: int, place: nn.Module, args: Any, output: Any) -> Any:
        del args
        if not self.trains(place):
            return None
        check_not_traced([output])
        return tokens.with_first(
            output, self.streams.relate(number, place, tokens.first(output, self.streams.place(number)))
        )

    def trains(self, place: nn.Module) -> bool:
        """Whether a place has something to do, in the forward of the model or by itself."""
        if self.streams.watching:
            return True
        if self.attachment.training:
            # A part that was taken out of the model, as by torch.fx, follows its own mode.
            inside = torch.compiler.is_compiling() or forwards.current(self) is not None
            return inside or place.training or marks.in_backward()
        if place.training and not self.model.training and torch.is_grad_enabled():
            self.watch.evaluating()
        return False

    def _take_originals(
        self,
        names: Sequence[str],
        batch_axes: Mapping[str, int | None],
        block: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Call | None:
        del block
        if not self.active:
            return None
        given = by_name(names, args, kwargs)
        axes = {name: axis for name, axis in batch_axes.items() if axis is not None and name in given}
        if not all(given[name] is None or isinstance(given[name], Tensor) for name in axes):
            return None  # a mask of another kind
        name = next(iter(axes))  # the tokens
        rows = given[name].shape[axes[name]]
        forward = self.streams.current(given[name])
        samples = rows // 2 if forward.samples is None else forward.samples  # a checkpoint that runs again
        for name, axis in axes.items():
            value = given[name]
            if value is not None and value.shape[axis] == 2 * samples:
                given[name] = value.narrow(axis, 0, samples)
        return (), given


def copied_with(model: nn.Module, part: Part, memo: dict[int, Any]) -> Part:
    """What belongs to a model, for a deep copy: a copy if the model is copied, else itself."""
    return deep_copied(part, memo) if id(model) in memo else part


def deep_copied(part: Part, memo: dict[int, Any]) -> Part:
    """A deep copy, as an object without a ``__deepcopy__`` of its own has it."""
    copied = type(part).__new__(type(part))
    memo[id(part)] = copied
    copied.__dict__.update(copy.deepcopy(part.__dict__, memo))
    return copied
