"""How the kernels of norms, activations and column sums are launched: all that a call's sizes decide."""

from typing import Any, NamedTuple

import torch
from harness import ELEMENTS
from plan import Plan


class Types(NamedTuple):
    """Of the residual stream, of the linears, of the norm's parameters, and of the gradient that comes in."""

    stream: torch.dtype
    branch: torch.dtype
    param: torch.dtype
    grad: torch.dtype


def steps(size: int, step: int) -> int:
    return -(-size // step)


def row_blocks(rows: int, multiprocessors: int = 132) -> int:
    """Blocks of rows of every kernel that leaves partial sums, two for each multiprocessor at most.

    A block of the norm writes three floats a column, which are read again, and moves four or five elements
    for each of its rows: of 8 rows in half precision, the sums are a third of the work. Fewer rows, but 4 at
    least, only where multiprocessors would stand idle.
    """
    few = min(steps(rows, 4), multiprocessors)
    return max(1, min(max(steps(rows, 8), few), 2 * multiprocessors))


def cut(channels: int, stream: torch.dtype) -> tuple[int, int]:
    """16-byte pieces of a lane and warps of a row: 8 elements a lane, more if 8 warps do not hold the row."""
    each = 16 // stream.itemsize
    wide = steps(channels, 32 * each)  # of one piece a lane
    warps = 1
    while warps < 8 and warps * 8 // each < wide:
        warps *= 2
    return steps(wide, warps), warps


def _norm_defines(channels: int, types: Types, has_branch: bool, has_norm: bool) -> dict[str, Any]:
    chunks, warps = cut(channels, types.stream)
    names = dict(zip(("STREAM", "BRANCH", "PARAM", "GRAD"), (ELEMENTS[each] for each in types), strict=True))
    return {
        **names,
        "CHUNKS": chunks,
        "WARPS": warps,
        "HAS_BRANCH": int(has_branch),
        "HAS_NORM": int(has_norm),
    }


def norm_forward(
    rows: int, channels: int, types: Types, *, has_branch: bool = True, has_norm: bool = True
) -> Plan:
    _, warps = cut(channels, types.stream)
    groups = max(1, 4 // warps)
    defines = _norm_defines(channels, types, has_branch, has_norm)
    shared = 16 * warps * groups if warps > 1 else 0
    return Plan("norm", "residual_norm_forward", defines, (steps(rows, groups),), 32 * warps * groups, shared)


def norm_backward(
    rows: int, channels: int, types: Types, blocks: int, *, has_branch: bool = True, has_norm: bool = True
) -> Plan:
    chunks, warps = cut(channels, types.stream)
    if chunks * 16 // types.stream.itemsize > 8 or warps == 8:
        most = 8
    else:
        most = 12 if types.param.itemsize > types.stream.itemsize else 14
    groups = min(most // warps, steps(rows, blocks))
    defines = _norm_defines(channels, types, has_branch, has_norm)
    shared = max(4 * groups * channels if groups > 1 else 0, 16 * warps * groups if warps > 1 else 0)
    return Plan("norm", "residual_norm_backward", defines, (blocks,), 32 * warps * groups, shared)


def _wide(dtype: torch.dtype) -> int:
    """Columns of a warp with 16 bytes a lane."""
    return 32 * 16 // dtype.itemsize


def activation_forward(rows: int, columns: int, dtype: torch.dtype, gelu: bool) -> Plan:
    grid = (steps(rows, 8), steps(columns, _wide(dtype)))
    defines = {"ELEMENT": ELEMENTS[dtype], "GELU": int(gelu)}
    return Plan("activation", "activation_forward", defines, grid, 128, 0)


def activation_backward(rows: int, columns: int, dtype: torch.dtype, gelu: bool, blocks: int) -> Plan:
    warps = min(16, steps(rows, blocks))
    grid = (blocks, steps(columns, _wide(dtype)))
    defines = {"ELEMENT": ELEMENTS[dtype], "GELU": int(gelu)}
    return Plan("activation", "activation_backward", defines, grid, 32 * warps, 4 * warps * _wide(dtype))


def _reduce_defines(dtype: torch.dtype, norms: torch.dtype) -> dict[str, Any]:
    return {"ELEMENT": ELEMENTS[dtype], "OUT_A": ELEMENTS[dtype], "OUT_B": ELEMENTS[norms]}


def column_partials(rows: int, columns: int, dtype: torch.dtype, norms: torch.dtype, blocks: int) -> Plan:
    warps = min(16, steps(rows, blocks))
    grid = (blocks, steps(columns, _wide(dtype)))
    defines = _reduce_defines(dtype, norms)
    return Plan("reduce", "column_partials", defines, grid, 32 * warps, 4 * warps * _wide(dtype))


def column_sums(parts: int, columns: int, dtype: torch.dtype, norms: torch.dtype) -> Plan:
    warps = min(16, parts)
    defines = _reduce_defines(dtype, norms)
    return Plan("reduce", "column_sums", defines, (steps(columns, 32),), 32 * warps, 128 * warps)
