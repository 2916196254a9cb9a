"""Wrapped criteria: targets are doubled where the outputs come from a doubled batch, and nowhere else.

Marks on the tensors themselves show which outputs those are (marks.py), so that a criterion can be used for
several models, several batches, or one output twice, in any order and thread; rules.py decides on the
arguments.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from batchformer import marks
from batchformer.marks import Doubled, Hidden, Mark, Pairs, Split, Twice, Unmarked
from batchformer.swap_in import split
from batchformer.swap_in.family import deep_copied
from batchformer.swap_in.hooks import stock_method
from batchformer.swap_in.pairings import Axis, Both, call_for_each
from batchformer.swap_in.rules import Batch, Name, leaves, map_tensors
from batchformer.swap_in.signature import Call, by_place, in_place, name_of, parameters
from batchformer.targets import duplicate, original
from batchformer.tracer import outside

_RESHAPES = {"ViewBackward0", "UnsafeViewBackward0", "LogSoftmaxBackward0", "ToCopyBackward0"}
_CUTS = [f"{name}Backward0" for name in ("Slice", "Select", "Split", "SplitWithSizes", "Unbind", "Index")]

Targets = Sequence[str | int] | None


class Judge:
    """What a wrapped criterion does with its arguments before it is called."""

    def __init__(self, family: Any, criterion: Callable[..., Any], targets: Targets) -> None:
        self._family = family  # knows more than the marks only where a compiled graph hides them
        self._names = parameters(criterion.forward if isinstance(criterion, nn.Module) else criterion)
        self._targets = targets
        self._criterion = [criterion]
        self.pairs_streams = targets is not None and not targets and family.pairs_streams
        self._own_sizes: dict[Name, bool] = {}
        self._own_forward = vars(criterion).get("forward") if isinstance(criterion, nn.Module) else None
        self._has_teacher = isinstance(getattr(criterion, "teacher_model", None), nn.Module)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Judge":
        """A copy that belongs to the copy of the model, also if that is made later."""
        copied = deep_copied(self, memo)
        if copied._family is self._family:
            self._family.adopt_later(copied, memo)
        return copied

    def belong_to(self, family: Any) -> None:
        """Go by another family from now on."""
        self._family = family

    def before(self, criterion: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """Forward pre-hook of a criterion that is a module; see :meth:`double`."""
        del criterion
        return (args, kwargs) if self.pairs_streams else self.double(args, kwargs)

    def for_each_pairing(self, *args: Any, **kwargs: Any) -> Any:
        """Forward of a criterion that is a module and takes no targets; see :meth:`call`."""
        criterion: Any = self._criterion[0]
        return self.call(stock_method(criterion, "forward", self._own_forward), args, kwargs)

    def call(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What a function gives for both streams; without targets, the mean over their pairings."""
        if not self.pairs_streams:
            args, kwargs = self.double(args, kwargs)
            return function(*args, **kwargs)
        if self._is_in_another_graph:
            return self._call_outside(function, args, kwargs)
        outputs = _Outputs(self._family)
        args, kwargs = map_tensors((args, kwargs), outputs.take)
        outputs.check_cut(every=True)
        if not outputs.doubled:
            outputs.check_graph()
            return function(*args, **kwargs)
        outputs.answer()
        both = outputs.both((args, kwargs))
        return call_for_each(self._criterion[0], function, (args, kwargs), both, self._family.pairings)

    @property
    def _is_in_another_graph(self) -> bool:
        """Whether the criterion is compiled by itself, and the history of the outputs shows outside of it."""
        return bool(torch.compiler.is_compiling() and self._family.compiled.was_eager)

    @outside
    def _call_outside(self, *call: Any) -> Any:
        return self.call(*call)

    @outside
    def _double_outside(self, *call: Any) -> Call:
        return self.double(*call)

    def after(self, criterion: Callable[..., Any], args: Any, loss: Any) -> Any:
        """What a wrapped criterion returns; forward hook of one that is a module."""
        del criterion, args
        return self._family.weigh(loss)

    def before_teacher(
        self, teacher: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Call | None:
        """Halves images that were doubled for a criterion."""
        del teacher
        return ((original(args[0]), *args[1:]), kwargs) if _are_twice(args) else None

    def after_teacher(self, teacher: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Doubles what a teacher computed from images that were doubled for a criterion."""
        del teacher
        return duplicate(output) if _are_twice(args) else None

    def double(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """The arguments, with both streams of the outputs and the targets of both.

        Raises:
            ValueError: outputs that were cut or computed anew, nothing that could be doubled, or an argument
                that may be a target or not.
        """
        if self._is_in_another_graph:
            return self._double_outside(args, kwargs)
        has_targets = self._targets is None or len(self._targets) > 0
        outputs = _Outputs(self._family)
        args, kwargs = map_tensors((args, kwargs), outputs.take)
        outputs.check_cut()
        if not outputs.doubled:
            if has_targets:
                outputs.check()
            return args, kwargs
        outputs.answer()
        outputs.check_no_pairs()
        given = by_place(args, kwargs)
        names: dict[Any, Name] = {key: name_of(self._names, key) for key in given}
        batch = Batch(
            outputs.samples, outputs.other_sizes(), outputs.doubled, self._own_sizes, outputs.sizes_before()
        )
        if self._targets is None:
            arguments = batch.double(given, names)
        else:
            arguments = {
                key: batch.double_named(value)
                if key in self._targets or names[key] in self._targets
                else value
                for key, value in given.items()
            }
        pictures_alone = batch.left > 0 and batch.doubled == batch.images  # targets of all images in one list
        learned_alone = batch.learned > 0 and batch.doubled == batch.learned
        if self._targets is None and learned_alone:
            raise ValueError(
                "criterion: expected a target, which has no gradient, among the arguments with "
                f"{outputs.samples[0]} rows, got features of another network alone, for which the other "
                "stream of a sample would be another sample; for a loss without targets call "
                "attachment.wrap(criterion, targets=[]), else name them: targets=[...]"
            )
        if (not batch.doubled or pictures_alone) and has_targets:
            raise ValueError(
                f"criterion: expected targets with an entry for each of the {outputs.samples[0]} samples, as "
                "the outputs have both streams, got none; for a part of the batch pass that part of the "
                'outputs (attach(..., outputs="originals")), for a loss without targets call '
                "attachment.wrap(criterion, targets=[])"
            )
        self._own_sizes.update(batch.own_sizes)  # of a call without error alone
        if self._has_teacher and not torch.compiler.is_compiling():
            for key, value in arguments.items():
                if isinstance(value, Tensor) and value is not given[key]:
                    marks.put(value, Twice())
        return in_place(arguments, args, kwargs)


class _Outputs:
    """The tensors of a call that come from doubled batches."""

    def __init__(self, family: Any) -> None:
        self._family = family
        self.doubled: list[Tensor] = []
        self.samples: list[int] = []
        self._found: list[tuple[Doubled, int, Pairs]] = []  # of each of the doubled, with its first row
        self._unmarked: list[Tensor] = []
        self._others: list[tuple[Tensor, int]] = []

    def take(self, tensor: Tensor) -> Tensor:
        """Note a tensor; return it with both streams, if it has the originals alone."""
        mark = self._mark(tensor)
        if isinstance(mark, Unmarked):
            if tensor.numel() > 1:
                self._others.append((tensor, self._family.compiled.samples))
            return tensor
        if not isinstance(mark, Doubled):
            if mark is None and tensor.dim() > 0 and tensor.grad_fn is not None:
                self._unmarked.append(tensor)
            return tensor
        if isinstance(mark, Split):
            first_row = split.first_row(tensor, mark)
            tensor, samples = split.join(tensor, mark)
            tensor = self._family.arrange(tensor, samples)
            self._keep(tensor, samples, mark, first_row)
        elif self._has_both(tensor, mark):
            _check_changed_alike(tensor, mark.samples)
            self._keep(tensor, mark.samples, mark)
        elif _is_flattened(tensor, mark):  # to tokens or pixels, which are then the samples
            self._keep(tensor, tensor.shape[0] // 2, mark)
        elif tensor.numel() > 1:
            self._others.append((tensor, mark.samples))
        return tensor

    def _has_both(self, tensor: Tensor, mark: Doubled) -> bool:
        if all(size != 2 * mark.samples for size in tensor.shape):
            return False
        if type(mark) is not Doubled or torch.compiler.is_compiling():
            return True
        return marks.pairs_of(tensor) is not None or mark.axis_of(tensor) is not None

    def _mark(self, tensor: Tensor) -> Mark | None:
        mark = None if torch.compiler.is_compiling() else self._find(tensor)
        if torch.compiler.is_compiling() or isinstance(mark, Hidden):
            traced: Mark | None = self._family.compiled.mark(self._family, tensor)
            return mark if traced is None and isinstance(mark, Unmarked) else traced
        if type(mark) is Doubled:  # originals that were changed in place have another history
            by_storage = marks.find_by_storage(tensor)
            return by_storage if isinstance(by_storage, Split) else mark
        return mark

    def _find(self, tensor: Tensor) -> Mark | None:
        was_in_graph = self._family.compiled.samples is not None and not self._family.compiled.was_eager
        found: Mark | None = self._family.mark_of(tensor) if was_in_graph else marks.find(tensor)
        return found

    def _keep(self, tensor: Tensor, samples: int, mark: Doubled, first_row: int = 0) -> None:
        pairs = None if torch.compiler.is_compiling() else marks.pairs_of(tensor)
        self.doubled.append(tensor)
        self._found.append((mark, first_row, pairs))
        if not any(samples == each for each in self.samples):
            self.samples.append(samples)

    def answer(self) -> None:
        """Note that what computes the loss has both streams."""
        for tensor, (mark, _, pairs) in zip(self.doubled, self._found, strict=True):
            joined = () if torch.compiler.is_compiling() else marks.all_doubled(tensor, _CUTS)
            for each in (mark, *joined, *(origin for origin in pairs or () if origin)):
                each.forward.answered = True

    def check_no_pairs(self) -> None:
        """Raise ValueError for a matrix of similarities, whose targets are columns of one stream."""
        for tensor, (_, _, pairs) in zip(self.doubled, self._found, strict=True):
            if pairs is not None:
                raise ValueError(
                    "criterion: expected outputs of samples, got similarities between them, of shape "
                    f"{list(tensor.shape)}, in which the other stream of a sample is a negative of it; "
                    "attachment.wrap(criterion, targets=[]) is called for each pairing of streams, with the "
                    "targets of one stream"
                )

    def both(self, arguments: Any) -> list[Both]:
        """The outputs, and along which axes they have which batch; a matrix of similarities has two.

        Also arguments with as many rows and no history, as after a stopped gradient.
        """
        found: list[Both] = []
        for tensor, (mark, first_row, pairs) in zip(self.doubled, self._found, strict=True):
            if pairs is None:
                axes = [self._axis_of_samples(len(found), tensor, mark, first_row)]
            else:
                axes = [_axis(len(found), tensor, number, origin, 0) for number, origin in enumerate(pairs)]
            found.append(Both(tensor, tuple(axes), mark))
        for tensor in leaves(arguments):  # compared one by one, as torch 2.9 compiles no id()
            if self._is_stopped(tensor) and all(tensor is not each.tensor for each in found):
                found.append(Both(tensor, (Axis(0, tensor.shape[0] // 2, len(found)),), None))
        return found

    def _axis_of_samples(self, position: int, tensor: Tensor, mark: Doubled, first_row: int) -> Axis:
        rows = [
            number
            for number, size in enumerate(tensor.shape)
            if any(size == 2 * each for each in self.samples)
        ]
        if mark.origin is None and tensor.dim() == 2 and (len(rows) == 2 or self._family.gives_pairs):
            raise ValueError(
                f"criterion: expected to know whether an output of shape {list(tensor.shape)} is of samples "
                "or of pairs of them, got it from a compiled graph, which does not show it; compute "
                "similarities in the criterion, take batches of another size, or let the model compute its "
                "loss, if it can"
            )
        known = type(mark) is Doubled and not torch.compiler.is_compiling()
        number = mark.axis_of(tensor) if known else None
        if number is None:
            number = rows[0] if rows and 0 not in rows else 0
        return _axis(position, tensor, number, mark.origin, first_row)

    def _is_stopped(self, tensor: Tensor) -> bool:
        floats = tensor.dim() > 0 and tensor.is_floating_point() and not tensor.requires_grad
        return floats and any(tensor.shape[0] == 2 * each for each in self.samples)

    def other_sizes(self) -> list[int]:
        """Sizes of the axes that are not the batch's."""
        return [
            size
            for tensor in self.doubled
            for size in tensor.shape
            if not any(size == 2 * each for each in self.samples)
        ]

    def sizes_before(self) -> list[tuple[int, ...]]:
        """The sizes of the axes before the batch, and N, of each output that has them and is no stack."""
        found: list[tuple[int, ...]] = []
        if torch.compiler.is_compiling():  # a graph does not show it
            return found
        for tensor, (mark, _, _) in zip(self.doubled, self._found, strict=True):
            axis = mark.axis_of(tensor)
            if axis and split.axis_of_stack(tensor) is None:
                found.append((*tensor.shape[:axis], mark.samples))
        return found

    def check(self) -> None:
        """Raise an error if nothing is doubled but should be: it was cut, or computed past the hooks.

        Raises:
            ValueError: an output that depends on a doubled batch and does not have its rows.
            RuntimeError: one of a place at which BatchFormer did not run.
        """
        self.check_graph()
        for tensor in self._unmarked:
            self._family.entry.check_place_ran(tensor)
        self.check_cut(every=True)

    def check_graph(self) -> None:
        """Raise ValueError for an output of a graph with BatchFormer that has no rows of both streams."""
        samples = self._family.compiled.samples
        if samples is None or torch.compiler.is_compiling():
            return
        for tensor in self._unmarked:
            of_graph = self._family.active and isinstance(self._find(tensor), Hidden)
            if of_graph and self._family.has_computed(tensor):  # not of the graph of another model
                raise ValueError(
                    f"criterion: expected outputs with the {2 * samples} rows of both streams, got some of "
                    f"shape {list(tensor.shape)} from a compiled graph, which does not show whether they "
                    "were cut or are from before BatchFormer; for what is from before it take a criterion "
                    "that is not wrapped"
                )

    def check_cut(self, *, every: bool = False) -> None:
        """Raise ValueError for outputs that were cut, or for every one without the rows of both streams."""
        for tensor, samples in self._others:
            if not every and not _is_cut(tensor):
                continue
            raise ValueError(
                f"criterion: expected outputs with the {2 * samples} rows of both streams, got some of shape "
                f'{list(tensor.shape)}; where a script cuts them, attach(..., outputs="originals"), or take '
                f"them apart with original() and related(); or `layout` names another axis than the batch; "
                f"where the batch is not their first axis, flatten them in the criterion"
            )


def _axis(position: int, tensor: Tensor, number: int, origin: marks.Origin | None, first_row: int) -> Axis:
    batch = (position, number) if origin is None else (origin, first_row)
    return Axis(number, tensor.shape[number] // 2, batch)


def _is_flattened(tensor: Tensor, mark: Doubled) -> bool:
    """Whether the rows of an output were flattened with axes after them, and with none before."""
    rows = 2 * mark.samples
    if torch.compiler.is_compiling() or mark.before or not mark.shown:
        return False
    if tensor.dim() == 0 or tensor.shape[0] % rows:
        return False
    return tensor.shape[0] > rows and set(marks.names_on_path(tensor)) <= _RESHAPES


def _is_cut(tensor: Tensor) -> bool:
    """Whether rows may have been taken out of an output on the way to the criterion."""
    return not torch.compiler.is_compiling() and any(name in _CUTS for name in marks.names_on_path(tensor))


def _check_changed_alike(tensor: Tensor, samples: int) -> None:
    """Raise ValueError for an output in which entries of the originals alone were changed by index."""
    if torch.compiler.is_compiling():
        return
    for node in marks.path_of(tensor):
        rows = _changed_rows(node)
        if rows is not None and rows.numel() > 0 and bool(((rows % (2 * samples)) < samples).all()):
            raise ValueError(
                "criterion: expected outputs whose two streams were changed alike, got some of shape "
                f"{list(tensor.shape)} of which rows of the originals alone were changed; change them in the "
                'criterion, or attach(..., outputs="originals")'
            )


def _changed_rows(node: Any) -> Tensor | None:
    """The rows of a tensor whose entries a node changed, if it has kept them."""
    name = node.name()
    index: Tensor | None
    if name == "IndexPutBackward0":
        index = node._saved_indices[0]
        is_mask = index is not None and index.dtype in (torch.bool, torch.uint8)
        return index.nonzero()[:, 0] if is_mask else index
    index = node._saved_index if name.startswith("Scatter") else None
    if index is not None:
        # Along another axis the entries are in as many rows as the index has. -1 is saved as 2**64 - 1.
        along_rows = node._saved_dim in (0, 2**64 - index.dim())
        return index if along_rows else torch.arange(len(index))
    return None


def _are_twice(args: tuple[Any, ...]) -> bool:
    if torch.compiler.is_compiling() or not args or not isinstance(args[0], Tensor):
        return False
    return isinstance(marks.find(args[0]), Twice)


class WrappedFunction:
    """A function that doubles its targets; it can be pickled, and copied with the model."""

    def __init__(self, judge: Judge, function: Callable[..., Any]) -> None:
        self._judge = judge
        self._function = function
        functools.update_wrapper(self, function, updated=())

    def __getattr__(self, name: str) -> Any:
        """An attribute of the function, as a criterion may have a state."""
        own = name.startswith("__") or name in ("_judge", "_function")
        return object.__getattribute__(self, name) if own else getattr(self._function, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set it on the function, if that has one of that name."""
        target = self if name.startswith("_") or not hasattr(self._function, name) else self._function
        object.__setattr__(target, name, value)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the function makes of the outputs and the targets of both streams."""
        loss = self._judge.call(self._function, args, kwargs)
        return self._judge.after(self._function, args, loss)
