"""fully_shard (FSDP2) around parts of a model, where attached modules are not gathered, or not averaged."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from batchformer.swap_in.places import Place, is_inside


def check_sharded(model: nn.Module, inserted: nn.ModuleList, places: Sequence[Place]) -> None:
    """Raise RuntimeError for parameters of the modules that would be shards at a place, or that drift apart.

    FSDP2 gathers the shards of a unit when that is called. The attachment is never called, as hooks run its
    modules, and attention reads the weights of its output projection without calling it; a child of an
    nn.Sequential, which holds the attachment, has been called when a later place runs. Parameters in no unit
    are not averaged over processes: whether there is a unit around the model shows from the second forward
    on, when the units of the first know the outermost of them.
    """
    paths = {id(module): path for path, module in model.named_modules()}
    units = {path: module for path, module in model.named_modules() if _is_unit(module)}
    for number, module in enumerate(inserted):
        path = paths.get(id(module), "")
        inside = [unit for unit in units if is_inside(unit, path) and unit != path]
        around = max((unit for unit in units if is_inside(path, unit)), key=len, default=None)
        _check_gathered(path, [each for each in inside if each.endswith(".out_proj")], places)
        if around is None:
            if not inside and any(_is_outermost(unit) for unit in units.values()):
                raise RuntimeError(
                    f"fully_shard: expected one around the model, or around each of attachment.inserted, as "
                    f"their gradients are not averaged over the processes otherwise, got some around "
                    f"{', '.join(map(repr, list(units)[:3]))}"
                )
        elif around not in ("", path):
            here = places if len(inserted) == 1 else [places[number]]
            _check_gathered(path, [around], [each for each in here if not is_inside(each.path, around)])


def _check_gathered(path: str, units: Sequence[str], places: Sequence[Place]) -> None:
    for unit, place in ((unit, place) for unit in units for place in places):
        raise RuntimeError(
            f"fully_shard: expected parameters of {path!r} that are gathered at {place}, got some in the "
            f"unit {unit!r}, which is not called there; shard each of attachment.inserted, and then what is "
            f"around it"
        )


def _is_unit(module: nn.Module) -> bool:
    return any(base.__name__ == "FSDPModule" for base in type(module).__mro__)


def _is_outermost(unit: Any) -> bool:
    return bool(unit._get_fsdp_state()._is_root)
