"""attach(): BatchFormer in an existing training script, with one line for the model and one for the loss."""

import difflib
import inspect
import logging
import warnings
from collections.abc import Sequence
from typing import Any

from torch import nn

from batchformer.modules import _check
from batchformer.modules.batchformer import BatchFormer
from batchformer.swap_in.attachment import NAME, Attachment, attachment_of
from batchformer.swap_in.generic import AfterBlocks, BeforeClassifiers
from batchformer.swap_in.known import with_names
from batchformer.swap_in.options import Options
from batchformer.swap_in.places import (
    check_not_wrapped,
    check_optional,
    check_outside_of_detectors,
    check_places,
    holder,
)
from batchformer.swap_in.recognise import check_not_by_path, family_of

_LOG = logging.getLogger("batchformer")


@with_names
def attach(
    model: nn.Module,
    preset: str | None = None,
    *,
    before: str | Sequence[str] | None = None,
    after: str | int | Sequence[str] | Sequence[int] | None = None,
    layout: str | None = None,
    dim: int | None = None,
    shared: bool = True,
    outputs: str = "both",
    optional: Sequence[str] = (),
    wrapped: bool = True,
    pairings: str = "all",
    as_published: bool = False,
    **module: Any,
) -> Attachment:
    """BatchFormer in `model`, whose code stays as it is; the attachment is also its child ``batchformer``.

    In training the part of the model after the insertion sees both streams, the originals first: twice the
    batch. In evaluation, and after :meth:`Attachment.remove`, the model is what it was. Attach before the
    optimizer is built, or hand it ``attachment.parameters()``; before DistributedDataParallel, FSDP and
    torch.compile; and pass the criterion through :meth:`Attachment.wrap`. A model that takes labels and
    returns its loss needs no wrapping: the labels that it is given are doubled inside.

    A mistake that would train one of the two streams alone raises an error, wherever it can be detected: a
    place that does not run in a forward in training, a criterion that was not wrapped, outputs that a script
    has cut by the batch size, targets that are not known.

    Args:
        model: any module. Without `preset`, `before` and `after`, its family is recognised.
        preset: the name of a family, see :func:`families`; where two share a name, the model decides:
            %(names)s
        before: the path of a classifier that takes features `[N, C]`, or of several; '' is the model itself.
        after: the path of a block, or of several. For a preset the indices of its blocks; if None, DETR's
            encoder layer 0 and DeiT's block 8. A place that gets both streams from an earlier one transforms
            the second; one that gets the batch itself, on a parallel branch, doubles it.
        layout: of the outputs of the blocks, "NLC", "LNC", "NCHW", "NHWC", or "NC" for features. If None, it
            is read from their classes: those of torch by batch_first, most blocks of timm, transformers and
            torchvision, and convolutions; blocks of other classes need it.
        dim: the width C. If None, it is read from the modules.
        shared: one module for all places, or one for each.
        outputs: "both", or "originals": the model returns the originals' rows alone, and the wrapped
            criterion gets those of both streams, also of rows that were cut out or reshaped. For scripts that
            compare training logits with labels, or cut them by the batch size. "ride", "balanced_softmax"
            and "paco" always do.
        optional: the paths of places that the model skips on purpose (stochastic depth, experts). With
            gather_distributed all ranks have to skip the same.
        wrapped: False for a script that doubles its targets itself, with :func:`duplicate`: then nothing
            checks that it does.
        pairings: of contrastive losses ("moco_v2", "moco_v3", "clip", and a criterion that is wrapped with
            ``targets=[]``): "all" pairs each stream of a view, or of the images, with each of the other view,
            or of the texts; "aligned" pairs equal streams only. Each pairing has its own negatives, and the
            loss is the mean.
        as_published: do as the published code where that differs from the method: "balanced_softmax" takes
            three times the loss and puts the related stream first, "moco_v3" takes four times the loss and
            does not train the module. (RIDE's related stream alone is ``two_stream=False``.)
        **module: nhead, dim_feedforward, dropout, two_stream, attend, num_layers, gather_distributed,
            memory_bank_size and the other arguments of :class:`BatchFormer`. Each place has its own memory
            bank, one for each time that it runs in a forward, even if all places share a module.

    The logger "batchformer" says at level INFO where BatchFormer was inserted; so does printing the
    attachment.

    Raises:
        TypeError: model is not an nn.Module, arguments of another type, or an unknown one.
        ValueError: a path that does not exist or is never called, a width, layout or option that does not
            fit, a model of another family, one that has an attachment already, or one that is wrapped or
            sharded already.

    Source: Hou et al., "BatchFormer" (CVPR 2022) and "BatchFormerV2" (arXiv 2204.01254).

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.Linear(64, 10))
        >>> attachment = attach(model, before="1", dropout=0.1)
        >>> model(torch.rand(32, 8)).shape, model.eval()(torch.rand(32, 8)).shape
        (torch.Size([64, 10]), torch.Size([32, 10]))
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    check_not_wrapped(model)
    named = _with_old_names(preset, module)
    outputs, as_published = named.get("outputs", outputs), named.get("as_published", as_published)
    _check_arguments(module)
    _check.one_of("pairings", pairings, ("all", "aligned"))
    _check.one_of("outputs", outputs, ("both", "originals"))
    if layout is not None:
        _check.one_of("layout", layout, ("NLC", "LNC", "NCHW", "NHWC", "NC"))
    if attachment_of(model) is not None:
        raise ValueError(f"model: expected a {type(model).__name__} without BatchFormer, got one that has it")
    family = family_of(model, preset, before, after)
    at_places = family in (BeforeClassifiers, AfterBlocks)
    given = {
        "preset": preset if at_places else None,
        "before": before,
        "after": after,
        "layout": layout,
        "shared": None if shared else shared,
        "outputs": None if outputs == "both" else outputs,
        "optional": optional or None,
        "wrapped": None if wrapped else wrapped,
        "pairings": None if pairings == "all" else pairings,
        "as_published": as_published or None,
    }
    for name, value in given.items():
        if value is not None and name not in family.takes:
            takes = ", ".join((*family.takes, "dim and what BatchFormer takes"))
            hint = "; original() takes the originals of what it returns" if name == "outputs" else ""
            raise ValueError(
                f"{name}: expected no value with {family.names[0]!r}, which takes {takes}, got "
                f"{value!r}{hint}"
            )
    options = Options(
        before, after, layout, dim, shared, outputs, tuple(optional), wrapped, pairings, as_published, module
    )
    if outputs == "originals" and not wrapped:
        raise ValueError(
            'outputs: expected "both" with wrapped=False, as only a wrapped criterion gets the related rows '
            'of "originals", got "originals"'
        )
    check_not_by_path(model, after)
    # All errors are raised before the model is changed.
    places = family.find_places(model, options)
    check_places(model, places)
    if at_places:
        check_outside_of_detectors(model, places)
    check_optional(places, options.optional)
    owner = holder(model, places)
    if hasattr(owner, NAME):
        raise ValueError(f"model: expected no attribute {NAME!r}, got a {type(owner).__name__} that has one")
    attachment = Attachment(family, model, places, family.make_modules(model, places, options), options)
    _LOG.info("attached to %s: %s", type(model).__name__, "; ".join(attachment.extra_repr().splitlines()))
    return attachment


def _with_old_names(preset: str | None, module: dict[str, Any]) -> dict[str, Any]:
    """The values of arguments that 0.1 named differently, taken out of `module`, where they arrive."""
    new: dict[str, Any] = {}
    if "rejoin" in module:
        new["outputs"] = "originals" if module.pop("rejoin") else "both"
        _warn("rejoin=True", 'outputs="originals"')
    if "reproduce" in module:
        reproduce = module.pop("reproduce")
        if preset == "ride":
            module.setdefault("two_stream", not reproduce)
        else:
            new["as_published"] = reproduce
        _warn("reproduce=True", "two_stream=False" if preset == "ride" else "as_published=True")
    return new


def _warn(old: str, new: str) -> None:
    warnings.warn(f"{old} is called {new} from 0.2 on", DeprecationWarning, stacklevel=4)


def _check_arguments(module: dict[str, Any]) -> None:
    known = [*inspect.signature(attach).parameters, *inspect.signature(BatchFormer).parameters]
    for name in module:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
            hint = f"; the nearest is {near[0]!r}" if near else ""
            raise TypeError(f"attach() got an unexpected keyword argument {name!r}{hint}")
