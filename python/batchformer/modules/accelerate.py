"""Swapping torch's encoder layers in an existing model for ours."""

from typing import TypeVar

from torch import nn

from batchformer.modules.encoder_layer import TransformerEncoderLayer

Model = TypeVar("Model", bound=nn.Module)


def accelerate(model: Model, *, verbose: bool = True) -> Model:
    """`model` itself, every torch.nn.TransformerEncoderLayer in it swapped for batchformer's, in place.

    A layer stays the object that it was, with its parameters, hooks, flags and places in the model, and
    becomes one of our class: optimizers, references and checkpoints keep working. Layers of a class derived
    from torch's are left alone, as their forward is their own.

    Args:
        model: any module, itself a layer or with layers anywhere inside.
        verbose: print how many layers were swapped.

    Raises:
        TypeError: model is not an nn.Module.

    Example:
        >>> model = torch.nn.Transformer(d_model=64, nhead=4, batch_first=True)
        >>> accelerate(model) is model
        batchformer.accelerate: swapped 6 of torch's encoder layers
        True
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    layers = [module for module in model.modules() if type(module) is nn.TransformerEncoderLayer]
    for layer in layers:
        layer.__class__ = TransformerEncoderLayer
    if verbose:
        print(f"batchformer.accelerate: swapped {len(layers)} of torch's encoder layers")  # noqa: T201 - asked for
    return model
