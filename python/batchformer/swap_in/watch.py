"""Whether the inserted modules are trained: a warning if not, once, from the first steps of a training."""

import sys
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor
from torch.nn.parameter import is_lazy

from batchformer.modules._others import AcrossSamples

_FIRST_STEPS = 3
_FIRST_FORWARDS = 30
_OWN = ("in_proj_weight", "norm1.weight")  # of a module, on which no adapter is put


class Watch:
    """Looks at a few numbers in each of the first forwards and backwards, and at nothing afterwards."""

    def __init__(self) -> None:
        self._said: list[str] = []
        self._forwards = 0
        self._frozen = 0  # of them, those with nothing to train
        self._gradients = 0  # backwards in which the original rows had a gradient
        self._without = 0  # of them, those in which the related rows had none
        self._new_gradient = False  # since the last forward
        self._without_gradients = 0  # forwards with a place without gradients, of a model with gradients
        self._with_gradients = False  # whether a place has ever run with gradients
        self._moves = 0  # how often the rest of the model moved, and the module did not, though it had one
        self._before: tuple[list[Any], list[Any]] | None = None
        self._decided = False
        self._evaluations = 0
        self._moves_in_evaluation = 0
        self._batches = 0
        self._single = 0  # of them, those of one sample that attends to no other
        self._in_evaluation: list[Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Without the values of the parameters."""
        return self.__dict__ | {"_before": None, "_in_evaluation": None}

    def forward(self, model: nn.Module, inserted: nn.Module) -> None:
        """A training forward begins: are the modules frozen, or left out of the optimizer?"""
        if self._decided or self._forwards >= _FIRST_FORWARDS:
            self._before = self._in_evaluation = None  # as large as the modules
            return
        if not torch.is_grad_enabled() or not _can_be_watched(inserted):
            return
        self._forwards += 1
        if self._without_gradients >= _FIRST_STEPS and not self._with_gradients:
            self._decided = True
            self._say(
                "its place runs without gradients, as under torch.no_grad(), so that nothing trains it: "
                "insert at a later module"
            )
            return
        ours = [each for each in inserted.parameters() if each.requires_grad]
        if not any(p.requires_grad for name, p in inserted.named_parameters() if name.endswith(_OWN)):
            ours = []  # adapters on it, which PEFT puts on all linear layers, train what was drawn at random
        rest = _rest(model, inserted)
        if not ours:
            self._frozen += bool(rest)
            if self._frozen == self._forwards == _FIRST_STEPS:
                self._say(
                    "its parameters are frozen, and nothing will train them: they are made trainable by "
                    "attachment.requires_grad_(True) after the line that froze the model"
                )
            return
        # Most optimizers count a change of a parameter in its version; fused ones show in its values alone.
        now, before = (_state(ours), _state(rest[-1:])), self._before
        self._before = now
        had_gradient, self._new_gradient = self._new_gradient, False
        if before is None or not _comparable(before, now):
            return
        self._decided = _moved(before[0], now[0])
        self._moves += had_gradient and _moved(before[1], now[1])
        if not self._decided and self._moves >= _FIRST_STEPS:
            self._decided = True
            self._say(
                "its parameters get gradients, but no optimizer moves them, while the rest of the model is "
                'moved: optimizer.add_param_group({"params": attachment.parameters()}), or build the '
                "optimizer after attach()"
            )

    def without_gradient(self) -> None:
        """The first place without gradients in a forward: has another any, or a checkpoint later?"""
        self._without_gradients += 1

    def with_gradient(self) -> None:
        """A place runs with gradients."""
        self._with_gradients = True

    def frozen_on_purpose(self) -> None:
        """Say nothing of parameters that are not trained."""
        self._decided = True

    def gradient(self, originals: Tensor, related: Tensor) -> None:
        """The gradients of both streams arrive: is that of the related rows zero?"""
        self._new_gradient = True
        if self._gradients >= _FIRST_STEPS or not _has_values(originals) or not bool(originals.any()):
            return
        self._gradients += 1
        self._without += not bool(related.any())
        if self._without == _FIRST_STEPS:
            self._say(
                "the gradient of the related rows was exactly zero in the first steps: the code after the "
                "place leaves them out of the loss; compute it in a wrapped criterion, or insert at a later "
                "module"
            )

    def samples(self, count: int, module: AcrossSamples) -> None:
        """So many samples come to the first place: does any have another to attend to?"""
        if self._batches >= _FIRST_STEPS:
            return
        self._batches += 1
        self._single += count == 1 and not module.gather_distributed and not module.memory_bank_size
        if self._single == _FIRST_STEPS:
            self._say(
                "the first batches had one sample each, which has no other to attend to: raise the batch "
                "size, or attach(..., memory_bank_size=64)",
                "no samples are related",
            )

    def evaluation(self, model: nn.Module, inserted: nn.Module) -> None:
        """A forward in evaluation begins: is the model trained in that mode, and never in the other?"""
        if self._forwards or self._evaluations >= _FIRST_FORWARDS:
            self._in_evaluation = None
            return
        if not torch.is_grad_enabled() or not _can_be_watched(inserted):
            return
        self._evaluations += 1
        now, before = _state(_rest(model, inserted)[-1:]), self._in_evaluation
        self._in_evaluation = now
        same_parts = before is not None and _comparable([before], [now])
        self._moves_in_evaluation += same_parts and _moved(before or [], now)
        if self._moves_in_evaluation == _FIRST_STEPS:
            self._say(
                "an optimizer moves the model while it is in evaluation, as from_pretrained() returns it: "
                "model.train()"
            )

    def evaluating(self) -> None:
        """A place trains, and the attachment does not."""
        self._evaluations = _FIRST_FORWARDS  # this warning says it better
        self._say(
            "the module at its place is in training and the attachment in evaluation, so that it does "
            "nothing: attachment.train()"
        )

    def _say(self, what: str, fault: str = "the attachment is not trained") -> None:
        if what not in self._said:
            self._said.append(what)
            warnings.warn(f"batchformer: {fault}; {what}", stacklevel=_level_of_user())


def _rest(model: nn.Module, inserted: nn.Module) -> list[nn.Parameter]:
    """The trainable parameters of the model outside of the inserted modules."""
    inside = {id(parameter) for parameter in inserted.parameters()}
    rest = (each for each in model.parameters() if each.requires_grad and id(each) not in inside)
    return [each for each in rest if not is_lazy(each)]


def _can_be_watched(inserted: nn.Module) -> bool:
    """Whether the modules have parameters with values; FSDP of torch 1 puts all into one of its own."""
    first = next(inserted.parameters(), None)
    return first is not None and _has_values(first)


def _has_values(tensor: Tensor) -> bool:
    """Whether numbers of a tensor can be looked at: it is neither on meta, nor fake, nor in a transform."""
    return not (
        tensor.is_meta or isinstance(tensor, FakeTensor) or torch._C._are_functorch_transforms_active()
    )


def _state(parameters: Iterable[nn.Parameter]) -> list[Any]:
    return [(each._version, _own_part(each.detach()).clone()) for each in parameters]


def _own_part(parameter: Any) -> Tensor:
    """The shard of a parameter that this process has; the whole would have to be gathered."""
    part: Tensor = parameter.to_local() if hasattr(parameter, "to_local") else parameter
    return part


def _comparable(before: Iterable[Sequence[Any]], now: Iterable[Sequence[Any]]) -> bool:
    """Whether the sharded parameters still are: after a forward without a backward they are gathered."""
    pairs = [pair for olds, news in zip(before, now, strict=True) for pair in zip(olds, news, strict=False)]
    return all(old[1].shape == new[1].shape for old, new in pairs)


def _moved(before: Sequence[Any], now: Sequence[Any]) -> bool:
    pairs = zip(before, now, strict=False)
    return any(old[0] != new[0] or not torch.equal(old[1], new[1]) for old, new in pairs)


def _level_of_user() -> int:
    """How far above the caller the first frame is that is neither torch's nor ours."""
    frame, level = sys._getframe(1), 1
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in ("torch", "batchformer"):
        frame, level = frame.f_back, level + 1
    return level


def shared(parameters: Iterable[nn.Parameter], known: Sequence[nn.Parameter]) -> bool:
    """Whether all that is trained of the parameters is among the known."""
    ids = {id(each) for each in known}
    return all(id(each) in ids for each in parameters if each.requires_grad)
