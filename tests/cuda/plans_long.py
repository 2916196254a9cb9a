"""How attention among many samples is launched: source, defines, grid, block and shared bytes for a call."""

import ctypes
from typing import NamedTuple

import torch
from harness import ELEMENTS
from plan import HOPPER, Device, Plan

# Registers of a thread that may hold a gradient: more do not leave enough for the scores.
ACCUMULATORS = 144


class Tile(NamedTuple):
    """Bytes of a row of a tile in shared memory, and what it is made of."""

    wide: int
    per: int
    size: int

    @property
    def stride(self) -> int:
        return (self.wide + self.per) * self.size


def tile(dtype: torch.dtype, head: int) -> Tile:
    size = dtype.itemsize
    return Tile(-(-head // 16) * 16, 16 // size, size)


def power_of_two(at_least: int) -> int:
    return 1 << max(at_least - 1, 0).bit_length()


def rows_of_block(rows: int, units: int, most: int, device: Device) -> int:
    """As many as leave blocks for three quarters of the SMs, 16 at least: smaller blocks read more often."""
    held = most
    while held > 16 and (4 * -(-rows // held) * units < 3 * device.sms or held >= 2 * rows):
        held //= 2
    return held


def forward_bytes(at: Tile, rows: int, keys: int, split: int, counted: int) -> int:
    step = keys * split
    passing = (rows + 2 * step * (2 if counted > step else 1)) * at.stride
    return max(passing, split * rows * (at.wide + 6) * 4 if split > 1 else 0)


def forward(
    heads: ctypes.Structure, head: int, dtype: torch.dtype, tf32: bool = False, device: Device = HOPPER
) -> Plan | None:
    """The plan of attention_long_forward for heads of `head` channels; None: not for this device."""
    at, units = tile(dtype, head), heads.positions * heads.heads
    narrow = at.per == 8 and at.wide <= 128  # two tiles of queries a warp fit its registers
    most = rows_of_block(heads.samples, units, 128 if narrow else 64, device)
    sizes = [
        (rows, keys, fewer)
        for rows in (128, 64, 32, 16)
        for fewer in (1, 2, 4)
        for keys in (32, 16)
        if rows <= most and keys < heads.counted + 16
    ]
    for rows, keys, fewer in sizes:
        tiles = 2 if narrow and rows > 16 else 1
        groups = rows // 16 // tiles
        alone = (
            -(-heads.samples // rows) * units < 2 * device.sms
        )  # on its SM, whose tensor cores want 8 warps
        warps = (8 if narrow and alone and rows != 32 else 4) // fewer
        split = min(max(1, warps // groups), power_of_two(-(-heads.counted // keys)))
        shared = forward_bytes(at, rows, keys, split, heads.counted)
        if shared <= device.shared:
            break
    else:
        return None
    defines = {"ELEMENT": ELEMENTS[dtype], "HEAD": head, "TF32": int(tf32), "PART": "FORWARD"}
    defines |= {"KEYS": keys, "TILES": tiles, "GROUPS": groups, "SPLIT": split}
    grid = -(-heads.samples // rows) * units
    return Plan("attention_long", "attention_long_forward", defines, (grid,), 32 * groups * split, shared)


def cuts(queries: int, keys: int, held: int, wide: int, most: int) -> tuple[int, int, int]:
    """WARPS, QUERY_WARPS, SLICES: as many warps as go, each with pieces as near to a square as it goes."""

    def off_square(cut: tuple[int, int, int]) -> float:
        warps, query_warps, slices = cut
        scores = queries / query_warps / (keys / (warps // query_warps))
        columns = -(-wide // 16 // slices) * 16  # of the widest slice
        gradient = held / (warps // slices) / columns
        return sum(max(ratio, 1 / ratio) for ratio in (scores, gradient)) + columns * slices / wide

    possible = [
        (warps, query_warps, slices)
        for slices in (1, 2, 4)
        for warps in range(slices, most + 1, slices)
        for query_warps in range(1, warps + 1)
        if -(-wide // 16 // slices) * (slices - 1) < wide // 16
        and held // 16 % (warps // slices) == 0
        and warps % query_warps == 0
        and queries // 16 % query_warps == 0
        and keys // 16 % (warps // query_warps) == 0
    ]
    return min(possible, key=lambda cut: (-cut[0], off_square(cut)))


def backward(
    part: str,
    heads: ctypes.Structure,
    head: int,
    dtype: torch.dtype,
    tf32: bool = False,
    device: Device = HOPPER,
) -> Plan | None:
    """The same of the gradients of queries (part "BY_QUERY") or of keys and values ("BY_KEY")."""
    at, units, by_key = tile(dtype, head), heads.positions * heads.heads, part == "BY_KEY"
    rows, others = (heads.keys, heads.samples) if by_key else (heads.samples, heads.counted)
    most = 128 if at.stride <= 272 else 64
    sizes = [
        (held, passing)
        for held in (128, 64, 32, 16)
        for passing in (64, 32, 16)
        if held <= rows_of_block(rows, units, most, device) and passing <= max(16, power_of_two(others))
    ]
    for held, passing in sorted(sizes, key=lambda size: (-size[0] * size[1], abs(size[0] - size[1]))):
        queries, keys = (passing, held) if by_key else (held, passing)
        warps, query_warps, slices = cuts(queries, keys, held, at.wide, 8 if held == most else 4)
        accumulators = -(-at.wide // 16 // slices) * (held // 16 // (warps // slices)) * (16 if by_key else 8)
        across = keys + at.per * (2 if by_key and at.per == 4 else 1)
        shared = 2 * (held + passing * (2 if others > passing else 1)) * at.stride
        shared += queries * across * at.size * (2 if by_key else 1)
        shared += 0 if by_key else warps // query_warps * held * 4
        if shared <= device.shared and accumulators <= ACCUMULATORS:
            break
    else:
        return None
    defines = {"ELEMENT": ELEMENTS[dtype], "HEAD": head, "TF32": int(tf32), "PART": part}
    defines |= {
        "HELD": held,
        "PASSING": passing,
        "WARPS": warps,
        "QUERY_WARPS": query_warps,
        "SLICES": slices,
    }
    kernel = "attention_long_backward_key" if by_key else "attention_long_backward_query"
    return Plan("attention_long", kernel, defines, (-(-rows // held) * units,), 32 * warps, shared)


def softmax(
    kernel: str, heads: ctypes.Structure, queries: int, dtype: torch.dtype, scores: torch.dtype | None = None
) -> Plan:
    """`softmax_forward` or `softmax_backward` of `queries` of the queries."""
    per = 16 // dtype.itemsize
    pieces = -(-heads.keys // per)
    warps = next((count for count in (1, 2, 4) if pieces <= 64 * count), 8)
    chunks = -(-pieces // (32 * warps))
    if chunks > (2 if per == 8 else 4):
        chunks = 0
    defines = {
        "ELEMENT": ELEMENTS[dtype],
        "SCORE": ELEMENTS[scores or dtype],
        "WARPS": warps,
        "CHUNKS": chunks,
    }
    defines["WHOLE"] = int(heads.keys % per == 0)
    of_block = 4 if warps == 1 else 1
    grid = -(-heads.positions * heads.heads * queries // of_block)
    shared = 0 if warps == 1 else 12 * warps
    return Plan("softmax", kernel, defines, (grid,), 32 * warps * of_block, shared)
