"""Who attends to whom in a batch: in an encoder, or at a place of a model that has an attachment."""

import math
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from batchformer.modules import relations as of_encoder
from batchformer.modules.batchformer_v2 import BatchFormerV2
from batchformer.swap_in.attachment import Attachment, attachment_of
from batchformer.swap_in.signature import Call
from batchformer.swap_in.untouched import untouched
from batchformer.tracer import eager

Position: TypeAlias = int | tuple[int, int] | None


def relations(
    encoder: nn.Module, x: Any, place: int = 0, position: Position = None
) -> NDArray[np.floating[Any]]:
    """Attention probabilities `[heads, N, N]` between the samples of x; row i is what sample i attends to.

    Computed without dropout in the attention, whatever the mode of the encoder, and without gradient; the
    encoder does not change.

    With an attachment the model runs once, in its current mode, as the stock model: N originals arrive at
    each place, also after other places, and labels are not needed. In evaluation, where BatchFormer does
    nothing, these are the relations that it would see. Buffers, frozen parameters, attributes of the modules,
    the global random states and gradients are restored, but not what a forward changes inside of a list or of
    a generator of its own; copies of the first two take memory. Graphs of torch.compile are not used.

    Args:
        encoder: a torch.nn.TransformerEncoderLayer or ours, or a module with one as its ``encoder``, like
            BatchFormer and BatchFormerV2; or an attachment. Of an attachment's module with ``num_layers``
            above 1 it is the first layer; one with ``attend="alone"`` is taken as if it attended to all, with
            ``attend="uniform"`` all probabilities are equal. Samples of other ranks and remembered ones
            (``gather_distributed``, ``memory_bank_size``) are left out.
        x (Tensor[N, C]): what would go into the encoder; of a token map, one position. With an attachment
            what the model takes: a tuple of arguments, a dict (or a BatchEncoding) of those with names, or
            one argument of any other kind.
        place: which place of the attachment, by its number in the order of ``before`` or ``after``. A block
            that runs several times counts with its first run.
        position: of the tokens at the place, an index, or for a map (row, column), too. If None, the mean
            over all positions, a class token included.

    Raises:
        TypeError: encoder holds no single layer, or is a model with an attachment; x, place or position is
            of a wrong type.
        ValueError: a shape, dtype or device of x that does not fit the encoder, tensors without values, or a
            place or position that does not exist.
        RuntimeError: the model does not run the place.

    Example:
        >>> relations(BatchFormer(64, nhead=4), torch.rand(32, 64)).shape
        (4, 32, 32)
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.Linear(64, 10))
        >>> relations(attach(model, before="1"), torch.rand(32, 8)).shape
        (4, 32, 32)
    """
    if isinstance(encoder, Attachment):
        return _at_place(encoder, x, place, position)
    if attachment_of(encoder) is not None:
        raise TypeError(
            f"encoder: expected the attachment that attach() returned, got the {type(encoder).__name__} that "
            f"has it"
        )
    if (place, position) != (0, None):
        raise ValueError(
            f"place: expected neither place nor position without an attachment, got place={place} and "
            f"position={position} with a {type(encoder).__name__}"
        )
    return of_encoder.relations(encoder, x, uniform=_is_uniform(encoder))


def _at_place(
    attachment: Attachment, inputs: Any, number: int, position: Position
) -> NDArray[np.floating[Any]]:
    streams = attachment._family.streams
    if not isinstance(number, int):
        raise TypeError(f"place: expected the number of a place, got {number!r}")
    if not 0 <= number < streams.count:
        raise ValueError(f"place: expected a number from 0 to {streams.count - 1}, got {number}")
    place, module = streams.place(number), streams.at(number)
    if position is not None and not isinstance(module, BatchFormerV2):
        raise ValueError(
            f"position: expected None at {place}, where a sample is one vector of features, got {position}"
        )
    x = _arriving(attachment, number, *_call(inputs))
    if x is None:
        raise RuntimeError(
            f"place: expected {type(attachment._model[0]).__name__} to run {place} in its forward, got one "
            "that does not: the place was skipped or replaced, or the attachment was removed"
        )
    layer = module.encoder.layers[0] if isinstance(module.encoder, nn.TransformerEncoder) else module
    weight = next(module.parameters())
    x = x.to(weight.device, weight.dtype)  # which autocast may have changed
    with torch.autocast(weight.device.type, enabled=False):
        uniform = _is_uniform(module)
        if not isinstance(module, BatchFormerV2):
            return of_encoder.relations(layer, x, uniform=uniform)
        tokens = module.tokens(x)  # [N, L, C]
        if position is None:
            return of_encoder.mean_relations(layer, tokens, uniform=uniform)
        return of_encoder.relations(layer, tokens[:, _index(module, x, position)], uniform=uniform)


def _is_uniform(module: nn.Module) -> bool:
    return getattr(module, "attend", None) == "uniform"


def _arriving(
    attachment: Attachment, number: int, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Tensor | None:
    """The input of a place of the stock model."""
    family, model = attachment._family, attachment._model[0]
    with untouched(model), eager():
        attachment.training = False  # so that no batch and no label is doubled, and nothing is marked
        return family.streams.arriving(number, lambda: family.run(args, kwargs))


def _call(inputs: Any) -> Call:
    if isinstance(inputs, Mapping):
        return (), {**inputs}
    is_arguments = isinstance(inputs, tuple) and not hasattr(inputs, "_fields")
    return (inputs if is_arguments else (inputs,)), {}


def _index(module: BatchFormerV2, x: Tensor, position: Any) -> int:
    """The index of a position among all of the layout.

    Raises:
        TypeError: neither an index nor (row, column) of a map.
        ValueError: one that is outside.
    """
    sizes = {"NLC": x.shape[1:2], "LNC": x.shape[:1], "NCHW": x.shape[2:], "NHWC": x.shape[1:3]}
    size: tuple[int, ...] = tuple(sizes[module.layout])  # (L,) or (H, W)
    within, count = position, size
    if isinstance(position, int):
        within, count = (position,), (math.prod(size),)
    elif not (isinstance(position, tuple) and len(position) == len(size) == 2):
        expected = "an index" if len(size) == 1 else "an index or (row, column)"
        raise TypeError(f"position: expected {expected} of a {module.layout} layout, got {position!r}")
    if not all(0 <= each < limit for each, limit in zip(within, count, strict=True)):
        raise ValueError(
            f"position: expected one of {' x '.join(map(str, count))} positions, counted from 0, got "
            f"{position}"
        )
    return int(np.ravel_multi_index(within, count))
