"""Each function of the prelude on the device, beside what the emulator made of the same numbers."""

import sys
from pathlib import Path
from typing import NamedTuple

import torch
from harness import build, i32, u32
from torch import Tensor

from device_steps.findings import note, say

SEED = -123_456_789


class Case(NamedTuple):
    """A launch; its outputs are the last tensors of the arguments."""

    kernel: str
    grid: int
    block: int
    shared: int
    arguments: list[object]
    outputs: int
    exact: bool = True  # the device may sum a product in another order, and its powers are approximate


def cases() -> dict[str, Case]:
    """The same numbers on every machine."""
    generator = torch.Generator().manual_seed(1)

    def bits(*size: int) -> Tensor:
        return torch.randint(-(2**31), 2**31, size, generator=generator, dtype=torch.int64).int()

    def numbers(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    def whole(dtype: torch.dtype, *size: int) -> Tensor:
        return torch.randint(-8, 9, size, generator=generator).to(dtype).view(torch.int32)

    found = {}
    for name, dtype, per in (
        ("bf16", torch.bfloat16, 2),
        ("f16", torch.float16, 2),
        ("tf32", torch.float32, 1),
    ):
        tiles = 64
        d = torch.empty(tiles, 32, 4)
        a, b = whole(dtype, tiles, 32, 4 * per), whole(dtype, tiles, 32, 2 * per)
        found[f"product {name} of whole numbers"] = Case(
            f"product_{name}", tiles, 32, 0, [a, b, torch.zeros(tiles, 32, 4), d], 1
        )
        a, b = (numbers(tiles, 32, each * per).to(dtype).view(torch.int32) for each in (4, 2))
        if name == "tf32":
            a, b = a & ~0x1FFF, b & ~0x1FFF
        found[f"product {name}"] = Case(
            f"product_{name}",
            tiles,
            32,
            0,
            [a, b, numbers(tiles, 32, 4), torch.empty(tiles, 32, 4)],
            1,
            exact=False,
        )
    empty = [torch.empty(32, 4, dtype=torch.int32) for _ in range(2)]
    found["matrices"] = Case("matrices", 1, 32, 512, [bits(32, 4), *empty], 2)
    there = torch.randint(0, 2, (512,), generator=generator).int()
    found["copies"] = Case(
        "copies", 4, 64, 2048, [bits(512, 4), there, torch.empty(512, 4, dtype=torch.int32)], 1
    )
    sums = [torch.empty(8, 32, dtype=torch.int32), torch.empty(32)]
    found["lanes"] = Case("lanes", 1, 32, 0, [bits(32), numbers(32), *sums], 2)
    any_number = torch.cat([bits(1 << 17), (torch.arange(1 << 16) << 16 | 0x8000).int()]).view(torch.float32)
    any_number = any_number[~any_number.isnan()][: 1 << 17]
    count = len(any_number)
    for name in ("bf16", "f16"):
        out = torch.empty(count // 2, dtype=torch.int32)
        found[f"round {name}"] = Case(
            f"round_{name}", count // 512, 256, 0, [any_number, i32(count // 2), out], 1
        )
    out = torch.empty(count, dtype=torch.int32)
    found["round tf32"] = Case("round_tf32", count // 256, 256, 0, [any_number, i32(count), out], 1)
    exponents = torch.linspace(-126, 127, 1 << 14)
    arguments = [exponents, i32(len(exponents)), torch.empty_like(exponents)]
    found["powers"] = Case("powers", len(exponents) // 256, 256, 0, arguments, 1, exact=False)
    every = torch.arange(1 << 16, dtype=torch.int32)
    for name, x in (
        ("bf16", every.short().view(torch.bfloat16)),
        ("f16", every.short().view(torch.float16)),
        ("float", bits(1 << 16).view(torch.float32)),
    ):
        x = x[~x.isnan()]
        x = x[: len(x) // 2048 * 2048]
        pieces = x.nbytes // 16
        out = [torch.empty(len(x)), torch.empty(len(x)), torch.empty_like(x)]
        found[f"elements {name}"] = Case(
            f"elements_{name}", -(-pieces // 256), 256, 0, [x, i32(pieces), *out], 3
        )
    seed = torch.tensor(SEED)
    for site in (1, 4):
        out = torch.empty(1 << 15, dtype=torch.int64)
        found[f"words of site {site}"] = Case(
            "hash_words", 32, 256, 0, [seed, u32(site), i32(len(out)), out], 1
        )
    return found


def outcome(mode: str) -> dict[str, list[Tensor]]:
    """What each case writes; the same code for the emulator and for a device."""
    kernels = build("primitives", mode=mode)
    home = "cuda" if mode == "device" else "cpu"
    results = {}
    for name, case in cases().items():
        arguments = [each.to(home) if isinstance(each, Tensor) else each for each in case.arguments]
        outputs = [each for each in arguments if isinstance(each, Tensor)][-case.outputs :]
        for output in outputs:
            output.view(torch.uint8).fill_(0x5A)
        kernels.launch(case.kernel, (case.grid,), case.block, case.shared, arguments, outputs)
        results[name] = [output.cpu() for output in outputs]
    return results


def as_bytes(x: Tensor) -> Tensor:
    return x.contiguous().view(torch.uint8).view(-1, x.element_size())


def difference(got: list[Tensor], expected: list[Tensor]) -> tuple[int, float]:
    """In how many places bits differ, and the largest difference beside the largest number."""
    places, largest = 0, 0.0
    for ours, theirs in zip(got, expected, strict=True):
        places += int((as_bytes(ours) != as_bytes(theirs)).any(1).sum())
        ours, theirs = (each.double().nan_to_num(0, 0, 0) for each in (ours, theirs))
        largest = max(largest, float((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-30)))
    return places, largest


def make(file: Path) -> int:
    """Write what the emulator makes of the cases."""
    torch.save(outcome("fast"), file)
    say(f"{file}: {file.stat().st_size} bytes")
    return 0


def main(file: Path) -> int:
    """Exit status 1 if a function of the device is another than the emulator's."""
    if not file.exists():
        note(f"{file} is not there")
        return 1
    expected, got = torch.load(file), outcome("device")
    wrong, table = [], {}
    for name, case in cases().items():
        places, largest = difference(got[name], expected[name])
        table[name] = {"differ": places, "largest": largest}
        if (places and case.exact) or largest > 2e-6:
            wrong.append(name)
    line = f"{len(table) - len(wrong)} of {len(table)} as in the emulator"
    note(f"{line}; not {', '.join(wrong)}" if wrong else line, primitives=table)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
