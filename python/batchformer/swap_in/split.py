"""outputs="originals": the model returns the originals' rows alone, the criterion gets both streams again.

The related rows of a view of an output are the same view of the related rows: what scripts cut, squeeze or
transpose is found by its storage, copies by their values. Anything else that was computed from the output has
no related rows that could be known.

The gradient of a wrapped criterion reaches the model through the output of 2N rows. What the model returned
gets a gradient of zero: its hooks run, as those of FSDP2, and another gradient is that of an unwrapped term.
"""

import functools
from typing import Any, NoReturn

import torch
from torch import Tensor

from batchformer import marks
from batchformer.marks import Doubled, Split

_COPIES = {"CloneBackward0", "ToCopyBackward0", "_DDPSinkBackward", "AliasBackward0"}


def take_originals(output: Tensor, mark: Doubled, axis: int) -> Tensor:
    """The first N rows of an output that has both streams along an axis.

    The mark of the result holds what is needed to find the related rows.
    """
    # Not chunk(): its halves share one node, which would hold a reference to itself.
    original, rows, related = (output.narrow(axis, first, mark.samples) for first in (0, 0, mark.samples))
    detached = original.detach()
    split = Split(
        mark.forward,
        mark.samples,
        detached,
        rows,
        related,
        version_of(detached),
        axis,
        origin=mark.origin,
        before=mark.before,
    )
    marks.put(original, split)
    if original.requires_grad:
        original.register_hook(functools.partial(_gradient_of_originals, split))
    return original


def _gradient_of_originals(mark: Split, grad: Tensor) -> None:
    if grad is mark.zero:
        return
    if mark.zero is not None and not grad.is_cpu:
        mark.forward.owner.entry.check_later(grad.any())
    elif mark.zero is None or grad.any():
        raise_unwrapped_term()


def raise_unwrapped_term() -> NoReturn:
    """Raise RuntimeError for a gradient of returned originals that no wrapped criterion gave."""
    raise RuntimeError(
        "criterion: expected every loss of the outputs to be wrapped, as only wrapped losses get the "
        "related rows, got the gradient of one that is not: attachment.wrap() for each term"
    )


class _Rows(torch.autograd.Function):
    """The originals' rows of an output, with a gradient of zero for what a criterion got instead."""

    generate_vmap_rule = True

    @staticmethod
    def forward(rows: Tensor, given: Tensor, mark: Split) -> Tensor:
        del given, mark
        return rows.view_as(rows)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        del output
        _, given, ctx.mark = inputs
        ctx.zero = given.new_zeros(()).expand(given.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        ctx.mark.zero = ctx.zero
        return grad, ctx.zero, None


def axis_of_stack(output: Tensor) -> int | None:
    """The axis that torch.stack() made, which is not the batch's: it may be as long by chance."""
    node: Any = output.grad_fn
    stacked = node is not None and node.name() == "StackBackward0"
    return int(node._saved_dim) % output.dim() if stacked else None


def join(tensor: Tensor, mark: Split) -> tuple[Tensor, int]:
    """Both streams of what a criterion got, originals first, and how many samples these are.

    Raises:
        ValueError: something that was computed from the output, changed in place, or made without a graph.
    """
    original, rows, related = mark.original, mark.rows, mark.related
    if tensor is original:  # from a compiled graph
        return torch.cat([tensor, related], dim=mark.axis), mark.samples
    if tensor.requires_grad and not related.requires_grad:
        raise ValueError(
            "criterion: expected outputs of a model that ran with gradients, as the gradients of the related "
            "rows would be lost, got some of one that ran without (a reentrant checkpoint); pass "
            "use_reentrant=False"
        )
    if not tensor.requires_grad:  # detached, as the outputs of a teacher for the same batch
        rows, related = rows.detach(), related.detach()
    source = _source(tensor, original)
    if source is None or (tensor.requires_grad and tensor.grad_fn is None):  # detached, with a new gradient
        raise ValueError(
            "criterion: expected the outputs that the model returned, or views of them, as the related rows "
            f"are known for those alone, got a tensor computed from one, of shape {list(tensor.shape)}; "
            "compute it inside: attachment.wrap(lambda outputs, targets: ...)"
        )
    if source is original:
        if version_of(tensor) != mark.version:
            raise ValueError(
                "criterion: expected outputs as the model returned them, got some that were changed in "
                "place, which the related rows were not; change a copy inside of the criterion"
            )
    else:
        rows, related = (each.to(tensor.dtype).contiguous() for each in (rows, related))
    axis = _axis_of_rows(tensor, source, source.stride(mark.axis))
    own, counterpart = (_same_view(each, tensor, source) for each in (rows, related))
    tensor = _Rows.apply(own, tensor, mark) if tensor.requires_grad else own
    if axis is None:  # of one sample
        tensor, counterpart, axis = tensor[None], counterpart[None], 0
    return _both(tensor, counterpart, axis, mark), tensor.shape[axis]


def first_row(tensor: Tensor, mark: Split) -> int:
    """The number of the first row of a view of an output: two views of a batch may be two of its parts."""
    row = mark.original.stride(mark.axis)
    offset = mark.original.storage_offset() if _is_view(tensor, mark.original) else 0
    return int(tensor.storage_offset() - offset) // int(row) if row else 0


def _source(tensor: Tensor, original: Tensor) -> Tensor | None:
    """What a tensor is a view of: the original, a copy of it, or neither."""
    if _is_view(tensor, original):
        return original
    base = tensor if tensor._base is None else tensor._base
    return base if _is_copy(base, original) and base.is_contiguous() else None


def _same_view(rows: Tensor, view: Tensor, source: Tensor) -> Tensor:
    """The view of `rows` that `view` is of `source`."""
    offset = rows.storage_offset() + view.storage_offset() - source.storage_offset()
    return rows.as_strided(view.size(), view.stride(), offset)


def shows(tensor: Tensor, original: Tensor) -> bool:
    """Whether a tensor is a view or a copy of what a model returned."""
    return _source(tensor, original) is not None


def version_of(tensor: Tensor) -> int:
    """How often what a tensor shows was changed in place."""
    if torch.compiler.is_compiling() or tensor.is_inference():
        return 0
    return int(tensor._version)


def _both(tensor: Tensor, counterpart: Tensor, axis: int, mark: Split) -> Tensor:
    joined = torch.cat([tensor, counterpart], dim=axis)
    marks.put_by_history(joined, Doubled(mark.forward, tensor.shape[axis], before=tuple(tensor.shape[:axis])))
    return joined


def _is_view(tensor: Tensor, original: Tensor) -> bool:
    return tensor.dtype == original.dtype and _address(tensor) == _address(original)


def _address(tensor: Tensor) -> int:
    try:
        return int(tensor.untyped_storage()._cdata)
    except NotImplementedError:
        raise RuntimeError(
            'outputs: expected "both" inside of torch.func, which hides the memory by which the related rows '
            'of "originals" are found, got "originals"'
        ) from None


def _axis_of_rows(tensor: Tensor, original: Tensor, row: int) -> int | None:
    """The axis of a view that walks over the rows of the original, which lie `row` elements apart, if any."""
    axes = range(tensor.dim())
    if row == max(original.stride(axis) for axis in range(original.dim())):
        whole = tensor.numel() == original.numel() and tensor.is_contiguous()
        if whole and tensor.stride(0) < row:  # flattened
            return 0
        # If the rows are in groups, or strided, the outermost axis.
        steps = [axis for axis in axes if tensor.stride(axis) % row == 0]
        return max(steps, key=lambda axis: (tensor.shape[axis] > 1, tensor.stride(axis)), default=None)
    steps = [axis for axis in axes if tensor.stride(axis) == row]
    return max(steps, key=lambda axis: (tensor.shape[axis] > 1, -axis), default=None)


def _is_copy(tensor: Tensor, original: Tensor) -> bool:
    if tensor.shape != original.shape or not tensor.is_floating_point():
        return False
    if tensor.grad_fn is not None and not set(marks.names_on_path(tensor)) <= _COPIES:
        return False  # by chance the same, as multiplied by a scale of one
    return torch.allclose(tensor.detach(), original.to(tensor.dtype), rtol=0, atol=0, equal_nan=True)
