"""The modules for places: of the width, device and dtype that the model has there."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from batchformer.modules.batchformer import BatchFormer
from batchformer.modules.batchformer_v2 import BatchFormerV2
from batchformer.swap_in.options import Options
from batchformer.swap_in.places import Place, input_width, output_width, tensor_arguments


def feature_modules(
    model: nn.Module, places: Sequence[Place], options: Options, widths: Sequence[int | None] | None = None
) -> list[nn.Module]:
    """BatchFormer for the features that classifiers take, of the given widths or the classifiers' own.

    Raises:
        ValueError: a width that is not known or does not fit, or several for one shared module.
    """
    widths = widths or [input_width(place.module) for place in places]
    for place, width in zip(places, widths, strict=True):
        if width is not None and options.dim is not None and width != options.dim:
            raise ValueError(f"dim: expected {width}, which {place} takes, got {options.dim}")
    return _make(BatchFormer, model, places, [options.dim or width for width in widths], options)


def token_modules(
    model: nn.Module,
    places: Sequence[Place],
    layout: str,
    options: Options,
    widths: Sequence[int | None] | None = None,
) -> list[nn.Module]:
    """BatchFormerV2 for the tokens that blocks give; BatchFormer if they give features, layout "NC".

    Raises:
        ValueError: a width that is not known, or several for one shared module.
    """
    widths = [options.dim or width for width in widths or [output_width(place.module) for place in places]]
    if layout == "NC":
        return _make(BatchFormer, model, places, widths, options)
    return _make(BatchFormerV2, model, places, widths, options, layout=layout)


def initialised_as_detr(modules: list[nn.Module]) -> list[nn.Module]:
    """The modules with Xavier-uniform matrices, as DETR initialises the official BatchFormer, too."""
    for module in modules:
        for parameter in module.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
    return modules


def _make(
    kind: type[nn.Module],
    model: nn.Module,
    places: Sequence[Place],
    widths: Sequence[int | None],
    options: Options,
    **arguments: Any,
) -> list[nn.Module]:
    for place, width in zip(places, widths, strict=True):
        if width is None:
            raise ValueError(
                f"dim: expected the number of channels at {place}, as {type(place.module).__name__} does not "
                "tell it, got None; attach(..., dim=64) says that there are 64"
            )
    if options.shared and len(set(widths)) > 1:
        got = ", ".join(f"{width} at {place}" for place, width in zip(places, widths, strict=True))
        raise ValueError(f"shared: expected False, as one module has one width, got True and widths of {got}")
    count = 1 if options.shared else len(places)
    return [
        kind(width, **(tensor_arguments(place, model) | options.module | arguments))
        for place, width in zip(places[:count], widths[:count], strict=True)
    ]
