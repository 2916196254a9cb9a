"""A model as its users train it, and what a step of it with BatchFormer gives beside one without.

Where the related stream is made equal to the original one, the loss in training is the stock model's.
"""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import batchformer as bf
from attach_oracle import EQUAL, equal_streams
from batchformer.swap_in.rules import leaves


class Case(NamedTuple):
    """A model without dropout, and a batch of its inputs."""

    family: str  # the first of the family's names
    make: Callable[[], nn.Module]
    inputs: dict[str, Any]  # of the model, with labels if it computes its loss
    labels: Any = None  # of the criterion, for a model that does not
    criterion: Callable[..., Tensor] | None = None  # takes what the model gives, and labels
    loss: Callable[[Any], Tensor] = lambda output: output.loss  # from what the model gives
    terms: Callable[[Callable[..., Tensor], Any, Any], Tensor] = lambda criterion, output, labels: criterion(
        output, labels
    )  # what the script makes of them
    options: dict[str, Any] = {}  # noqa: RUF012  (of attach)
    more: float = 0.0  # what the loss is more than the stock model's, by what the method adds to it


class Figures(NamedTuple):
    """What a step gave."""

    family: str
    places: list[str]
    rows: int  # at the first place
    loss: float
    stock_loss: float
    gradient: float  # the largest in the module
    grads_differ: (
        float  # the largest difference of a gradient of the stock model's parameters, of its largest
    )
    related: int  # samples in the matrix of relations at the first place
    evaluation_is_stock: bool
    removed_is_stock: bool


def measure(case: Case) -> Figures:
    """One step with BatchFormer, and one without."""
    torch.manual_seed(0)
    stock = case.make().train()
    model = copy.deepcopy(stock)
    attachment = equal_streams(bf.attach(model, **EQUAL, **case.options))
    rows = []
    for module in attachment.inserted:
        module.register_forward_hook(lambda module, args, output: rows.append(len(args[0])))
    loss, stock_loss = _step(case, model, attachment.wrap), _step(case, stock, lambda criterion: criterion)
    loss.backward()
    stock_loss.backward()
    places = [str(place) for place in attachment._family.streams._places]
    gradient = max(float(p.grad.abs().max()) for p in attachment.parameters() if p.grad is not None)
    grads = [
        (model.get_parameter(name).grad, p.grad) for name, p in stock.named_parameters() if p.grad is not None
    ]
    largest = max(float(grad.abs().max()) for _, grad in grads)
    differ = max(float((ours - theirs).abs().max()) for ours, theirs in grads) / largest
    relations = bf.relations(attachment, copy.deepcopy(case.inputs))
    evaluation_is_stock = _outputs_are_equal(case, model.eval(), stock.eval())
    model.train(), stock.train()
    attachment.remove()
    removed_is_stock = _outputs_are_equal(case, model, stock)
    return Figures(
        attachment._family.names[0],
        places,
        rows[0],
        loss.item(),
        stock_loss.item(),
        gradient,
        differ,
        relations.shape[1],
        evaluation_is_stock,
        removed_is_stock,
    )


def _step(case: Case, model: nn.Module, wrap: Any) -> Tensor:
    torch.manual_seed(1)
    if case.criterion is None:
        return case.loss(model(**copy.deepcopy(case.inputs)))
    return case.terms(wrap(case.criterion), model(**copy.deepcopy(case.inputs)), case.labels)


def _outputs_are_equal(case: Case, model: nn.Module, stock: nn.Module) -> bool:
    outputs = []
    for each in (model, stock):
        torch.manual_seed(2)
        # A random batch norm or matcher draws the same numbers in both.
        outputs.append([leaf.detach() for leaf in leaves(each(**copy.deepcopy(case.inputs)))])
    assert outputs[0]
    return len(outputs[0]) == len(outputs[1]) and all(map(torch.equal, *outputs))
