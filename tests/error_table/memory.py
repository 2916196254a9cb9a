"""Rows of memory banks, which remember samples of earlier steps."""

import torch
from torch.utils.checkpoint import checkpoint

import batchformer as bf
from batchformer.modules._memory import MemoryBank
from batchformer.ops.first_forward import first_forward
from error_table.row import Row

X = torch.randn(6, 5, 16)


def another_size():
    bank = MemoryBank(8)
    bank.enter(X)
    bank.look(X[:, :4])


def of_another_shape():
    bank, samples = MemoryBank(8), iter([6, 4])

    def part(x):
        bank.look(x[: next(samples)])
        return x * 2

    checkpoint(part, X.clone().requires_grad_(), use_reentrant=True).sum().backward()


def in_a_backward(call):
    x = X.clone().requires_grad_()
    x.register_hook(call)
    x.sum().backward()


MEMORY = (
    Row(
        lambda: MemoryBank(0),
        ValueError,
        "memory_bank_size: expected at least 1, got 0",
        "A bank that holds no sample is asked for.",
        "Leave `memory_bank_size` out, or say how many samples it is to hold: `memory_bank_size=1024`.",
    ),
    Row(
        another_size,
        ValueError,
        "x: expected 5 positions of a sample, as those in the memory bank have, got 4; pad or resize all "
        "batches to one size, or leave memory_bank_size out",
        "Maps or sequences of this batch are of another size than those of earlier steps, and each position "
        "attends to the same one of other samples.",
        "Pad all batches to a fixed size, or train without `memory_bank_size`.",
    ),
    Row(
        lambda: in_a_backward(lambda grad: MemoryBank(8).look(grad)),
        RuntimeError,
        "checkpoint: expected to run a forward again that the memory bank has seen recently, got another (in "
        "a hook on gradients, by another package's checkpoint, of a module copied before its backward, or "
        "hundreds of forwards later); use torch.utils.checkpoint, or leave memory_bank_size out",
        "A forward runs inside of a backward, and what its bank held when it ran first is not known: "
        "gradients would be those of other keys.",
        "Use `torch.utils.checkpoint.checkpoint`, with `use_reentrant=False` if many forwards come before "
        "their backwards.",
    ),
    Row(
        of_another_shape,
        RuntimeError,
        "checkpoint: expected to run a forward with x of shape [6, 5, 16] again, got [4, 5, 16]: the part of "
        "the model did not do the same again",
        "The part of the model in a checkpoint depends on something that has changed between its forward and "
        "its backward.",
        "Make it depend on its inputs alone, or leave it out of the checkpoint.",
    ),
    Row(
        lambda: torch.func.grad(lambda x: MemoryBank(8).look(x).rows.sum())(X),
        RuntimeError,
        "memory_bank_size: expected none inside of a transform of torch.func, which would leave its own "
        "tensors in the bank, got 8",
        "`torch.func.grad`, `vmap` or `functional_call` inside of them run a module that remembers samples.",
        "Take the gradients with `loss.backward()`, or make the module without `memory_bank_size`.",
    ),
    Row(
        lambda: torch.export.export(bf.BatchFormer(16, memory_bank_size=8), (X[:, 0],)),
        RuntimeError,
        "memory_bank_size: expected eval() for torch.export and torch.onnx, whose graphs remember nothing, "
        "got a bank of 8 samples in training",
        "A module with a memory bank is exported in training mode.",
        "Call `eval()` first, in which the module is the identity; or export a module without "
        "`memory_bank_size`.",
    ),
    Row(
        lambda: in_a_backward(lambda _: first_forward(torch.tensor(3))),
        RuntimeError,
        "checkpoint: expected a forward with a memory bank to be eager, got a compiled one, which cannot "
        "tell what the bank held when it ran first; leave out the checkpoint, torch.compile or "
        "memory_bank_size",
        "A compiled module with a memory bank is in a checkpoint, whose backward runs it again.",
        "Compile without the checkpoint, or keep the module out of both.",
    ),
)
