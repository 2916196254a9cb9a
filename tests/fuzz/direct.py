"""The ops themselves as Python: the only lines that know the order of their arguments."""

_NEEDS = "[*(tensor is not None for tensor in (x, *parameters)), False]"

FORWARD = f"torch.ops.batchformer.encoder_layer(x, *parameters, None, None, seed, *config, {_NEEDS})"
"""Of `x`, `parameters`, `seed` and `config`: y, and all that the backward needs."""

BACKWARD = (
    "torch.ops.batchformer.encoder_layer_backward("
    f"grad_y, x, *parameters, None, None, seed, *config, saved, {_NEEDS})"
)
"""Of `grad_y` and `saved`, too: the gradients of x and of the parameters that are there."""

FEWEST_SAVED = 8
"""Tensors that every forward leaves."""
