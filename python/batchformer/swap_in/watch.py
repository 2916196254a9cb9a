"""Whether the inserted modules are trained: a warning if not, once, from the first steps of a training."""

import sys
import warnings
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

_FIRST_GRADIENTS = 3
_FIRST_FORWARDS = 100


class Watch:
    """Looks at a few numbers in each of the first forwards and backwards, and then at nothing any more."""

    def __init__(self) -> None:
        self._said: list[str] = []
        self._gradients = 0  # backwards that reached a place
        self._without = 0  # those of them in which the related rows had no gradient
        self._forwards = 0
        self._moves = 0  # how often the rest of the model was seen to have moved
        self._versions: tuple[int, int] | None = None
        self._moved = False

    def forward(self, model: nn.Module, inserted: nn.Module) -> None:
        """A training forward begins: are the modules frozen, or left out of the optimizer?"""
        if self._moved or self._forwards >= _FIRST_FORWARDS or not torch.is_grad_enabled():
            return
        self._forwards += 1
        ours = [parameter for parameter in inserted.parameters() if parameter.requires_grad]
        if not ours:
            if any(parameter.requires_grad for parameter in model.parameters()):
                self._say(
                    "its parameters are frozen, and nothing will train them: they are made trainable by "
                    "attachment.requires_grad_(True) behind what froze the model"
                )
            return
        inside = {id(parameter) for parameter in inserted.parameters()}
        rest = (each for each in model.parameters() if each.requires_grad and id(each) not in inside)
        # An optimizer changes parameters in place, which their version counts.
        now = sum(each._version for each in ours), sum(each._version for each in rest)
        before, self._versions = self._versions, now
        if before is None:
            return
        self._moved = now[0] != before[0]
        self._moves += now[1] != before[1]
        if not self._moved and self._moves >= _FIRST_GRADIENTS <= self._gradients:
            self._say(
                "its parameters get gradients, but no optimizer moves them, while the rest of the model is "
                'moved: optimizer.add_param_group({"params": attachment.parameters()}), or build the '
                "optimizer after attach()"
            )
            self._moved = True

    def frozen_on_purpose(self) -> None:
        """Say nothing of parameters that are not trained."""
        self._moved = True

    def gradient(self, related: Tensor) -> None:
        """The related rows get a gradient: is there any?"""
        if self._gradients >= _FIRST_GRADIENTS:
            return
        self._gradients += 1
        self._without += not bool(related.any())
        if self._without == _FIRST_GRADIENTS:
            self._say(
                "the gradient of the related rows was exactly zero in the first steps: what comes behind "
                "leaves them out of the loss; compute it where they are, in a wrapped criterion, or insert "
                "further down"
            )

    def evaluating(self) -> None:
        """A place trains, and the attachment does not."""
        self._say(
            "the module at its place is in training and the attachment in evaluation, so that it does "
            "nothing: attachment.train()"
        )

    def _say(self, what: str) -> None:
        if what not in self._said:
            self._said.append(what)
            warnings.warn(f"batchformer: the attachment is not trained; {what}", stacklevel=_level_of_user())


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
