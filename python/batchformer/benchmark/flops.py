"""How much there is to compute in a step, by formula."""

from typing import NamedTuple

from batchformer.benchmark.shapes import Shape


class Flops(NamedTuple):
    """Multiplications and additions: forward with backward, and forward alone."""

    step: int
    forward: int


def layer_flops(shape: Shape, *, frozen: bool) -> Flops:
    """The operations of the layer's matrix products; norms, softmax, dropout and the rest do not count.

    With M = N L tokens and F feed-forward, the linears take 2 M (4 C² + 2 C F); queries by keys and
    probabilities by values together take 4 L N K C, where K is N without keys of others. The backward takes
    twice as many, as each product gives the gradients of both its factors; that of a frozen weight is not
    computed. What is computed again instead of kept does not count.
    """
    tokens, channels = shape.tokens, shape.channels
    feedforward = channels
    linears = 2 * tokens * (4 * channels**2 + 2 * channels * feedforward)
    attention = 4 * shape.positions * shape.samples * (shape.keys or shape.samples) * channels
    forward = linears + attention
    backward = (1 if frozen else 2) * linears + 2 * attention
    return Flops(forward + backward, forward)
