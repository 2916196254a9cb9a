"""What happens to a tensor at a place: N samples are doubled, of both streams the second is transformed."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from batchformer import marks
from batchformer.marks import AtInput, Doubled, Origin, Split
from batchformer.modules.batchformer_v2 import BatchFormerV2
from batchformer.swap_in import forward as forwards
from batchformer.swap_in.entry import check_replica, raise_not_wrapped
from batchformer.swap_in.forward import Forward
from batchformer.swap_in.occurrences import Occurrences
from batchformer.swap_in.places import Place
from batchformer.tracer import outside


class _Look:
    """A forward that records the first input of a place."""

    def __init__(self, number: int, forward: Forward) -> None:
        self.number, self.forward = number, forward
        self.arrived: Tensor | None = None


class Streams:
    """The module of each place, and which forward a tensor at a place belongs to."""

    def __init__(self, family: Any, places: list[Place]) -> None:
        self._family = family
        self._places = places
        self.sides: dict[int, str] = {}  # of a place: "before" or "after"; for its description alone
        self._arrivals: dict[tuple[int, int], bool | None] = {}  # see _had_both
        self._occurrences = Occurrences()
        self._look: _Look | None = None  # while an input is recorded, and nothing is transformed

    def current(self, x: Tensor) -> Forward:
        """The forward that a tensor at a place belongs to."""
        family = self._family
        if torch.compiler.is_compiling():
            return family.compiled.forward or Forward(family, answered=True)
        if self._look is not None:
            return self._look.forward
        forward = forwards.current(family)
        if forward is None:  # a checkpoint runs again, or a part of the model by itself
            mark = marks.find(x)
            if isinstance(mark, Doubled) and mark.forward.owner is family:
                known: Forward = mark.forward
                return known
            forward = family.entry.new_forward()
        return forward

    def at(self, number: int) -> Any:
        """The module of a place: its own, or the one that all share."""
        inserted = self._family.attachment.inserted
        return inserted[number if len(inserted) > 1 else 0]

    def place(self, number: int) -> Place:
        """The place of a number."""
        return self._places[number]

    def describe(self) -> list[str]:
        """A line for each place: where it is, what arrives there, and in which layout."""
        lines = []
        for number, place in enumerate(self._places):
            module = self.at(number)
            axes = module.layout if isinstance(module, BatchFormerV2) else "NC"
            shape = ", ".join(str(module.dim) if axis == "C" else axis for axis in axes)
            what = "features" if axes == "NC" else "tokens" if "L" in axes else "maps"
            path = f"{place.path!r} " if place.path else ""
            side = self.sides.get(number, "at")
            lines.append(f"{side} {path}({type(place.module).__name__}): {what} [{shape}]")
        return lines

    @property
    def count(self) -> int:
        """How many places there are."""
        return len(self._places)

    @property
    def watching(self) -> bool:
        """Whether places pass on what arrives, in any mode, as the input of one is recorded."""
        return self._look is not None

    def arriving(self, number: int, run: Callable[[], object]) -> Tensor | None:
        """The first input of a place while `run` runs the model; None if it gets none."""
        self._look = look = _Look(number, Forward(self._family, answered=True))
        try:
            run()
            return look.arrived
        finally:
            self._look = None

    def relate(self, number: int, place: nn.Module, x: Tensor) -> Tensor:
        """The output at a place: x with both streams, or the related rows alone."""
        check_replica(place)
        if self._look is not None:
            if number == self._look.number and self._look.arrived is None:
                self._look.arrived = x.detach().clone()  # later modules may change x in place
            return x
        if torch.compiler.is_compiling() and self._family.compiled.forward is None:
            return self._relate_outside_of_the_graph(number, x)
        return self._relate(self.current(x), number, x)

    @outside
    def _relate_outside_of_the_graph(self, number: int, x: Tensor) -> Tensor:
        """As :meth:`relate` for a part that is compiled alone, and does not know the forward around it."""
        return self._relate(self.current(x), number, x)

    def _relate(self, forward: Forward, number: int, x: Tensor) -> Tensor:
        module, active = self.at(number), self._family.active
        axis = module.batch_axis if isinstance(module, BatchFormerV2) else 0
        had_both = active and self._had_both(forward, number, x, axis)
        if not had_both and forward.early and x.shape[axis] == 2 * forward.samples:
            x = x.narrow(axis, 0, forward.samples)
        rows = _rows(x, axis)
        if not forward.ran and forward.labels is not None and rows != forward.labels:
            raise ValueError(
                f"labels: expected one for each of the {rows} samples at {self._places[number]}, got "
                f"{forward.labels}; what is computed from labels before BatchFormer has one stream only"
            )
        if active and not had_both and not forward.ran and not torch.compiler.is_compiling():
            self._family.watch.samples(rows, module)
        try:
            related = module(x, streams=2 if had_both else 1, bank=self._bank(module, forward, number, x))
        except ValueError as error:  # raised in the module, where all ranks learn of it
            if isinstance(module, BatchFormerV2) or x.dim() < 3:
                raise
            raise ValueError(
                f"{error}; at {self._places[number]} these are maps or tokens, for which the path of a block "
                "is given as after=, or none if attach() knows the model"
            ) from error
        y: Tensor = related if isinstance(module, BatchFormerV2) else related[0]
        forward.ran.append(number)
        forward.axis = axis
        if active and not had_both:
            forward.samples = rows
        if active and not torch.compiler.is_compiling():
            known = marks.find(x) if had_both else None
            origin = known.origin if isinstance(known, Doubled) else None
            self._mark(forward, y, axis, origin or Origin(forward, rows // 2 if had_both else rows))
        return y

    def _bank(self, module: Any, forward: Forward, number: int, x: Tensor) -> tuple[int, int]:
        """The key of the memory bank: the place, and how often it has run in the forward.

        Two views, or the experts that share a module, would otherwise share remembered samples.
        """
        if module.memory_bank_size == 0:
            return number, 0  # for ranks to see that they are at the same place
        return number, self._occurrences.before(forward, number, x)

    def _had_both(self, forward: Forward, number: int, x: Tensor, axis: int) -> bool:
        """Whether x comes from an earlier place: by its history, or without one by its number of rows."""
        rows = _rows(x, axis)
        as_many = bool(forward.ran) and rows == 2 * forward.samples
        if torch.compiler.is_compiling():
            return as_many
        mark = marks.find(x) if forward.ran else None
        if isinstance(mark, Doubled):  # originals alone, of a forward before, are a batch of their own
            both = not isinstance(mark, (AtInput, Split))
            had = both and mark.forward.owner is self._family
        elif marks.in_backward():  # a reentrant checkpoint, which cuts the history
            remembered = self._arrivals.get((number, rows))
            if remembered is None:
                raise RuntimeError(
                    f"checkpoint: expected to know whether the {rows} samples at {self._places[number]} have "
                    "both streams, got a reentrant one, which does not show it; pass use_reentrant=False"
                )
            return remembered
        else:
            cut = forward.has_gradients and not torch.is_grad_enabled()  # as in a reentrant checkpoint
            # Of features before a classifier, what the same place has given does not come back to it.
            again = number in forward.ran and not isinstance(self.at(number), BatchFormerV2)
            had = as_many and not again and (bool(forward.blind) or cut)
        if self._arrivals.setdefault((number, rows), had) != had:
            self._arrivals[number, rows] = None
        return had

    def _mark(self, forward: Forward, y: Tensor, axis: int, origin: Origin) -> None:
        samples = y.shape[axis] // 2
        mark = Doubled(forward, samples, origin=origin, before=tuple(y.shape[:axis]))
        if y.grad_fn is None:
            if forward.has_gradients and not torch.is_grad_enabled():
                forward.has_gradients = False
                self._family.watch.without_gradient()
            forward.blind.add(samples)
            if not marks.put(y, mark) and not forward.answered:
                raise RuntimeError(
                    "model: expected a call outside of torch.vmap, where no wrapped criterion knows the "
                    "outputs with both streams, got one inside; attach(..., wrapped=False), and double the "
                    "targets with duplicate()"
                )
            return
        self._family.watch.with_gradient()
        marks.put_by_history(y, mark)
        y.register_hook(functools.partial(self._gradient_came, forward, axis, samples))

    def _gradient_came(self, forward: Forward, axis: int, samples: int, grad: Tensor) -> None:
        if not forward.answered:
            raise_not_wrapped()
        self._family.watch.gradient(grad.narrow(axis, 0, samples), grad.narrow(axis, samples, samples))


def _rows(x: Tensor, axis: int) -> int:
    return x.shape[axis] if x.dim() > axis else 0
