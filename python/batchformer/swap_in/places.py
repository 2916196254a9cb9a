"""Where in a model to insert: modules by their path, their width, their layout, their device."""

import difflib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)  # they would run a new child as a new layer
_SEQUENCE_FIRST = ("models.xlnet.", "models.fsmt.")
_BATCH_FIRST = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer, nn.MultiheadAttention)
_OF_MAPS = (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, nn.MaxPool2d, nn.AvgPool2d)
_DETECTORS = ("GeneralizedRCNN", "RetinaNet", "FCOS", "SSD")
_SHARDED = ("DTensor", "FlatParameter")
_NORMS_OF_CHANNELS = (nn.modules.batchnorm._BatchNorm,)


class Place(NamedTuple):
    """A module of a model, and the path to it."""

    path: str
    module: nn.Module

    def __str__(self) -> str:
        return repr(self.path) if self.path else type(self.module).__name__


def find(model: nn.Module, argument: str, paths: str | Sequence[str]) -> list[Place]:
    """The places at `paths`, in their order.

    Raises:
        ValueError: no path, a path twice, or one that does not exist; the error lists the nearest names.
        TypeError: something else than paths.
    """
    if isinstance(paths, str):
        paths = [paths]
    if not isinstance(paths, Sequence) or not all(isinstance(path, str) for path in paths):
        raise TypeError(f"{argument}: expected a path or a list of paths of modules, got {paths!r}")
    if not paths or len(set(paths)) < len(paths):
        raise ValueError(f"{argument}: expected at least one path and none twice, got {list(paths)}")
    modules = dict(model.named_modules(remove_duplicate=False))
    for path in paths:
        if path not in modules:
            raise ValueError(
                f"{argument}: expected the path of a module in {type(model).__name__}, got {path!r}; "
                f"{_nearest(path, modules)}{_classifier(argument, model)}"
            )
    if len({id(modules[path]) for path in paths}) < len(paths):
        raise ValueError(f"{argument}: expected each module once, got {list(paths)}, which share one")
    return [Place(path, modules[path]) for path in paths]


def find_blocks(model: nn.Module, path: str, indices: Any, *, default: int) -> list[Place]:
    """Those of the blocks in the list at `path`: of one index, or of several that ascend.

    Raises:
        TypeError: something else than indices.
        ValueError: an index that does not exist, or not ascending.
    """
    blocks = list(model.get_submodule(path).named_children())
    if indices is None and default >= len(blocks):
        raise ValueError(
            f"after: expected an index from 0 to {len(blocks) - 1}, as {path!r} has {len(blocks)} blocks and "
            f"not the paper's block {default}, got None"
        )
    chosen = [default] if indices is None else [indices] if isinstance(indices, int) else indices
    if not isinstance(chosen, Sequence) or not all(isinstance(index, int) for index in chosen):
        raise TypeError(f"after: expected an index or a list of indices of blocks, got {indices!r}")
    if not chosen or not all(0 <= index < len(blocks) for index in chosen):
        raise ValueError(f"after: expected indices from 0 to {len(blocks) - 1} of {path!r}, got {chosen}")
    if list(chosen) != sorted(set(chosen)):
        raise ValueError(f"after: expected ascending indices, as the first doubles the batch, got {chosen}")
    return [Place(f"{path}.{blocks[index][0]}", blocks[index][1]) for index in chosen]


def check_not_wrapped(model: nn.Module) -> None:
    """Raise ValueError if the model is already wrapped in something that has to come after attach()."""
    for module in model.modules():
        name = type(module).__name__
        if isinstance(module, DistributedDataParallel) or name == "FullyShardedDataParallel":
            raise ValueError(
                f"model: expected one that is not wrapped in {name} yet, as that takes over the parameters "
                f"which it finds, got {name}"
            )
        if any(type(parameter).__name__ in _SHARDED for parameter in module.parameters(recurse=False)):
            raise ValueError(
                "model: expected one whose parameters are not sharded yet, as those of BatchFormer would "
                "stay out of it, got one after fully_shard; attach() before"
            )
        if name == "OptimizedModule" or module._compiled_call_impl is not None:
            raise ValueError("model: expected one before torch.compile, got a compiled one")


def is_detector(module: nn.Module) -> bool:
    """Whether a module is a detector of torchvision, or of a class that is made from one."""
    return any(
        cls.__name__ in _DETECTORS and cls.__module__.startswith("torchvision.models.detection.")
        for cls in type(module).__mro__
    )


def check_outside_of_detectors(model: nn.Module, places: Iterable[Place]) -> None:
    """Raise ValueError for a place inside of a detector, which matches its targets with the images."""
    for path, module in model.named_modules():
        for place in places if is_detector(module) else ():
            if is_inside(place.path, path):
                name = type(module).__name__
                raise ValueError(
                    f"model: expected torchvision's {name} itself without a place, or a place in its "
                    f"backbone, as its targets have to be doubled with its maps, got {place} in "
                    f"{type(model).__name__}"
                )


def check_places(model: nn.Module, places: Iterable[Place]) -> None:
    """Raise ValueError for a place at which no hook runs, or that nn.DataParallel splits."""
    for place in places:
        if type(place.module).forward is nn.Module.forward:
            raise ValueError(
                f"model: expected a module at {place} that the model calls, got a "
                f"{type(place.module).__name__}, which only holds others; name one of them"
            )
        for path, module in model.named_modules():
            split = isinstance(module, DataParallel) and len(module.device_ids) > 1
            if split and place.path != path and is_inside(place.path, path):
                raise ValueError(
                    f"model: expected no nn.DataParallel around {place}, as it gathers both streams of each "
                    f"device in turn, got one over {len(module.device_ids)}; use DistributedDataParallel"
                )


def check_optional(places: Iterable[Place], optional: Sequence[str]) -> None:
    """Raise ValueError unless what may be skipped are places."""
    paths = [place.path for place in places]
    for path in optional:
        if path not in paths:
            raise ValueError(f"optional: expected paths out of {paths}, got {path!r}")


def path_of(module: nn.Module, model: nn.Module) -> str | None:
    """The path of a module inside the model; None if it is not there."""
    return next((str(path) for path, other in model.named_modules() if other is module), None)


def path_of_class(model: nn.Module, *classes: str) -> str | None:
    """The path to a module of transformers of one of these classes, as a prefix; None if there is none."""
    for path, module in model.named_modules():
        if type(module).__name__ in classes and type(module).__module__.startswith("transformers."):
            return f"{path}." if path else ""
    return None


def is_inside(path: str, outer: str) -> bool:
    """Whether the module at a path is the one at `outer`, or inside of it."""
    return not outer or path == outer or path.startswith(f"{outer}.")


def has_modules(model: nn.Module, *paths: str) -> bool:
    """Whether there is a module at each path."""
    modules = dict(model.named_modules(remove_duplicate=False))
    return all(path in modules for path in paths)


def last_linear(model: nn.Module) -> str | None:
    """The path to the last Linear inside a model, which often is its classifier."""
    linear = [path for path, module in model.named_modules() if path and isinstance(module, nn.Linear)]
    return linear[-1] if linear else None


def holder(model: nn.Module, places: Sequence[Place]) -> nn.Module:
    """The module that the new one becomes a child of: the model, unless that would run it as a layer."""
    candidates = (model, *(module for place in places for module in place.module.modules()))
    found = next((module for module in candidates if not isinstance(module, _CONTAINERS)), None)
    if found is None:
        raise ValueError(f"model: expected a place with a module inside, got {places[0]}, which has none")
    return found


def input_width(module: nn.Module) -> int | None:
    """C of the features that a classifier takes, from its first layer of known width, or None."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear) and layer.in_features:
            return layer.in_features
        if isinstance(layer, _NORMS_OF_CHANNELS):
            return int(layer.num_features)
        if isinstance(layer, nn.LayerNorm):
            return int(layer.normalized_shape[-1])
    return None


def output_width(module: nn.Module) -> int | None:
    """C of the output of a block, from its last layer of known width; None if none is known."""
    for layer in reversed([*module.modules()]):
        if isinstance(layer, nn.LayerNorm):
            return int(layer.normalized_shape[-1])
        for name in ("out_features", "out_channels", "num_features"):
            width = getattr(layer, name, None)
            if isinstance(width, int) and width > 0:
                return width
    return None


def layout_of(place: Place, layout: str | None) -> str:
    """The layout of the output of a block: the given one, else that of its class.

    Raises:
        ValueError: a layout that contradicts torch's `batch_first`, or None for an unknown class.
    """
    module = _deciding(place.module)
    of_torch = _of_torch(module)
    told = of_torch or _of_class(module)
    name = type(place.module).__name__
    if layout is None and told is None:
        raise ValueError(
            f"layout: expected 'NLC' if {place} gives [N, L, C] (axis 0 is the batch), 'LNC' if it gives "
            f"[L, N, C] (axis 1), 'NCHW', 'NHWC', or 'NC' for features, as {name} does not tell, got None"
        )
    if {layout, of_torch} == {"NLC", "LNC"}:
        raise ValueError(f"layout: expected {of_torch!r}, as {name} at {place} gives that, got {layout!r}")
    return layout or str(told)


def _deciding(module: nn.Module) -> nn.Module:
    """The module whose output has the layout of a container's."""
    if isinstance(module, nn.Sequential):
        children = [child for child in module if not _keeps_layout(child)]
        return _deciding(children[-1]) if children else module
    if isinstance(module, nn.TransformerEncoder):
        return _deciding(module.layers[-1])
    return module


def _of_torch(module: nn.Module) -> str | None:
    """The layout of a block of torch, by its `batch_first`."""
    attention = getattr(module, "self_attn", module)
    if isinstance(module, _BATCH_FIRST) and isinstance(attention, nn.MultiheadAttention):
        return "NLC" if attention.batch_first else "LNC"
    return None


def _of_class(module: nn.Module) -> str | None:
    """The layout of blocks like it: of torchvision, timm and transformers, or with convolutions."""
    package, _, rest = type(module).__module__.partition(".")
    if package == "transformers" and any(name in rest for name in _SEQUENCE_FIRST):
        return "LNC"
    if package in ("timm", "torchvision") and "swin" in rest and "Block" in type(module).__name__:
        return "NHWC"
    attends = any("attn" in name or "attention" in name for name, _ in module.named_children())
    if package in ("timm", "torchvision", "transformers") and attends:
        return "NLC"
    if any(isinstance(layer, _OF_MAPS) for layer in module.modules()):
        return "NCHW"
    return None


def _keeps_layout(module: nn.Module) -> bool:
    modules = ("activation", "dropout", "normalization")
    of_torch = type(module).__module__ in [f"torch.nn.modules.{name}" for name in modules]
    return isinstance(module, nn.Identity) or (of_torch and not isinstance(module, nn.MultiheadAttention))


def tensor_arguments(place: Place, model: nn.Module) -> dict[str, Any]:
    """Device and dtype for a module at the place: those of its first parameter, else of the model's."""
    for module in (place.module, model):
        for parameter in module.parameters():
            if parameter.is_floating_point():
                return {"device": parameter.device, "dtype": parameter.dtype}
    return {}


def _classifier(argument: str, model: nn.Module) -> str:
    path = last_linear(model)
    return f"; the last Linear is {path!r}" if argument == "before" and path else ""


def _nearest(path: str, modules: dict[str, nn.Module]) -> str:
    names = [name for name in modules if name]
    near = difflib.get_close_matches(path, names, n=3, cutoff=0.5)
    if near:
        return "the nearest are " + ", ".join(map(repr, near))
    top = [name for name in names if "." not in name]
    return "it has " + ", ".join(map(repr, top[:8])) if top else "it has no modules inside"
