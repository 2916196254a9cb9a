"""What a step of an attached model has to give, and how our errors and warnings are told from others.

Two oracles. Where the related stream is made equal to the original one, loss and gradients are those of the
stock model; that a stream is dropped does not show there, but the module then has no gradient. Else both
streams are computed by hand, and the loss is the mean over the two.
"""

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

OURS = r"(?s)^\w+: expected"
KINDS = (ValueError, TypeError, RuntimeError)
EQUAL = {"norm_first": True, "dropout": 0.0}  # arguments of attach() for equal_streams()


def refused(*kinds: type[Exception], saying: str = "") -> Any:
    """Expects an error of ours, and none of torch's; `saying` is a pattern."""
    return pytest.raises(kinds or KINDS, match=f"{OURS}.*{saying}")


@contextmanager
def unless_refused() -> Iterator[None]:
    """What is inside has to be right, or to end with an error of ours."""
    try:
        yield
    except KINDS as error:
        if not re.match(OURS, str(error)):
            raise


def said_of(step: Callable[[], Any], times: int) -> list[str]:
    """Our warnings in so many steps."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(times):
            step()
    ours = [each for each in caught if str(each.message).startswith("batchformer: ")]
    assert all(issubclass(each.category, UserWarning) for each in ours)
    return [str(each.message) for each in ours]


def equal_streams(attachment: nn.Module) -> nn.Module:
    """The attachment, whose modules now give what they are given."""
    for name, parameter in attachment.named_parameters():
        if "out_proj" in name or "linear2" in name:
            nn.init.zeros_(parameter)
    return attachment


def is_reached(attachment: nn.Module) -> bool:
    """Whether a gradient that is not zero has come to the modules."""
    return any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in attachment.parameters())


def related(attachment: nn.Module, x: Tensor, number: int = 0) -> Tensor:
    """What torch's layer with the weights of a module makes of features [N, C] or of tokens [N, L, C]."""
    encoder = attachment.inserted[number].encoder
    width, heads = encoder.self_attn.embed_dim, encoder.self_attn.num_heads
    layer = nn.TransformerEncoderLayer(width, heads, encoder.linear1.out_features, dropout=0.0)
    weights = {name: encoder.get_parameter(name) for name, _ in layer.named_parameters()}
    return functional_call(layer, weights, (x if x.dim() == 3 else x.unsqueeze(1),)).view_as(x)


def mean_of(loss: Callable[..., Tensor], logits: list[Tensor], *targets: Any) -> Tensor:
    """The mean over the streams of the loss of each."""
    return sum(loss(each, *targets) for each in logits) / len(logits)


def assert_step(loss: Tensor, expected: Tensor, model: nn.Module, attachment: nn.Module) -> None:
    """The loss that was computed by hand and all its gradients; the module has one."""
    torch.testing.assert_close(loss, expected)
    parameters = list(model.parameters())
    grads = [
        torch.autograd.grad(loss, parameters, materialize_grads=True),
        torch.autograd.grad(expected, parameters, retain_graph=True, materialize_grads=True),
    ]
    for actual, wanted in zip(*grads, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=1e-5)
    inserted = {id(p) for p in attachment.parameters()}
    of_module = [grad.abs().sum() for p, grad in zip(parameters, grads[0], strict=True) if id(p) in inserted]
    assert of_module
    assert sum(of_module) > 0


def assert_stock_step(
    loss: Tensor, expected: Tensor, model: nn.Module, stock: nn.Module, attachment: nn.Module
) -> None:
    """The loss of the stock model and all its gradients, where both streams are equal; the module has one."""
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    for name, parameter in stock.named_parameters():
        if parameter.grad is not None:
            actual = model.get_parameter(name).grad
            torch.testing.assert_close(actual, parameter.grad, rtol=1e-4, atol=1e-5, msg=name)
    assert is_reached(attachment)
