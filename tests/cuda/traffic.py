"""The least bytes that each kernel moves through the device's memory: each number read or written once."""

from collections.abc import Callable

from batchformer.benchmark.shapes import Shape

Formula = Callable[[Shape, int], float]


def tokens(count: float) -> Formula:
    """So many matrices [M, C] of the dtype; the feed-forward is as wide as the layer."""
    return lambda shape, size: count * shape.tokens * shape.channels * size


def weights(scores: float, others: float) -> Formula:
    """So many tensors [L, H, N, K] of scores in float32, and of the dtype."""
    return lambda shape, size: (
        (4 * scores + size * others)
        * shape.positions
        * shape.heads
        * shape.samples
        * (shape.keys or shape.samples)
    )


BYTES: dict[str, tuple[str, Formula]] = {
    "residual_norm_forward": ("4 M C", tokens(4)),  # x, branch -> residual, y
    "residual_norm_backward": ("4 M C", tokens(4)),  # grad_y, residual -> grad_residual, grad_branch
    "activation_forward": ("2 M F", tokens(2)),
    "activation_backward": ("3 M F", tokens(3)),
    "attention_small_forward": ("4 M C", tokens(4)),
    "attention_small_backward": (
        "7 M C",
        tokens(7),
    ),  # q, k, v, grad -> three gradients; 8 with attended again
    "attention_long_forward": ("4 M C", tokens(4)),
    "attention_long_backward_query": ("6 M C", tokens(6)),
    "attention_long_backward_key": ("6 M C", tokens(6)),
    "softmax_forward": ("2 L H N K", weights(1, 1)),
    "softmax_backward": ("4 L H N K", weights(2, 2)),
    "column_partials": ("3 M C", tokens(3)),  # of the projection of q, k, v
}
"""By kernel: the formula as it is printed, in elements, and its bytes; not in it: sums of partial sums."""
TWICE = ("residual_norm_forward", "residual_norm_backward")


def bytes_of_step(kernel: str, shape: Shape, size: int) -> float | None:
    """What all launches of a kernel in a training step of a post-norm layer move together."""
    if kernel not in BYTES:
        return None
    return (2 if kernel in TWICE else 1) * BYTES[kernel][1](shape, size)
