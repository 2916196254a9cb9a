"""What attach() returns: the new modules in the model, the wrapped criteria, and how to remove both."""

from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

from torch import nn

from batchformer.swap_in.criterion import Judge, WrappedFunction
from batchformer.swap_in.family import Family, copied_with
from batchformer.swap_in.options import Options
from batchformer.swap_in.places import Place, holder, is_inside, path_of

Criterion = TypeVar("Criterion", bound=Callable[..., Any])

NAME = "batchformer"  # of the child that a model gets


class Attachment(nn.Module):
    """BatchFormer in a model whose code stays as it is; :func:`attach` makes it.

    It is a child of the model, called ``batchformer`` (of the first place, if the model is an nn.Sequential):
    it goes with the model to devices, into copies and state_dicts, and an optimizer that is built from the
    model's parameters trains it. It works in training only: ``model.eval()`` switches it off, and
    ``attachment.eval()`` switches off it alone, until the next ``model.train()``.

    ``attachment.inserted`` has the modules: one for all places, or one for each.

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
    _left_behind = False  # whether it is in evaluation as a place alone went there
    qconfig = None  # torch.ao.quantization leaves it as it is: it is for training alone

    def __init__(
        self,
        family: type[Family],
        model: nn.Module,
        places: Sequence[Place],
        inserted: Sequence[nn.Module],
        options: Options,
    ) -> None:
        super().__init__()
        self.inserted = nn.ModuleList(inserted)
        # In lists, as a module that is an attribute would become a child.
        self._model = [model]
        self._holder = [holder(model, places)]
        self.train(model.training)
        self._family = family(self, model, list(places), options)
        self._holder[0].add_module(NAME, self)

    def train(self, mode: bool = True) -> "Attachment":
        """Switch it on or off, as `model.train()` does.

        As the child of a place it goes to evaluation with the place, where scripts that freeze batch norms
        put it in every step; the model in training takes it back.
        """
        holder = self._holder[0]
        self._left_behind = not mode and holder is not self._model[0] and not holder.training
        super().train(mode)
        return self

    def eval(self) -> "Attachment":
        """Switch it off, alone."""
        super().eval()
        self._left_behind = False
        return self

    def follow(self, model: nn.Module) -> None:
        """Train with a model that trains, if it was a place alone that went to evaluation."""
        if self._left_behind and model.training:
            super().train()
            self._left_behind = False

    @property
    def two_stream(self) -> bool:
        """Whether there are both streams; else the related rows take the place of the originals."""
        return all(bool(module.two_stream) for module in self.inserted)

    def wrap(self, criterion: Criterion, *, targets: Sequence[str | int] | None = None) -> Criterion:
        """`criterion`, which from now on doubles its targets where its outputs come from a doubled batch.

        An nn.Module stays the object that it is and gets a hook; of any other callable a new one is returned,
        as of ``torch.nn.functional.cross_entropy``. Targets of outputs that were not doubled stay as they
        are: an evaluation, an auxiliary head before the insertion, another model. A teacher inside
        (``criterion.teacher_model``, as in DeiT's distillation) sees the images once.

        Args:
            criterion: called with outputs and targets, by position or by keyword.
            targets: which arguments to double, by position or by name. An empty list if the criterion takes
                none: then it is called once for each pairing of the streams of its outputs, see `pairings` of
                :func:`attach`, and its results are averaged; one that splits the streams itself, with
                :func:`original` and :func:`related`, is called once, with both. If None,
                all that have an entry for each of the N samples, by a table of rules.

        Raises:
            TypeError: criterion cannot be called, or targets are a string.
            ValueError: criterion is wrapped already.

        Example:
            >>> model = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.Linear(64, 10))
            >>> cross_entropy = attach(model, before="1").wrap(torch.nn.functional.cross_entropy)
            >>> loss = cross_entropy(model(torch.rand(32, 8)), torch.arange(32) % 10)
        """
        if isinstance(criterion, WrappedFunction):
            raise ValueError("criterion: expected one that is not wrapped, got a function that is")
        if not callable(criterion):
            raise TypeError(f"criterion: expected a module or a function, got {type(criterion).__name__}")
        if isinstance(targets, str):
            raise TypeError(
                f"targets: expected a list of positions or names of arguments, got {targets!r}; [{targets!r}]"
            )
        family = self._family
        judge = Judge(family, criterion, family.targets if targets is None else targets)
        if hasattr(criterion, "num_splits"):  # timm's JsdCrossEntropy
            raise ValueError(
                f"criterion: expected one for which each row is a sample, got {type(criterion).__name__}, "
                "which splits the batch itself; attach(..., wrapped=False), and call it for each stream"
            )
        passes_hooks = type(criterion).__call__ is not nn.Module.__call__
        if not isinstance(criterion, nn.Module) or passes_hooks:
            family.criteria += 1
            return WrappedFunction(judge, criterion)  # type: ignore[return-value]
        if any(
            isinstance(getattr(hook, "__self__", None), Judge)
            for hook in criterion._forward_pre_hooks.values()
        ):
            raise ValueError(
                f"criterion: expected one that is not wrapped, got a {type(criterion).__name__} that is"
            )
        family.criteria += 1
        family.hooks.inputs(criterion, judge.before)
        if judge.pairs_streams:
            family.hooks.replace("forward", judge.for_each_pairing, criterion)
        family.hooks.output(criterion, judge.after)
        teacher = getattr(criterion, "teacher_model", None)
        if isinstance(teacher, nn.Module):
            family.hooks.inputs(teacher, judge.before_teacher)
            family.hooks.output(teacher, judge.after_teacher)
        return criterion

    def stock_state_dict(self) -> dict[str, Any]:
        """The model's state_dict without what was attached: loads strict into the stock model.

        Example:
            >>> model = torch.nn.Linear(8, 10)
            >>> sorted(attach(model, before="").stock_state_dict())
            ['bias', 'weight']
        """
        model = self._model[0]
        prefix = path_of(self, model)
        state = model.state_dict()
        if prefix is not None:  # else it is removed
            for entries in (state, getattr(state, "_metadata", {})):  # modules go by the versions in these
                for name in [each for each in entries if is_inside(each, prefix)]:
                    del entries[name]
        return state

    def remove(self) -> None:
        """Restore the stock model, with its modules, its state_dict keys and no hook of ours.

        Wrapped criteria are as before, too. A second call does nothing.
        """
        self._family.hooks.remove()
        if self._holder[0]._modules.get(NAME) is self:
            delattr(self._holder[0], NAME)
        self.eval()  # for compiled graphs that have the hooks in them

    def forward(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raises: hooks run the modules in it; only a new nn.Sequential of a model's children calls it."""
        del args, kwargs
        raise RuntimeError(
            "model: expected a call of the model, as its hooks run BatchFormer, got one of its child "
            f"{NAME!r}; leave it out of a new model that is built from the children"
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> "Attachment":
        """A copy if the model is copied; a copied part of the model stays attached to this one."""
        return copied_with(self._model[0], self, memo)

    def extra_repr(self) -> str:
        """The family, what the model returns, the size, the places, and what is to be wrapped."""
        family = self._family
        if len(family.hooks) == 0:
            return "removed"
        parameters = sum(parameter.numel() for parameter in self.parameters())
        facts = (
            f"family={family.names[0]!r}, two_stream={self.two_stream}, outputs={family.entry.outputs!r}, "
            f"{parameters:,} parameters"
        )
        return "\n".join([facts, *family.streams.describe(), family.entry.describe()])


def attachment_of(model: nn.Module) -> Attachment | None:
    """What is attached to the model, if anything is."""
    return next((module for module in model.modules() if isinstance(module, Attachment)), None)
