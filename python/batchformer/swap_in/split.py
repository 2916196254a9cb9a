"""outputs="originals": the model returns the originals' rows alone, the criterion gets both streams again.

The related rows of a view of an output are the same view of the related rows: what scripts cut, squeeze or
transpose is found by its storage, copies by their values. Anything else that was computed from the output has
no related rows that could be known.
"""

from typing import Any

import torch
from torch import Tensor

from batchformer import marks
from batchformer.marks import Doubled, Split


def take_originals(output: Tensor, mark: Doubled) -> Tensor:
    """The first N rows of an output `[2N, ...]`, or stacked as `[..., 2N, ...]`; itself if it has none.

    What is needed to find the others is in the mark of what is returned.
    """
    stacked = _axis_of_stack(output)
    axes = [
        axis for axis in range(output.dim()) if output.shape[axis] == 2 * mark.samples and axis != stacked
    ]
    if not axes:
        return output
    axis = axes[0]
    # Not chunk(): both halves would have one node, which would keep itself.
    original = output.narrow(axis, 0, mark.samples)
    related = output.narrow(axis, mark.samples, mark.samples)
    detached = original.detach()
    marks.put(original, Split(mark.forward, mark.samples, detached, related, version_of(detached), axis))
    return original


def _axis_of_stack(output: Tensor) -> int | None:
    """The axis that torch.stack() made, which is not the batch's: it may be as long by chance."""
    node: Any = output.grad_fn
    stacked = node is not None and node.name() == "StackBackward0"
    return int(node._saved_dim) % output.dim() if stacked else None


def join(tensor: Tensor, mark: Split) -> tuple[Tensor, int]:
    """Both streams of what a criterion got, originals first, and how many samples these are.

    Raises:
        ValueError: something that was computed from the output, changed in place, or made without a graph.
    """
    original, related = mark.original, mark.related
    if tensor is original:  # from a compiled graph
        return torch.cat([tensor, related], dim=mark.axis), mark.samples
    if tensor.requires_grad and not related.requires_grad:
        raise ValueError(
            "criterion: expected outputs of a model that ran with gradients, as those of the related rows "
            "would be lost, got some of one that ran without (a reentrant checkpoint); pass "
            "use_reentrant=False"
        )
    if _is_view(tensor, original):
        if version_of(tensor) != mark.version:
            raise ValueError(
                "criterion: expected outputs as the model returned them, got some that were changed in "
                "place, which the related rows were not; change a copy inside of the criterion"
            )
        offset = related.storage_offset() + tensor.storage_offset() - original.storage_offset()
        counterpart = related.as_strided(tensor.size(), tensor.stride(), offset)
        axis = _axis_of_rows(tensor, original, original.stride(mark.axis))
        return _both(tensor, counterpart, axis, mark), tensor.shape[axis] if tensor.dim() else 1
    if _is_copy(tensor, original):
        return _both(tensor, related.to(tensor.dtype), mark.axis, mark), mark.samples
    raise ValueError(
        f"criterion: expected the outputs that the model returned, or views of them, as the related rows are "
        f"kept for them, got what was computed from one, of shape {list(tensor.shape)}; compute it inside: "
        f"attachment.wrap(lambda outputs, targets: ...)"
    )


def shows(tensor: Tensor, original: Tensor) -> bool:
    """Whether a tensor is a view or a copy of what a model returned."""
    return _is_view(tensor, original) or _is_copy(tensor, original)


def version_of(tensor: Tensor) -> int:
    """How often what a tensor shows was changed in place."""
    return 0 if tensor.is_inference() else int(tensor._version)


def _both(tensor: Tensor, counterpart: Tensor, axis: int, mark: Split) -> Tensor:
    if tensor.dim() == 0:
        tensor, counterpart = tensor[None], counterpart[None]
    joined = torch.cat([tensor, counterpart if tensor.requires_grad else counterpart.detach()], dim=axis)
    marks.put_by_history(joined, Doubled(mark.forward, mark.samples))
    return joined


def _is_view(tensor: Tensor, original: Tensor) -> bool:
    return tensor.dtype == original.dtype and _address(tensor) == _address(original)


def _address(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _axis_of_rows(tensor: Tensor, original: Tensor, row: int) -> int:
    """The axis of a view that walks over the rows of the original, which lie `row` elements apart."""
    steps = [axis for axis in range(tensor.dim()) if tensor.stride(axis) == row]
    if not steps and row == max(original.stride(axis) for axis in range(original.dim())):
        # every so many rows
        steps = [axis for axis in range(tensor.dim()) if tensor.stride(axis) % row == 0]
    return max(steps, key=lambda axis: (tensor.shape[axis] > 1, -axis), default=0)


def _is_copy(tensor: Tensor, original: Tensor) -> bool:
    if tensor.shape != original.shape or not tensor.is_floating_point():
        return False
    return torch.allclose(tensor.detach(), original.to(tensor.dtype), rtol=0, atol=0, equal_nan=True)
