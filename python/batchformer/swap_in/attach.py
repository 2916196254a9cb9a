"""attach(): BatchFormer in an existing training script, with one line for the model and one for the loss."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from batchformer.modules import _check
from batchformer.swap_in.attachment import NAME, Attachment, attachment_of
from batchformer.swap_in.contrastive import MoCoV2, MoCoV3, PaCo
from batchformer.swap_in.czsl import CompositionalZeroShot
from batchformer.swap_in.detr import DeformableDetr, Detr
from batchformer.swap_in.domainbed import DomainBed
from batchformer.swap_in.family import Family
from batchformer.swap_in.generic import AfterBlocks, BeforeClassifiers
from batchformer.swap_in.long_tailed import BalancedSoftmax, Ride
from batchformer.swap_in.options import Options
from batchformer.swap_in.places import check_not_wrapped
from batchformer.swap_in.transformers_detr import TransformersDetr
from batchformer.swap_in.vision_transformer import VisionTransformer

_RECOGNISED: tuple[type[Family], ...] = (
    TransformersDetr,
    Detr,
    DeformableDetr,
    VisionTransformer,
    Ride,
    PaCo,
    MoCoV2,
    MoCoV3,
    DomainBed,
    CompositionalZeroShot,
)
_FAMILIES: tuple[type[Family], ...] = (*_RECOGNISED, BalancedSoftmax)
_ALIASES = {
    "conditional_detr": "detr",
    "vit": "deit",
    "swad": "domainbed",
    "cge": "czsl",
    "compcos": "czsl",
}


def attach(
    model: nn.Module,
    preset: str | None = None,
    *,
    before: str | Sequence[str] | None = None,
    after: str | int | Sequence[str] | Sequence[int] | None = None,
    layout: str | None = None,
    dim: int | None = None,
    shared: bool = True,
    rejoin: bool = False,
    pairings: str = "all",
    reproduce: bool = False,
    **module: Any,
) -> Attachment:
    """BatchFormer in `model`, whose code stays as it is; what is returned is also ``model.batchformer``.

    In training the part of the model behind the insertion sees both streams, the originals first: twice the
    batch. In evaluation, and after :meth:`Attachment.remove`, the model is what it was. Attach before the
    optimizer is built, or hand it ``attachment.parameters()``; before DistributedDataParallel, torch.compile
    and copies for an average; and pass the criterion through :meth:`Attachment.wrap`.

    Args:
        model: any module. Without `preset`, `before` and `after`, its family is recognised.
        preset: "detr" (also "conditional_detr"), "deformable_detr", "deit" (also "vit"), "ride",
            "balanced_softmax", "paco", "moco_v2", "moco_v3", "domainbed" (also "swad"), "czsl" (also "cge",
            "compcos").
        before: the path of a classifier that takes features `[N, C]`, or of several; '' is the model itself.
        after: the path of a block, or of several in the order in which they run. For a preset the indices of
            its blocks; if None, DETR's encoder layer 0 and DeiT's block 8.
        layout: of what the blocks give, "NLC", "LNC", "NCHW", or "NC" for features. If None, what their
            modules tell: batch_first of an attention, convolutions; else "NLC".
        dim: the width C. If None, what the modules tell.
        shared: one module for all places, or one for each.
        rejoin: the model returns the originals' rows alone, and the wrapped criterion gets those of both
            streams: for scripts that compare training logits with labels. Presets whose scripts do have it.
        pairings: of contrastive learning ("moco_v2", "moco_v3"): "all" or "aligned".
        reproduce: do as the published code where that differs from the method: "ride" has the related stream
            alone, "balanced_softmax" three times the loss, and that stream first, "moco_v3" four times the
            loss, and a module that is not trained.
        **module: nhead, dim_feedforward, dropout, two_stream, attend, num_layers and the other arguments of
            :class:`BatchFormer`.

    Raises:
        TypeError: model is not an nn.Module, or arguments of another type.
        ValueError: a path that does not exist, a width, layout, order or option that does not fit, a model of
            another family, one that has an attachment already, or one that is wrapped already.

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
    _check.one_of("pairings", pairings, ("all", "aligned"))
    if layout is not None:
        _check.one_of("layout", layout, ("NLC", "LNC", "NCHW", "NC"))
    if attachment_of(model) is not None:
        raise ValueError(f"model: expected a {type(model).__name__} without BatchFormer, got one that has it")
    if hasattr(model, NAME):
        raise ValueError(f"model: expected no attribute {NAME!r}, got a {type(model).__name__} that has one")
    family = _family(model, preset, before, after)
    at_places = family in (BeforeClassifiers, AfterBlocks)
    given = {
        "preset": preset if at_places else None,
        "before": before,
        "after": after,
        "layout": layout,
        "shared": None if shared else shared,
        "rejoin": rejoin or None,
        "pairings": None if pairings == "all" else pairings,
        "reproduce": reproduce or None,
    }
    for name, value in given.items():
        if value is not None and name not in family.takes:
            takes = ", ".join((*family.takes, "dim and what BatchFormer takes"))
            raise ValueError(
                f"{name}: expected no value with {family.name!r}, which takes {takes}, got {value!r}"
            )
    options = Options(before, after, layout, dim, shared, rejoin, pairings, reproduce, module)
    return family(model, options)


def _family(model: nn.Module, preset: str | None, before: Any, after: Any) -> type[Family]:
    if before is not None:
        return BeforeClassifiers
    if isinstance(after, str) or (isinstance(after, Sequence) and any(isinstance(one, str) for one in after)):
        return AfterBlocks
    if preset is None:
        for family in _RECOGNISED:
            if family.fits(model):
                return family
        raise ValueError(
            f"model: expected one of a known family, or a place by its path (before= or after=), got "
            f"{type(model).__name__}"
        )
    _check.one_of("preset", preset, [*dict.fromkeys(family.name for family in _FAMILIES), *_ALIASES])
    named = [family for family in _FAMILIES if family.name == _ALIASES.get(preset, preset)]
    for family in named:
        if family.fits(model):
            return family
    expected = " or ".join(family.expects for family in named)
    raise ValueError(f"model: expected for {preset!r} {expected}, got {type(model).__name__}")
