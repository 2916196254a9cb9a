"""Checkpoints of the official forks, into a model of the stock code with BatchFormer attached."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from batchformer.swap_in.attachment import Attachment, attachment_of
from batchformer.swap_in.places import path_of

_INSIDE = ("state_dict", "state_dict_best", "model", "net", "model_dict")  # what the scripts save it as
_MODULE = re.compile(
    r"^(?P<where>(.*\.)?(encoder_layers|bf|bt)(\.\d+)?)\."
    r"(?P<name>(layers\.\d+\.)?(self_attn|linear[12]|norm[12])\..+)$"
)
_IN_PROJECTOR = re.compile(r"(base|momentum)_encoder\.(fc|head)\.0\.encoder_layers$")


def load_official(model: nn.Module, checkpoint: Mapping[str, Any]) -> None:
    """Load a checkpoint that was trained with an official fork into `model`, with its BatchFormer modules.

    The forks keep the module under other names, some of them several times, and in MoCo v3 and DeiT it shifts
    the numbers of the layers after it. Without an attachment, the model gets the rest alone: it is ready for
    deployment. Every tensor of the model is loaded, or none.

    Args:
        model: of the stock code; of Balanced Softmax, ``networks["classifier"]``.
        checkpoint: what ``torch.load(path, weights_only=False)`` gives, or the state_dict in it. (The forks
            save their arguments, which torch refuses to load otherwise: load files that you trust.)

    Raises:
        TypeError: checkpoint is not a mapping.
        ValueError: it holds another number of modules than `model`; names or shapes that do not fit.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.Linear(64, 10))
        >>> stock = model.state_dict()
        >>> attachment = attach(model, before="1")
        >>> encoder = torch.nn.TransformerEncoderLayer(64, 4, 64).state_dict()
        >>> checkpoint = stock | {f"encoder_layers.{name}": tensor for name, tensor in encoder.items()}
        >>> load_official(model, {"state_dict": checkpoint})
    """
    if not isinstance(checkpoint, Mapping):
        raise TypeError(
            f"checkpoint: expected a mapping, as torch.load gives, got {type(checkpoint).__name__}"
        )
    attachment = attachment_of(model)
    expected = model.state_dict() if attachment is None else attachment.stock_state_dict()
    modules, rest = _split(_state_dict(checkpoint, model))
    loaded = _in_stock_names(rest, modules)
    _check(expected, loaded, type(model).__name__)
    if attachment is not None:
        prefix = path_of(attachment, model)
        loaded |= {f"{prefix}.{name}": tensor for name, tensor in _inserted(attachment, modules).items()}
    model.load_state_dict(loaded, strict=True)


def _state_dict(checkpoint: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    for name in _INSIDE:
        if isinstance(checkpoint.get(name), Mapping):
            checkpoint = checkpoint[name]
            break
    if isinstance(checkpoint.get("classifier"), Mapping):  # Balanced Softmax keeps its networks apart
        flat = dict(checkpoint["classifier"])
        return flat | {f"bt.{name}": tensor for name, tensor in checkpoint.get("bt", {}).items()}
    state = {name: value for name, value in checkpoint.items() if isinstance(value, Tensor)}
    parallel = isinstance(model, nn.DataParallel)
    if not parallel and state and all(name.startswith("module.") for name in state):
        return {name.removeprefix("module."): value for name, value in state.items()}
    return state


def _split(state: dict[str, Any]) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """The modules by where they are, and the rest."""
    modules: dict[str, dict[str, Tensor]] = {}
    rest = {}
    for name, tensor in state.items():
        found = _MODULE.match(name)
        if found:
            modules.setdefault(found["where"], {})[found["name"]] = tensor
        else:
            rest[name] = tensor
    return modules, rest


def _in_stock_names(rest: dict[str, Tensor], modules: dict[str, Any]) -> dict[str, Tensor]:
    """The rest of a checkpoint under the names of the stock code."""
    # DeiT: the module is a block; MoCo v3: the module is the first layer of a projector.
    blocks = [
        int(found[1]) for where in modules if (found := re.match(r"blocks\.(\d+)\.encoder_layers", where))
    ]
    projectors = [where.removesuffix("0.encoder_layers") for where in modules if _IN_PROJECTOR.match(where)]
    is_swad, is_czsl = "classifier.encoder_layers" in modules, "encoder_layers" in modules

    def stock(name: str) -> str:
        if is_swad:
            return re.sub(r"^(classifier|network\.1)\.fc\.", r"\1.", name)
        if is_czsl:
            return name.removeprefix("model.")
        if blocks and (found := re.match(r"blocks\.(\d+)\.(?:block\.)?(.*)", name)):
            return f"blocks.{int(found[1]) - sum(block < int(found[1]) for block in blocks)}.{found[2]}"
        for projector in projectors:
            if name.startswith(projector):
                number, _, parameter = name.removeprefix(projector).partition(".")
                return f"{projector}{int(number) - 1}.{parameter}"
        return name

    return {stock(name): tensor for name, tensor in rest.items()}


def _inserted(attachment: Attachment, modules: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of the attachment, from the distinct modules found."""
    different: list[dict[str, Tensor]] = []
    for where in sorted(modules, key=lambda where: [int(n) for n in re.findall(r"\d+", where)]):
        if not any(_equal(modules[where], other) for other in different):
            different.append(modules[where])
    count = len(attachment.inserted)
    if len(different) != count:
        hint = "; attach with shared=False" if len(different) > count > 0 else ""
        raise ValueError(
            f"checkpoint: expected {count} {'module' if count == 1 else 'different modules'} of BatchFormer, "
            f"got {len(different)}{hint}"
        )
    found = {
        f"inserted.{number}.encoder.{name}": tensor
        for number, module in enumerate(different)
        for name, tensor in module.items()
    }
    _check(attachment.state_dict(), found, "the attachment")
    return found


def _equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def _check(expected: Mapping[str, Any], loaded: Mapping[str, Tensor], what: str) -> None:
    """Raise ValueError unless names and shapes are those of the model, before anything is loaded."""
    missing = [name for name in expected if name not in loaded]
    unexpected = [name for name in loaded if name not in expected]
    if missing or unexpected:
        raise ValueError(
            f"checkpoint: expected the names of {what}, got {len(missing)} missing {missing[:3]}, "
            f"{len(unexpected)} unknown {unexpected[:3]}"
        )
    for name, tensor in loaded.items():
        if tensor.shape != expected[name].shape:
            raise ValueError(
                f"checkpoint: expected shape {list(expected[name].shape)} of {name}, got {list(tensor.shape)}"
            )
