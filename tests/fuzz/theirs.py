"""The same call as torch makes it: in any dtype, and in variations that tell how much torch's layer errs."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fuzz.call import Call
from reference import unfused_attention
from tolerances import HALF

Results = dict[str, Tensor | None]
Change = Callable[[Tensor], Tensor]
ROUNDING = 4  # units in the last place by which the input of a float64 call is moved


class Theirs:
    """Torch's layer and the inputs of a call, from what its lines have left."""

    def __init__(self, call: Call, names: dict[str, Any]) -> None:
        self.call, self.module, self.plain = call, names["theirs"], names["plain"]
        self.x, self.grad_y = names["x"], names["grad_y"]
        self.generator = torch.Generator().manual_seed(0)

    def own(self) -> Results:
        """In the dtype and mode of the call."""
        return self._run(Tensor.detach, self.call.mode)

    def exact(self) -> Results:
        """In float64."""
        return self._run_exactly(Tensor.double, "" if "autocast" in self.call.mode else self.call.mode)

    def errors(self, times: int) -> Iterator[dict[str, float]]:
        """Errors of torch's layer, by name, in calls next to this one.

        Of a call in half precision also what the exact results move by when its tensors move by rounding: a
        norm over two channels that are nearly alike changes its sign with the layout of what it is given, in
        torch's layer, too.
        """
        exact = self.exact()
        dtype = getattr(torch, self.call.dtype)
        for _ in range(times):
            if dtype in HALF:
                by = torch.finfo(dtype).eps
                yield errors(
                    self._run_exactly(
                        lambda tensor, by=by: self._moved(tensor, by, tensor.shape).double(), ""
                    ),
                    exact,
                )
            if self.call.dtype == "float64":
                by = ROUNDING * torch.finfo(torch.float64).eps
                yield errors(
                    self._run(lambda tensor, by=by: self._moved(tensor, by, tensor.shape), ""), exact
                )
                continue
            state = self.generator.get_state()
            own = self._run(lambda tensor: self._moved(tensor, 0.1, ()), self.call.mode)
            self.generator.set_state(state)
            yield errors(own, self._run_exactly(lambda tensor: self._moved(tensor, 0.1, ()).double(), ""))

    def nearest_kink(self) -> float:
        """How near a hidden unit is to the ReLU's 0, in what torch's own rounding moves hidden units by."""
        seen: list[Tensor] = []
        linears = [module for name, module in self.module.named_modules() if name.endswith("linear1")]
        hooks = [
            linear.register_forward_hook(lambda *inputs: seen.append(inputs[2].detach().double()))
            for linear in linears
        ]
        self._run(Tensor.detach, self.call.mode)
        self._run_exactly(Tensor.double, "torch.enable_grad()")
        for hook in hooks:
            hook.remove()
        distances = [float("inf")]
        eps = torch.finfo(getattr(torch, self.call.dtype)).eps
        for rounded, exact in zip(seen[: len(linears)], seen[len(linears) :], strict=True):
            moved = max(_largest(rounded - exact), _largest(exact) * eps)
            distances.append((exact.abs().min() / moved).item())
        return min(distances)

    def _moved(self, tensor: Tensor, by: float, shape: tuple[int, ...]) -> Tensor:
        """Times factors from 1 - by to 1 + by."""
        factor = 1 + by * (2 * torch.rand(shape, generator=self.generator, dtype=torch.float64) - 1)
        return (tensor.detach().double() * factor).to(tensor.dtype)

    def _run_exactly(self, change: Change, mode: str) -> Results:
        with unfused_attention():
            return self._run(change, mode)

    def _run(self, change: Change, mode: str) -> Results:
        """The call with every tensor changed; the layer has its own parameters back afterwards."""
        parameters = list(self.module.parameters())
        before = [parameter.data for parameter in parameters]
        for parameter in parameters:
            parameter.data = change(parameter.data)
        x = change(self.x.detach()).clone().requires_grad_(self.x.requires_grad)
        grad_y = change(self.grad_y)
        try:
            with eval(mode) if mode else contextlib.nullcontext():  # one of a few that are drawn
                y = self.plain(self.module, x)
            if y.requires_grad:
                for _ in range(self.call.backwards):
                    y.backward(grad_y.to(y.dtype), retain_graph=True)
            return gather(y, x, self.module)
        finally:
            for parameter, data in zip(parameters, before, strict=True):
                parameter.grad, parameter.data = None, data


def gather(y: Tensor, x: Tensor, module: nn.Module) -> Results:
    """Output and gradients, by name."""
    return {"y": y.detach(), "x": x.grad, **{name: p.grad for name, p in module.named_parameters()}}


def errors(actual: Results, exact: Results) -> dict[str, float]:
    """The largest difference of each tensor, where both are finite."""
    return {name: _error(actual[name], truth) for name, truth in exact.items() if truth is not None}


def _error(actual: Tensor | None, truth: Tensor) -> float:
    if actual is None or actual.shape != truth.shape:
        return 0.0
    return _largest(actual.double() - truth)


def _largest(tensor: Tensor) -> float:
    return tensor.abs().nan_to_num(0.0, 0.0, 0.0).max().item() if tensor.numel() else 0.0
