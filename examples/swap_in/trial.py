"""What every script here does with its system: attach, train a few steps, evaluate, take out; all checked."""

import argparse
import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import batchformer as bf


@dataclass
class Trial:
    """One model of a system, and what a training script of that system does with it."""

    name: str
    model: nn.Module
    attach: Callable[[nn.Module], bf.Attachment]
    loss: Callable[[nn.Module, Any], Tensor]  # of one batch, from (model, criterion)
    evaluate: Callable[[nn.Module], Tensor]
    criterion: Callable[..., Any] | None = None  # None: the model computes its loss itself
    optimizer: torch.optim.Optimizer | None = None  # None: one is built after attaching

    def run(self, steps: int) -> None:
        """Print a line for each check; AssertionError if one fails."""
        model, criterion = self.model, self.criterion
        stock = copy.deepcopy(model)
        without = self.loss(stock.train(), criterion).item()
        stock = copy.deepcopy(model)
        keys, hooks = list(model.state_dict()), _hooks(model)

        attachment = self.attach(model)
        if criterion is not None:
            criterion = attachment.wrap(criterion)
        optimizer = self.optimizer or torch.optim.SGD(_trained(model.parameters()), lr=1e-3)
        losses = []
        for _ in range(steps):
            loss = self.loss(model.train(), criterion)
            losses.append(loss.item())
            if loss.requires_grad:  # else the system's own update() has done all of it
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        assert all(torch.tensor(losses).isfinite()), losses
        print(f"  loss finite: {losses[0]:.4f} -> {losses[-1]:.4f} in {steps} steps (stock: {without:.4f})")

        module, inside = attachment.inserted.parameters(), {id(p) for p in attachment.parameters()}
        if any(p.requires_grad for p in attachment.parameters()):
            assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module), (
                "module without gradient"
            )
        rest = [p for p in _trained(model.parameters()) if id(p) not in inside]
        reached = sum(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in rest)
        assert reached > 0.5 * len(rest), f"gradients reach {reached} of {len(rest)} parameters of the model"
        print(f"  gradients reach the module and {reached} of {len(rest)} parameters of the model")

        stock.load_state_dict(model.state_dict(), strict=False)
        expected = self.evaluate(stock.eval())
        assert torch.equal(self.evaluate(model.eval()), expected), "evaluation differs from the stock model's"
        print("  evaluation equals the stock model's, bit by bit")

        attachment.remove()
        assert list(model.state_dict()) == keys, "state_dict keys are left"
        assert _hooks(model) == hooks, "hooks are left"
        assert torch.equal(self.evaluate(model.eval()), expected), "evaluation differs after remove()"
        print("  removed: keys, hooks and evaluation are the stock model's")


def main(
    description: str,
    checkout: Callable[[Path], Iterable[Trial]] | None = None,
    packages: Callable[[], Iterable[Trial]] | None = None,
) -> None:
    """Run the trials on a checkout of the system, or on the same family from packages."""
    parser = argparse.ArgumentParser(description=description.split("\n\n")[0])
    if checkout is not None:
        parser.add_argument("--repo", type=Path, metavar="CHECKOUT", required=packages is None)
    parser.add_argument("--steps", type=int, default=3)
    options = parser.parse_args()
    torch.manual_seed(0)
    repo = getattr(options, "repo", None)
    if repo is not None and not repo.is_dir():
        parser.error(f"--repo: no folder {repo}")
    for trial in packages() if repo is None else checkout(repo):
        print(trial.name)
        trial.run(options.steps)


def _trained(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    return [parameter for parameter in parameters if parameter.requires_grad]


def _hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
