"""What attach() puts into a model: the new modules, the hooks that run them, and the way back."""

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from batchformer.swap_in import rows
from batchformer.swap_in.places import Place, holder
from batchformer.targets import duplicate

Criterion = TypeVar("Criterion", bound=Callable[..., Any])

NAME = "batchformer"  # of the child that a model gets


class Attachment(nn.Module):
    """BatchFormer in a model whose code stays as it is; :func:`attach` makes it.

    It is a child of the model, called ``batchformer`` (of the first place, if the model is an nn.Sequential):
    it goes with the model to devices, into copies and state_dicts, and an optimizer that is built from the
    model's parameters trains it. It works in training only: ``model.eval()`` takes it out, and
    ``attachment.eval()`` takes it out alone, until the next ``model.train()``.

    Its hooks are bound methods, so that a copy of the model has hooks of its own, which belong to the copy.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
        >>> attachment = attach(model, before="2")
        >>> criterion = attachment.wrap(torch.nn.CrossEntropyLoss())
        >>> logits = model(torch.rand(32, 8))  # [64, 10], originals first
        >>> loss = criterion(logits, torch.arange(32) % 10)
        >>> attachment.remove()
        >>> model(torch.rand(32, 8)).shape
        torch.Size([32, 10])
    """

    inserted: nn.ModuleList

    def __init__(self, model: nn.Module, places: Sequence[Place], inserted: Sequence[nn.Module]) -> None:
        super().__init__()
        self.inserted = nn.ModuleList(inserted)
        # In lists, as a module that is an attribute would become a child.
        self._model = [model]
        self._holder = [holder(model, places)]
        self._handles: list[RemovableHandle] = []
        self._overridden: list[str] = []
        self._stash: list[tuple[Tensor, Tensor]] = []  # (original, related) rows of the last output
        self.samples = 0  # N of the last batch that was doubled
        self.two_stream = all(module.two_stream for module in self.inserted)
        self.train(model.training)
        self._holder[0].add_module(NAME, self)

    # What users call; besides parameters(), train(), eval() and all else that an nn.Module has.

    def wrap(self, criterion: Criterion, *, targets: Sequence[str | int] | None = None) -> Criterion:
        """`criterion`, which from now on doubles its targets whenever the model has doubled the batch.

        An nn.Module stays the object that it is and gets a hook; of any other callable a new one is returned,
        as of ``torch.nn.functional.cross_entropy``. A teacher inside (``criterion.teacher_model``, as in
        DeiT's distillation) sees the images once, and its outputs are doubled.

        Args:
            criterion: called with outputs and targets, by position or by keyword.
            targets: which arguments to double, by position or by keyword. If None, all that have one row (or
                entry of a list) for each of the N samples of the batch, but the first by position.

        Raises:
            TypeError: criterion cannot be called.
            ValueError: criterion is wrapped already.

        Example:
            >>> model = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.Linear(64, 10))
            >>> cross_entropy = attach(model, before="1").wrap(torch.nn.functional.cross_entropy)
            >>> loss = cross_entropy(model(torch.rand(32, 8)), torch.arange(32) % 10)
        """
        if not callable(criterion):
            raise TypeError(f"criterion: expected a module or a function, got {type(criterion).__name__}")
        if isinstance(criterion, nn.Module):
            if any(_is_of(self, hook) for hook in criterion._forward_pre_hooks.values()):
                raise ValueError(
                    f"criterion: expected one that is not wrapped, got a {type(criterion).__name__} that is"
                )
            self.hook_inputs(criterion, functools.partial(self._before_criterion, targets))
            teacher = getattr(criterion, "teacher_model", None)
            if isinstance(teacher, nn.Module):
                self.hook_output(teacher, self._after_teacher)
            return criterion

        @functools.wraps(criterion)
        def doubled(*args: Any, **kwargs: Any) -> Any:
            args, kwargs = self._before_criterion(targets, None, args, kwargs)
            return criterion(*args, **kwargs)

        return doubled  # type: ignore[return-value]

    def stock_state_dict(self) -> dict[str, Any]:
        """The model's state_dict without what was attached: loads strict into the stock model.

        Example:
            >>> model = torch.nn.Linear(8, 10)
            >>> sorted(attach(model, before="").stock_state_dict())
            ['bias', 'weight']
        """
        model = self._model[0]
        prefix = path_of(self, model) + "."
        return {name: value for name, value in model.state_dict().items() if not name.startswith(prefix)}

    def remove(self) -> None:
        """Take everything out: the stock model, with its modules, its state_dict keys and no hook of ours.

        Wrapped criteria are as before, too. A second call does nothing.
        """
        for handle in self._handles:
            handle.remove()
        for name in self._overridden:
            delattr(self._model[0], name)
        if self._holder[0]._modules.get(NAME) is self:
            delattr(self._holder[0], NAME)
        for kept in (self._handles, self._overridden, self._stash):
            kept.clear()
        self.eval()  # for compiled graphs that have the hooks in them

    # What the families build on.

    @property
    def active(self) -> bool:
        """Whether a forward of the model now doubles the batch."""
        return self.training and self.two_stream

    def hook_inputs(self, module: nn.Module, hook: Callable[..., Any]) -> None:
        """Register a forward pre-hook (module, args, kwargs) that :meth:`remove` takes out."""
        self._handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def hook_output(self, module: nn.Module, hook: Callable[..., Any], *, first: bool = False) -> None:
        """Register a forward hook (module, args, output) that :meth:`remove` takes out."""
        self._handles.append(module.register_forward_hook(hook, prepend=first))

    def override(self, name: str, method: Callable[..., Any]) -> None:
        """Put `method` before the model's own of that name until :meth:`remove`; see :meth:`stock`."""
        setattr(self._model[0], name, method)
        self._overridden.append(name)

    def stock(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """What the model's own method of that name gives."""
        model = self._model[0]
        return getattr(type(model), name)(model, *args, **kwargs)

    def split_output(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Hook of the model: the originals' rows alone, and the related ones are kept for the criterion.

        So that what compares logits with labels during training finds as many of the one as of the other.
        """
        del args
        if not self.active:
            return None
        check_replica(module)
        if self._stash:
            warnings.warn(
                "batchformer: the related rows of the last training step reached no criterion; pass the "
                "criterion through attachment.wrap()",
                stacklevel=2,
            )
            self._stash.clear()
        return rows.map_tensors(output, self._split)

    def rejoin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> rows.Call:
        """Arguments of the criterion, with both streams where split_output() left the originals alone."""
        if not self._stash:
            return args, kwargs
        joined = rows.map_tensors((args, kwargs), self.joined)
        pairs = zip(rows.tensors(joined), rows.tensors((args, kwargs)), strict=True)
        if all(after is before for after, before in pairs):
            raise ValueError(
                "criterion: expected the tensors that the model returned, as the related rows are kept for "
                "them, got others"
            )
        self._stash.clear()
        args, kwargs = joined
        return args, kwargs

    def joined(self, tensor: Tensor) -> Tensor:
        """Both streams of a tensor that was split; any other tensor as it is.

        DistributedDataParallel may hand on a copy, and scripts another dtype: then it is told by its values.
        """
        related = [related for original, related in self._stash if original is tensor]
        if not related:
            related = [related for original, related in self._stash if _is_copy(tensor, original)]
        return torch.cat([tensor, related[0].to(tensor.dtype)]) if related else tensor

    def _split(self, tensor: Tensor) -> Tensor:
        if tensor.dim() == 0 or len(tensor) != 2 * self.samples:
            return tensor
        original, related = tensor.chunk(2)
        self._stash.append((original, related))
        return original

    def _before_criterion(
        self,
        targets: Sequence[str | int] | None,
        criterion: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> rows.Call:
        del criterion
        if not self.active:
            return args, kwargs
        args, kwargs = self.rejoin(args, kwargs)
        return rows.double_targets(args, kwargs, self.samples, targets)

    def _after_teacher(self, teacher: Any, args: Any, output: Any) -> Any:
        del teacher, args
        return duplicate(output) if self.active else None

    def __getstate__(self) -> dict[str, Any]:
        """Without the rows of a step under way: they have a history, which cannot be copied or saved."""
        return self.__dict__ | {"_stash": []}

    def extra_repr(self) -> str:
        """How many hooks there are, in the model and in criteria."""
        return f"hooks={len(self._handles)}"


def attachment_of(model: nn.Module) -> Attachment | None:
    """What is attached to the model, if anything is."""
    return next((module for module in model.modules() if isinstance(module, Attachment)), None)


def path_of(module: nn.Module, model: nn.Module) -> str:
    """The path of a module inside the model."""
    return next(str(path) for path, other in model.named_modules() if other is module)


def check_replica(module: nn.Module) -> None:
    """Raise RuntimeError in a replica of nn.DataParallel."""
    if getattr(module, "_is_replica", False):
        raise RuntimeError(
            "model: expected no replica of nn.DataParallel, as that gathers both streams of each device in "
            "turn, got one; use DistributedDataParallel"
        )


def _is_copy(tensor: Tensor, original: Tensor) -> bool:
    if tensor.shape != original.shape or not tensor.is_floating_point():
        return False
    values = original.detach().to(tensor.dtype)
    return torch.allclose(tensor.detach(), values, rtol=0, atol=0, equal_nan=True)


def _is_of(attachment: Attachment, hook: Any) -> bool:
    return getattr(getattr(hook, "func", hook), "__self__", None) is attachment
