"""Rows of batches larger than a process: options of modules whose samples attend to others."""

import pickle
from types import SimpleNamespace

import torch

import batchformer as bf
from batchformer.modules._keys import Keys
from batchformer.modules._others import _Group
from error_table.mistakes import NOT_FLOATING, OTHER_DEVICE, OTHER_DTYPE
from error_table.row import Row

X = torch.randn(6, 16)


def with_a_hook():
    module = bf.BatchFormer(16, memory_bank_size=8)
    module.encoder.self_attn.register_forward_hook(lambda *_: None)
    module(X)


def of_torch():
    module = bf.BatchFormer(16, memory_bank_size=8)
    module.encoder = torch.nn.TransformerEncoderLayer(16, 4)
    module(X)


def of_a_group():
    module = bf.BatchFormer(16, gather_distributed=True)
    module._group = _Group(SimpleNamespace(group_name="pairs"))
    return module


def replica():
    module = bf.BatchFormer(16, memory_bank_size=8)
    module._is_replica = True  # as nn.DataParallel does on several devices
    module(X)


LARGER_BATCHES = (
    Row(
        lambda: bf.BatchFormer(16, memory_bank_size=(1024, 16)),
        ValueError,
        "memory_bank_size: expected a number of samples, 0 or more, got (1024, 16)",
        "The size is negative, or written as in another library, with the width after it.",
        "Write the number of samples alone: `memory_bank_size=1024`.",
    ),
    Row(
        lambda: bf.BatchFormer(16, process_group="gloo"),
        ValueError,
        "process_group: expected None without gather_distributed, got a str",
        "A group is named, but nothing is gathered from it.",
        "Write `gather_distributed=True`, too, or leave the group out.",
    ),
    Row(
        lambda: bf.BatchFormer(16, gather_distributed=True, process_group="gloo"),
        ValueError,
        "process_group: expected None or a torch.distributed.ProcessGroup that this process is in, got "
        "'gloo'",
        "A backend is named where a group is expected.",
        "Pass what `torch.distributed.new_group` gave, or leave it out for the default group.",
    ),
    Row(
        lambda: pickle.dumps(of_a_group()),
        TypeError,
        "process_group: expected None in a module that is pickled, as a group exists in its processes alone, "
        "got 'pairs'; save the state_dict",
        "A module with a `process_group` of its own is pickled, as `torch.save(model)` does.",
        "`torch.save(model.state_dict(), file)`; a deep copy uses the same group.",
    ),
    Row(
        lambda: bf.BatchFormer(16, gather_distributed="no"),
        ValueError,
        "gather_distributed: expected True or False, got 'no'",
        "The option was read from a command line as a word.",
        'Pass `True` or `False`; with argparse, `action="store_true"`.',
    ),
    Row(
        lambda: bf.BatchFormer(16, attend="alone", gather_distributed=True),
        ValueError,
        "attend: expected 'batch' or 'uniform' with gather_distributed or memory_bank_size, got 'alone'",
        "The control in which each sample attends to itself only has no use for other samples.",
        "Leave `gather_distributed` and `memory_bank_size` out of that control; `uniform` takes both.",
    ),
    Row(
        with_a_hook,
        TypeError,
        "encoder: expected torch's attention without hooks in TransformerEncoderLayer, as its weights are "
        "used one by one, got MultiheadAttention that was changed or replaced",
        "The attention inside of the module has hooks, a forward of its own, or is another class, as of an "
        "adapter; keys of other samples, and queries and keys of zero, do not go through its forward.",
        "Leave self_attn of the module as it is: out_proj, norms and linears may have hooks.",
    ),
    Row(
        of_torch,
        TypeError,
        "encoder: expected batchformer's TransformerEncoderLayer, whose forward takes keys, got "
        "TransformerEncoderLayer; a checkpoint or torch.compile goes around the whole module",
        "The encoder of the module was replaced or wrapped, so that it cannot attend to samples of others.",
        "Put a `batchformer.TransformerEncoderLayer` there, or call `batchformer.accelerate(module)`; wrap "
        "the module, not its encoder, or use `recompute=True`.",
    ),
    Row(
        replica,
        RuntimeError,
        "BatchFormer: expected no replica of nn.DataParallel with gather_distributed or memory_bank_size, as "
        "replicas live for one step in one process, got one; use DistributedDataParallel",
        "`nn.DataParallel` copies the module for each step, in threads of one process.",
        "Use `DistributedDataParallel`, one process for each device.",
    ),
    Row(
        lambda: bf.BatchFormer(16, attend="uniform")(X.to("meta")),
        ValueError,
        "x: expected device cpu as in_proj_weight has, got meta",
        *OTHER_DEVICE,
    ),
    Row(
        lambda: bf.BatchFormer(16, memory_bank_size=8)(X.long()),
        TypeError,
        "x: expected a dtype of float16, bfloat16, float32 or float64, got int64",
        *NOT_FLOATING,
    ),
    Row(
        lambda: bf.BatchFormer(16, memory_bank_size=8)(X.double()),
        ValueError,
        "x: expected dtype float32 as in_proj_weight has, got float64",
        *OTHER_DTYPE,
    ),
    Row(
        lambda: bf.TransformerEncoderLayer(16, 4, 16)(
            X.unsqueeze(1), src_key_padding_mask=torch.zeros(1, 6, dtype=torch.bool), keys=Keys()
        ),
        ValueError,
        "keys: expected a call without a mask, got one with a mask",
        "A layer is called with keys of other samples, and with a mask.",
        "Leave the mask out: `keys` is for BatchFormer, whose samples all attend to each other.",
    ),
)
