"""Hooks around the forward of an attached model, which double its labels and mark its outputs."""

import collections
import functools
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from batchformer import marks
from batchformer.marks import Doubled, Hidden, Mark, Split
from batchformer.modules import _check
from batchformer.swap_in import forward as forwards
from batchformer.swap_in import labels, split
from batchformer.swap_in.forward import Forward
from batchformer.swap_in.options import Options
from batchformer.swap_in.places import Place
from batchformer.swap_in.rules import leaves, map_tensors
from batchformer.swap_in.sharded import check_sharded
from batchformer.swap_in.signature import Call, by_name, parameters
from batchformer.swap_in.traced import check_not_traced
from batchformer.swap_in.watch import shared


class Entry:
    """Hooks of the model itself. In a forward in training, every place has to run."""

    def __init__(self, family: Any, model: nn.Module, places: list[Place], options: Options) -> None:
        self._family = family
        self._places = places
        self._required = [number for number, place in enumerate(places) if place.path not in options.optional]
        self._originals_alone = family.returns_originals or options.outputs == "originals"
        self.outputs = "originals" if self._originals_alone else "both"
        self._wrapped = options.wrapped
        self._arguments = parameters(model.forward)
        self._ddp_checked = False
        self._to_check: list[Tensor] = []
        self._shards_to_check = 2  # forwards

    def describe(self) -> str:
        """Who doubles the targets."""
        if not self._family.attachment.two_stream:
            return "one stream: targets stay as they are"
        if self._family.answers:
            return "the model computes the loss of both streams: nothing to wrap"
        if not self._wrapped:
            return "the script doubles its targets: duplicate()"
        if self._family.criteria:
            return f"criteria wrapped: {self._family.criteria}"
        wrap = "criterion = attachment.wrap(criterion)"
        if self._family.takes_labels and labels.has_own_loss(self._family.model, self._arguments):
            return f"labels that the model is given are doubled; without labels: {wrap}"
        own = f"; or {self._family.own_loss}" if self._family.own_loss else ""
        return f"to do: {wrap}{own}"

    def check_later(self, unwrapped: Tensor) -> None:
        """Note whether returned originals got a gradient, where a backward should not wait for the device."""
        self._to_check.append(unwrapped)

    def __getstate__(self) -> dict[str, Any]:
        """Without what concerns the last backward."""
        return self.__dict__ | {"_to_check": []}

    def new_forward(self) -> Forward:
        """A forward that begins here, or at a place that runs by itself."""
        needs_no_answer = self._family.answers or not self._wrapped or marks.in_backward()
        return Forward(self._family, answered=needs_no_answer)

    def enter(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
        """Forward pre-hook of the model, before all others."""
        family, compiling = self._family, torch.compiler.is_compiling()
        if not compiling:
            forwards.forget_interrupted()
        family.attachment.follow(model)
        if not family.attachment.training:
            family.compiled.forget()  # of one that was interrupted, too
            if not compiling and not model.training:
                family.watch.evaluation(model, family.attachment.inserted)
            return None
        check_replica(model)
        check_not_traced(args)
        if family.compiled.unanswered and family.criteria == 0:  # noticed late, as graphs show no gradient
            raise_not_wrapped()
        forward = Forward(family, answered=True) if compiling else self.new_forward()
        family.compiled.enter(forward)  # parts of the model may be compiled, or this hook alone be not
        if not compiling:
            self._check_data_parallel()
            unwrapped, self._to_check = self._to_check, []
            if any(unwrapped):
                split.raise_unwrapped_term()
            if self._shards_to_check:
                self._shards_to_check -= 1
                check_sharded(model, family.attachment.inserted, self._places)
            family.watch.forward(model, family.attachment.inserted)
            forwards.enter(forward)
        if not (family.takes_labels and family.active):
            return None
        if by_name(self._arguments, args, kwargs).get("return_loss"):
            raise ValueError(
                "return_loss: expected none in training with BatchFormer, as it contrasts the samples of a "
                "batch, and a related row would be a negative of its own original, got True"
            )
        sequence_first = any(getattr(each, "batch_axis", 0) == 1 for each in family.attachment.inserted)
        args, kwargs, forward.labels = labels.double(
            self._arguments, args, kwargs, sequence_first=sequence_first
        )
        return args, kwargs

    def leave(self, model: nn.Module, args: Any, output: Any) -> Any:
        """Forward hook of the model."""
        family, compiling = self._family, torch.compiler.is_compiling()
        in_graph = family.compiled.leave()
        forward = in_graph if compiling else forwards.leave(family) or in_graph
        if forward is None:  # evaluation
            if not compiling:
                given = {id(each) for each in leaves(args)}
                map_tensors(output, lambda each: each if id(each) in given else _mark_single(each))
            return None
        for number in self._required:
            if number not in forward.ran:
                self._raise_not_run(number)
        if not family.active or forward.samples is None:
            return None
        family.compiled.samples, family.compiled.was_eager = forward.samples, not compiling
        if compiling:
            has_loss = family.answers or not self._wrapped or forward.labels is not None or forward.has_loss
            family.compiled.unanswered = torch.is_grad_enabled() and not has_loss
            if not self._originals_alone:
                return None
            return map_tensors(output, functools.partial(family.compiled.take_originals, forward.axis))
        found: list[Mark | None] = []
        output = map_tensors(output, functools.partial(self._end, forward, found))
        self._check_reached(forward, found)
        self._check_answer(model, forward, output)
        return output

    def abandon(self, model: nn.Module, args: Any, output: Any) -> None:
        """Forward hook that always runs: a forward that has not ended by then has raised."""
        del model, args, output
        if not torch.compiler.is_compiling():
            forwards.leave(self._family)

    def check_place_ran(self, tensor: Tensor) -> None:
        """Raise RuntimeError for what a place computed in training though BatchFormer did not run there."""
        if not self._family.active or torch.compiler.is_compiling():
            return
        modules = dict(self._family.model.named_modules())
        at_places = {
            id(parameter): number
            for number in self._required
            if self._places[number].path in modules
            for parameter in modules[self._places[number].path].parameters()
        }
        inside = {id(parameter) for parameter in self._family.attachment.parameters()}
        names = self._family.model.named_parameters(remove_duplicate=False)
        users = collections.Counter(id(parameter) for _, parameter in names)
        for leaf in marks.leaves_of(tensor):
            if id(leaf) in at_places and id(leaf) not in inside and users[id(leaf)] == 1:
                self._raise_not_run(at_places[id(leaf)])

    def _end(self, forward: Forward, found: list[Mark | None], tensor: Tensor) -> Tensor:
        """An output of the model, marked; the originals alone, if that is what it returns."""
        mark = before = self._family.mark_of(tensor)
        if tensor.grad_fn is not None:
            found.append(before)
        if (isinstance(mark, Hidden) or (mark is None and forward.blind)) and forward.samples is not None:
            # Without a history only the first axis is known to be the batch's.
            sizes = tensor.shape[:1] if mark is None else tensor.shape
            known = {forward.samples} if mark is not None else {forward.samples, *forward.blind}
            samples = next((each for each in known if 2 * each in sizes), None)
            mark = None if samples is None else Doubled(forward, samples)
        if not isinstance(mark, Doubled) or isinstance(mark, Split):
            if before is None:
                marks.put_by_history(tensor, marks.Single())
            return tensor
        pairs = marks.pairs_of(tensor)
        if pairs is not None and self._originals_alone:
            raise ValueError(
                'outputs: expected "both" of a model that gives similarities between samples, as each of '
                f'them belongs to two streams, got "originals" and an output of shape {list(tensor.shape)}'
            )
        axis = mark.axis_of(tensor, other=split.axis_of_stack(tensor)) if pairs is None else None
        before_axis = mark.before if axis is None else tuple(tensor.shape[:axis])
        doubled = Doubled(
            mark.forward,
            mark.samples,
            origin=mark.origin,
            pairs=pairs,
            before=before_axis,
            shown=axis is not None or pairs is not None or mark.is_outermost_in(tensor),
        )
        marks.put(tensor, doubled)
        if axis is None or not self._originals_alone:
            return tensor
        return split.take_originals(tensor, doubled, axis)

    def _check_reached(self, forward: Forward, found: list[Mark | None]) -> None:
        """Raise RuntimeError if the model's outputs do not depend on the outputs at the places.

        Args:
            forward: the forward that ends.
            found: the mark in the history of each output that has one.
        """
        if found and not forward.blind and all(mark is None for mark in found):
            raise RuntimeError(
                f"model: expected outputs that depend on the output at {self._places[forward.ran[-1]]}, got "
                "none, as if the model used another output of that module; name a later module"
            )

    def _check_answer(self, model: nn.Module, forward: Forward, output: Any) -> None:
        """Raise RuntimeError where a model that computes its loss from labels was given none."""
        family = self._family
        if forward.answered or not family.takes_labels or not torch.is_grad_enabled():
            return
        if forward.labels is not None:
            losses = ((), (1,))  # OneFormer's has shape [1]
            forward.answered = any(each.shape in losses and each.requires_grad for each in leaves(output))
        elif family.criteria == 0 and labels.has_own_loss(model, self._arguments):
            raise RuntimeError(
                f"labels: expected those of {type(model).__name__} in the call, or a wrapped criterion, as "
                f"the outputs have both streams, got neither; with transformers' Trainer and label smoothing "
                f"trainer.label_smoother = attachment.wrap(trainer.label_smoother), else wrap what computes "
                f"the loss, or attach(..., wrapped=False) if the script doubles the targets"
            )

    def _raise_not_run(self, number: int) -> NoReturn:
        raise RuntimeError(
            f"model: expected {self._places[number]} to run in every forward in training, got one in which "
            "BatchFormer did not: the module was replaced after attach() (attachment.remove(), and attach() "
            "again), called past its hooks (its .forward, its weights alone, a checkpoint of its layers, a "
            "graph compiled for such a model without BatchFormer: torch.compiler.reset()) or skipped; name "
            "what is skipped on purpose: attach(..., optional=[...])"
        )

    def _check_data_parallel(self) -> None:
        wrapper = DistributedDataParallel._active_ddp_module
        if self._ddp_checked or wrapper is None:
            return
        if not shared(self._family.attachment.parameters(), wrapper._module_parameters):
            raise RuntimeError(
                "model: expected attach() before DistributedDataParallel, as that averages the gradients of "
                "the parameters which it found, got parameters that it does not know, which would drift "
                "apart between the ranks"
            )
        self._ddp_checked = True


def raise_not_wrapped() -> NoReturn:
    """Raise RuntimeError for a loss of one stream alone."""
    raise RuntimeError(
        "criterion: expected a wrapped one, as the outputs have both streams, got the gradient of one that "
        "is not: criterion = attachment.wrap(criterion); or attach(..., wrapped=False) if the script doubles "
        "the targets"
    )


def check_replica(module: nn.Module) -> None:
    """Raise RuntimeError in a replica of nn.DataParallel."""
    _check.not_a_replica("model", module, ", as that gathers both streams of each device in turn")


def _mark_single(tensor: Tensor) -> Tensor:
    if marks.find(tensor) is None:  # of this model or one before it
        marks.put(tensor, marks.Single())
    return tensor
