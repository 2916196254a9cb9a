"""What a launch is made of but for its arguments, and what it depends on of a device."""

from typing import Any, NamedTuple


class Plan(NamedTuple):
    source: str
    kernel: str
    defines: dict[str, Any]
    grid: tuple[int, ...]
    block: int
    shared: int


class Device(NamedTuple):
    """What a plan asks of a device: bytes of shared memory a block may have, and how many SMs there are."""

    shared: int = 227 * 1024
    sms: int = 132


HOPPER = Device()
