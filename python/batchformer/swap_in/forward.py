"""One forward of a model in training: which places ran in it, and from how many samples they doubled."""

import sys
import threading
from typing import Any

import torch


class Forward:
    """What is known of a forward. Marks lead to it from tensors, :func:`current` from hooks of the model."""

    def __init__(self, owner: object, *, answered: bool = False) -> None:
        self.owner = owner
        self.ran: list[int] = []
        """Numbers of the places that ran, in their order."""
        self.samples: Any = None
        """N of what was doubled last; with torch.compile a symbol."""
        self.axis = 0
        """The axis of the batch at the place that ran last."""
        self.early = False
        """Whether the batch was doubled at the model's input instead of at the first place."""
        self.labels: int | None = None
        """How many labels the model was given, before they were doubled."""
        self.has_loss = False
        """Whether the model has computed a loss of both streams by itself."""
        self.blind: set[int] = set()
        """How many samples were doubled without a history: then only the number of rows shows it."""
        self.last_token: Any = None
        """Which token of each sample is classified, in a model that pools after its classifier."""
        self.has_gradients = False
        """Whether it began with gradients, and no place has run without."""
        self.caller: Any = None
        """The Python frame that called it, while it runs."""
        self.answered = answered
        """Whether the related rows have reached what computes a loss for both streams."""


_OPEN = threading.local()


def enter(forward: Forward) -> None:
    """Begin: what runs in this thread from now on belongs to it."""
    forward.caller = sys._getframe(2)
    forward.has_gradients = torch.is_grad_enabled()
    _stack().append(forward)


def forget_interrupted() -> None:
    """Drop forwards of this thread that ended by an exception unknown to hooks, as KeyboardInterrupt."""
    stack = _stack()
    if stack:
        running: list[Any] = [sys._getframe(1)]
        while running[-1].f_back is not None:
            running.append(running[-1].f_back)
        stack[:] = [forward for forward in stack if any(forward.caller is frame for frame in running)]


def current(owner: object) -> Forward | None:
    """The forward of the owner that this thread is in."""
    return next((each for each in reversed(_stack()) if each.owner is owner), None)


def leave(owner: object) -> Forward | None:
    """End the owner's last forward in this thread; None if it has ended already."""
    forward = current(owner)
    if forward is not None:
        _stack().remove(forward)
        forward.caller = None
    return forward


def _stack() -> list[Forward]:
    stack: list[Forward] | None = getattr(_OPEN, "stack", None)
    if stack is None:
        stack = _OPEN.stack = []
    return stack
