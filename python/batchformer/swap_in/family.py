"""What the models of all families have in common: how a forward is followed, and what happens at a place."""

import copy
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor, fx, nn
from torch.nn.parallel import DistributedDataParallel

from batchformer import marks
from batchformer.marks import AtTheDoor, Doubled, Hidden, Mark, Split
from batchformer.modules.batchformer_v2 import BatchFormerV2
from batchformer.swap_in import forward as forwards
from batchformer.swap_in import labels, split, tokens
from batchformer.swap_in.forward import Forward
from batchformer.swap_in.hooks import Hooks
from batchformer.swap_in.make import feature_modules
from batchformer.swap_in.options import Options
from batchformer.swap_in.places import Place
from batchformer.swap_in.rules import Batch, map_tensors
from batchformer.swap_in.signature import Call, by_name, in_place, parameters
from batchformer.swap_in.watch import Watch, shared
from batchformer.targets import twice


class Family:
    """Where things are in the models of one family, and the hooks that run BatchFormer there.

    A forward of the model in training is followed from its first line to its last (forward.py): each place
    that gets N samples doubles them by itself, one that gets both streams transforms the second, and at the
    end all places have to have run. What is doubled is marked (marks.py), for places further down and for
    the criterion. A place that runs outside of a forward of the model is a forward by itself.
    """

    name: ClassVar[str]
    expects: ClassVar[str]  # what such a model has, and whose it is
    takes: ClassVar[tuple[str, ...]] = ()  # the options that mean something to it
    takes_labels: ClassVar[bool] = False  # whether labels that the model gets are doubled at its door
    answers: ClassVar[bool] = False  # whether the model computes the loss of both streams by itself
    returns_originals: ClassVar[bool] = False  # whatever `outputs` says: its scripts compare them with labels
    targets: ClassVar[tuple[str | int, ...] | None] = None  # of a criterion for which the user names none

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

    def arrange(self, both: Tensor, samples: int) -> Tensor:
        """Both streams of an output, as the criterion gets them where the model returned the originals."""
        del samples
        return both

    def weigh(self, loss: Any) -> Any:
        """What a wrapped criterion returns, from what it computed."""
        return loss

    def __init__(self, attachment: Any, model: nn.Module, places: list[Place], options: Options) -> None:
        self.attachment = attachment
        self.model = model
        self.hooks = Hooks(model)
        self.criteria = 0  # how many are wrapped
        self.frozen_on_purpose = False
        self._places = places
        self._required = [number for number, place in enumerate(places) if place.path not in options.optional]
        self._originals_alone = self.returns_originals or options.outputs == "originals"
        self._wrapped = options.wrapped
        self._arguments = parameters(model.forward)
        self._watch = Watch()
        self._ddp_checked = False
        self._arrivals: dict[tuple[int, int], bool | None] = {}  # see _had_both_streams
        # What a compiled graph cannot tell by marks.
        self._traced: Forward | None = None
        self._last_samples: Any = None
        self._last_split: list[tuple[Tensor, Tensor]] = []
        self.hooks.inputs(model, self._enter, first=True)
        self.install(model, places, options)
        self.hooks.output(model, self._leave)
        self.hooks.output(model, self._abandon, always=True)

    def __getstate__(self) -> dict[str, Any]:
        """Without what a compiled graph left: it has a history, which cannot be copied or saved."""
        return self.__dict__ | {"_last_split": [], "_traced": None}

    def __deepcopy__(self, memo: dict[int, Any]) -> "Family":
        """With the model a copy; a copied part of it, or criterion, belongs to this one, too."""
        if id(self.model) not in memo:
            return self
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        copied.__dict__.update(copy.deepcopy(self.__getstate__(), memo))
        return copied

    # The forward of the model.

    @property
    def active(self) -> bool:
        """Whether a forward of the model now doubles the batch."""
        return bool(self.attachment.training and self.attachment.two_stream)

    def current(self, x: Tensor) -> Forward:
        """The forward that a tensor at a place belongs to."""
        if torch.compiler.is_compiling():
            return self._traced or Forward(self, answered=True)
        forward = forwards.current(self)
        if forward is None:  # a checkpoint runs again, or a part of the model by itself
            mark = marks.find(x)
            if isinstance(mark, Doubled) and mark.forward.owner is self:
                known: Forward = mark.forward
                return known
            forward = self._new_forward()
        return forward

    def _new_forward(self) -> Forward:
        return Forward(self, answered=self.answers or not self._wrapped or marks.in_backward())

    def _enter(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
        if not self.attachment.training:
            return None
        check_replica(model)
        forward = self._new_forward() if not torch.compiler.is_compiling() else Forward(self, answered=True)
        if torch.compiler.is_compiling():
            if torch.compiler.is_exporting():
                _raise_traced()
            self._traced, self._last_split = forward, []
        else:
            self._check_traced(args)
            self._check_data_parallel()
            if not self.frozen_on_purpose:
                self._watch.forward(model, self.attachment.inserted)
            forwards.enter(forward)
        if not (self.takes_labels and self.active):
            return None
        if by_name(self._arguments, args, kwargs).get("return_loss"):
            raise ValueError(
                "return_loss: expected none in training with BatchFormer, as it contrasts the samples of a "
                "batch, and a related row would be a negative of its own original, got True"
            )
        args, kwargs, forward.labels = labels.double(self._arguments, args, kwargs)
        return args, kwargs

    def _leave(self, model: nn.Module, args: Any, output: Any) -> Any:
        del args
        if torch.compiler.is_compiling():
            forward, self._traced = self._traced, None
        else:
            forward = forwards.leave(self)
        if forward is None:  # evaluation
            if not torch.compiler.is_compiling() and torch.is_grad_enabled():
                map_tensors(output, _mark_single)
            return None
        for number in self._required:
            if number not in forward.ran:
                self._raise_not_run(number)
        if not self.active:
            return None
        self._last_samples = forward.samples
        if torch.compiler.is_compiling():
            split_here = functools.partial(self._end_of_compiled, forward)
            return map_tensors(output, split_here) if self._originals_alone else None
        output = map_tensors(output, functools.partial(self._end, forward))
        self._check_answer(model, forward, output)
        return output

    def _end(self, forward: Forward, tensor: Tensor) -> Tensor:
        """An output of the model, marked; the originals alone, if that is what it returns."""
        mark = marks.find(tensor)
        if (isinstance(mark, Hidden) or (mark is None and forward.blind)) and forward.samples is not None:
            mark = Doubled(forward, forward.samples) if 2 * forward.samples in tensor.shape else None
        if not isinstance(mark, Doubled) or isinstance(mark, Split):
            return _mark_single(tensor) if mark is None else tensor
        marks.put(tensor, Doubled(mark.forward, mark.samples))
        return split.take_originals(tensor, mark) if self._originals_alone else tensor

    def _end_of_compiled(self, forward: Forward, tensor: Tensor) -> Tensor:
        doubled = forward.samples is not None and tensor.dim() > 0
        if not (self._originals_alone and doubled and tensor.shape[0] == 2 * forward.samples):
            return tensor
        original, related = tensor.chunk(2)
        self._last_split.append((original, related))
        return original

    def _check_answer(self, model: nn.Module, forward: Forward, output: Any) -> None:
        """Raise RuntimeError where a model that computes its loss from labels was given none."""
        if forward.answered or not self.takes_labels or not torch.is_grad_enabled():
            return
        if forward.labels is not None:
            scalars: list[Tensor] = []
            map_tensors(output, lambda tensor: scalars.append(tensor) if tensor.dim() == 0 else tensor)
            forward.answered = any(scalar.requires_grad for scalar in scalars)
        elif self.criteria == 0 and labels.has_own_loss(model, self._arguments):
            raise RuntimeError(
                f"labels: expected those of {type(model).__name__} in the call, or a wrapped criterion, as "
                f"the outputs have both streams, got neither; with transformers' Trainer and label smoothing "
                f"trainer.label_smoother = attachment.wrap(trainer.label_smoother), else wrap what computes "
                f"the loss, or attach(..., wrapped=False) if the script doubles the targets"
            )

    def _abandon(self, model: nn.Module, args: Any, output: Any) -> None:
        """The forward has raised, if it is still under way here."""
        del model, args, output
        if not torch.compiler.is_compiling():
            forwards.leave(self)

    def double_early(self, samples: int, tensor: Tensor) -> Callable[[Tensor], Tensor]:
        """Note that the batch is doubled before the first place, and return what doubles its tensors.

        Args:
            samples: N.
            tensor: one of the tensors that are doubled.
        """
        forward = self.current(tensor)
        forward.early, forward.samples = True, samples

        def at_door(each: Tensor) -> Tensor:
            doubled: Tensor = twice(each)
            if not torch.compiler.is_compiling() and doubled.grad_fn is not None:
                marks.put_by_history(doubled, AtTheDoor(forward, samples))
            return doubled

        return at_door

    # At a place.

    def double_features_before(self, places: Sequence[Place]) -> None:
        """Features of both streams for classifiers."""
        for number, place in enumerate(places):
            self.hooks.inputs(place.module, functools.partial(self._double_features, number))

    def double_tokens_after(self, places: Sequence[Place]) -> None:
        """Tokens of both streams from blocks."""
        for number, place in enumerate(places):
            self.hooks.output(place.module, functools.partial(self._double_tokens, number))

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
                self.hooks.inputs(block, functools.partial(self._take_originals, names, batch_axes))
            if block is places[0].module:
                break
        self.double_tokens_after(places)

    def at(self, number: int) -> Any:
        """The module of a place: its own, or the one that all share."""
        inserted = self.attachment.inserted
        return inserted[number if len(inserted) > 1 else 0]

    def relate(self, number: int, place: nn.Module, x: Tensor) -> Tensor:
        """What comes out at a place: x with both streams, or the related rows alone."""
        check_replica(place)
        if torch.compiler.is_compiling() and self._traced is None:
            outside: Tensor = self._relate_outside_of_the_graph(number, x)
            return outside
        return self._relate(self.current(x), number, x)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _relate_outside_of_the_graph(self, number: int, x: Tensor) -> Tensor:
        """Where a part of the model is compiled by itself, which does not know of the forward around it."""
        return self._relate(self.current(x), number, x)

    def _relate(self, forward: Forward, number: int, x: Tensor) -> Tensor:
        module = self.at(number)
        axis = module.batch_axis if isinstance(module, BatchFormerV2) else 0
        had_both = self.active and self._had_both_streams(forward, number, x, axis)
        if not had_both and forward.early and x.shape[axis] == 2 * forward.samples:
            x = x.narrow(axis, 0, forward.samples)
        rows = x.shape[axis] if x.dim() > axis else 0
        if not forward.ran and forward.labels is not None and rows != forward.labels:
            raise ValueError(
                f"labels: expected one for each of the {rows} samples at {self._places[number]}, got "
                f"{forward.labels}; what is made of labels before BatchFormer cannot have both streams"
            )
        related = module(x, streams=2 if had_both else 1)
        y: Tensor = related if isinstance(module, BatchFormerV2) else related[0]
        forward.ran.append(number)
        if self.active:
            if not had_both:
                forward.samples = rows
            if not torch.compiler.is_compiling():
                self._mark(forward, y, axis)
        return y

    def _had_both_streams(self, forward: Forward, number: int, x: Tensor, axis: int) -> bool:
        """Whether x comes from a place before: by its history; without one by its number of rows."""
        rows = x.shape[axis] if x.dim() > axis else 0
        as_many = bool(forward.ran) and rows == 2 * forward.samples
        if torch.compiler.is_compiling():
            return as_many
        mark = marks.find(x) if forward.ran else None
        if isinstance(mark, Doubled):
            had = not isinstance(mark, AtTheDoor) and mark.forward.owner is self
        elif marks.in_backward():  # a reentrant checkpoint, which cuts the history
            remembered = self._arrivals.get((number, rows))
            if remembered is None:
                raise RuntimeError(
                    f"checkpoint: expected to know whether the {rows} samples at {self._places[number]} have "
                    f"both streams, got a reentrant one, which does not tell; pass use_reentrant=False"
                )
            return remembered
        else:
            had = as_many and (forward.blind or isinstance(mark, Hidden))
        if self._arrivals.setdefault((number, rows), had) != had:
            self._arrivals[number, rows] = None
        return had

    def _mark(self, forward: Forward, y: Tensor, axis: int) -> None:
        samples = y.shape[axis] // 2
        mark = Doubled(forward, samples)
        if y.grad_fn is None:
            forward.blind = True
            marks.put(y, mark)
            return
        marks.put_by_history(y, mark)
        y.register_hook(functools.partial(self._gradient_came, forward, axis, samples))

    def _gradient_came(self, forward: Forward, axis: int, samples: int, grad: Tensor) -> None:
        if not forward.answered:
            raise RuntimeError(
                "criterion: expected one that knows of both streams, got a gradient of another: criterion = "
                "attachment.wrap(criterion); or attach(..., wrapped=False) if the script doubles the targets"
            )
        self._watch.gradient(grad.narrow(axis, samples, samples))

    def _double_features(
        self, number: int, place: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None
    ) -> Any:
        if not self.trains(place):
            return None
        by_keyword = kwargs or {}
        features = args[0] if args else next(iter(by_keyword.values()))
        self._check_traced([features])
        y = self.relate(number, place, features)
        given: dict[Any, Any] = dict(enumerate(args)) | by_keyword
        first, *others = given
        if self.active and others:  # such as the labels that an angular margin takes
            batch = Batch([y.shape[0] // 2], [], [])
            names = parameters(place.forward)
            for key in others:
                name = names[key] if isinstance(key, int) and key < len(names) else key
                given |= batch.double({key: given[key]}, {key: name})
        given[first] = y
        call = in_place(given, args, by_keyword)
        return call[0] if kwargs is None else call  # torch.ao copies hooks as such that take no keywords

    def _double_tokens(self, number: int, place: nn.Module, args: Any, output: Any) -> Any:
        del args
        if not self.trains(place):
            return None
        self._check_traced([output])
        return tokens.with_first(output, self.relate(number, place, tokens.first(output)))

    def trains(self, place: nn.Module) -> bool:
        """Whether a place has something to do, in the forward of the model or by itself."""
        if self.attachment.training:
            # A part that was taken out of the model, as by torch.fx, follows its own mode.
            inside = torch.compiler.is_compiling() or forwards.current(self) is not None
            return inside or place.training or marks.in_backward()
        if place.training and not self.model.training and torch.is_grad_enabled():
            self._watch.evaluating()
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
        forward = self.current(given[name])
        samples = rows // 2 if forward.samples is None else forward.samples  # a checkpoint that runs again
        for name, axis in axes.items():
            value = given[name]
            if value is not None and value.shape[axis] == 2 * samples:
                given[name] = value.narrow(axis, 0, samples)
        return (), given

    # What a compiled graph lets know.

    def traced_mark(self, tensor: Tensor) -> Mark | None:
        """The mark that a tensor would have: by identity, else by the number of its rows."""
        samples = self._last_samples
        if samples is None or not tensor.is_floating_point():
            return None
        forward = Forward(self, answered=True)
        for original, related in self._last_split:
            if tensor is original or (not torch.compiler.is_compiling() and split.shows(tensor, original)):
                return Split(forward, samples, original, related, split.version_of(original))
        if any(size == 2 * samples for size in tensor.shape):
            return Doubled(forward, samples)
        if self._last_split and tensor.dim() > 0 and tensor.shape[0] == samples:
            original, related = self._last_split[0]
            return Split(forward, samples, original, related, split.version_of(original))
        return None

    # What cannot be right.

    def check_place_ran(self, tensor: Tensor) -> None:
        """Raise RuntimeError for what a place computed in training though BatchFormer did not run there."""
        if not self.active or torch.compiler.is_compiling():
            return
        modules = dict(self.model.named_modules())
        at_places = {
            id(parameter): number
            for number in self._required
            if self._places[number].path in modules
            for parameter in modules[self._places[number].path].parameters()
        }
        inside = {id(parameter) for parameter in self.attachment.parameters()}
        for leaf in marks.leaves_of(tensor):
            if id(leaf) in at_places and id(leaf) not in inside:
                self._raise_not_run(at_places[id(leaf)])

    def _raise_not_run(self, number: int) -> NoReturn:
        raise RuntimeError(
            f"model: expected {self._places[number]} to run in every forward in training, got one in which "
            f"BatchFormer did not: the module was replaced after attach(), called past its hooks (its "
            f".forward, its weights alone, a checkpoint of its layers), or skipped; what is skipped on "
            f"purpose is named: attach(..., optional=[...])"
        )

    def _check_traced(self, values: Any) -> None:
        traced = torch._C._get_tracing_state() is not None
        if traced or any(isinstance(value, fx.Proxy) for value in values):
            _raise_traced()

    def _check_data_parallel(self) -> None:
        wrapper = DistributedDataParallel._active_ddp_module
        if self._ddp_checked or wrapper is None:
            return
        if not shared(self.attachment.parameters(), wrapper._module_parameters):
            raise RuntimeError(
                "model: expected attach() before DistributedDataParallel, as that averages the gradients of "
                "the parameters which it found, got parameters that it does not know, which would drift "
                "apart between the ranks"
            )
        self._ddp_checked = True


def _raise_traced() -> NoReturn:
    raise RuntimeError(
        "model: expected one in evaluation for tracing and export, as BatchFormer is for training alone, got "
        "one in training: model.eval(), or attachment.remove() before"
    )


def _mark_single(tensor: Tensor) -> Tensor:
    marks.put_by_history(tensor, marks.Single())
    return tensor


def check_replica(module: nn.Module) -> None:
    """Raise RuntimeError in a replica of nn.DataParallel."""
    if getattr(module, "_is_replica", False):
        raise RuntimeError(
            "model: expected no replica of nn.DataParallel, as that gathers both streams of each device in "
            "turn, got one; use DistributedDataParallel"
        )
