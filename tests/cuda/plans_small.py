"""How attention among few samples is launched: source, defines, grid, block and shared bytes for a call."""

import torch
from harness import ELEMENTS, Heads
from plan import HOPPER, Device, Plan

MOST_SAMPLES = 64
MOST_WIDTH = 256  # of a head


def forward(
    heads: Heads, width: int, dtype: torch.dtype, tf32: bool = False, device: Device = HOPPER
) -> Plan | None:
    """The plan of attention_small_forward for heads of `width` channels; None: not for this device."""
    return _plan("attention_small_forward", 0, heads, width, dtype, tf32, device)


def backward(
    heads: Heads, width: int, dtype: torch.dtype, tf32: bool = False, device: Device = HOPPER
) -> Plan | None:
    """The plan of attention_small_backward; None: not for this device."""
    return _plan("attention_small_backward", 2, heads, width, dtype, tf32, device)


def _plan(
    kernel: str, places: int, heads: Heads, width: int, dtype: torch.dtype, tf32: bool, device: Device
) -> Plan | None:
    """`places`: how many of the tiles are used again for the weights."""
    if not 1 <= heads.samples <= MOST_SAMPLES or not 1 <= width <= MOST_WIDTH:
        return None
    tiles = -(-heads.samples // 16)
    rows, pad = 16 * tiles, 16 // dtype.itemsize
    tile = rows * (-(-width // 16) * 16 + pad)
    weights = rows * (rows + pad)
    unit = dtype.itemsize * (places * (tile + max(tile, weights)) if places else 3 * tile)
    if unit > device.shared:
        return None
    units = -(-heads.positions // (rows // heads.samples)) * heads.heads
    # As many units a block as leave four blocks for an SM, and its shared memory for others.
    together = 4 // tiles
    while together > 1 and (together * unit > 48 * 1024 or -(-units // together) < 4 * device.sms):
        together //= 2
    defines = {"ELEMENT": ELEMENTS[dtype], "HEAD": width, "R": tiles, "TF32": int(tf32)}
    return Plan(
        "attention_small", kernel, defines, (-(-units // together),), 32 * tiles * together, together * unit
    )
