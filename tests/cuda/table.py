"""The table of the kernels: what a call of the systems launches, and what that takes of a device.

    python tests/cuda/table.py            # prints it
    python tests/cuda/table.py --write    # puts it into docs/cuda.md

Registers and spills are those that ptxas tells, of torch's NVRTC; the core says what it launches.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from harness import Figures, nvrtc, source_text
from recorded import Call, Launch, launches_of
from traffic import BYTES

PAGE = Path(__file__).resolve().parents[2] / "docs" / "cuda.md"
BEGIN, END = "<!-- kernels: begin -->", "<!-- kernels: end -->"
ARCHITECTURES = ("sm_80", "sm_90")
CALLS = (
    Call(4, 850, 256, 8, torch.bfloat16),
    Call(4, 850, 256, 8, torch.float32),
    Call(64, 197, 192, 4, torch.bfloat16),
    Call(64, 197, 384, 4, torch.bfloat16),
    Call(16, 850, 256, 8, torch.bfloat16, 1024, options=(("activation", "gelu"), ("norm_first", True))),
    Call(1024, 1, 512, 4, torch.bfloat16),
    Call(1024, 1, 512, 4, torch.float32),
    Call(512, 1, 2048, 4, torch.bfloat16),
)
"""Those of the systems: each kernel once in the way that a call has it."""


class Row(NamedTuple):
    """A kernel as the first call of the table launches it that does."""

    call: Call
    launch: Launch

    def figures(self, arch: str, compiled: dict[tuple[object, ...], Mapping[str, Figures]]) -> Figures:
        """What ptxas says; `compiled` keeps what was compiled before."""
        key = (self.launch.source, self.launch.defines, arch)
        if key not in compiled:
            text = source_text(self.launch.source)
            compiled[key] = nvrtc().compiled(text, dict(self.launch.defines), arch).kernels
        return compiled[key][self.launch.kernel]


def rows() -> list[Row]:
    """Every kernel of the calls, with every set of defines once."""
    seen: set[tuple[object, ...]] = set()
    found = []
    for call in CALLS:
        for launch in launches_of(call):
            key = (launch.kernel, launch.defines)
            if key not in seen:
                seen.add(key)
                found.append(Row(call, launch))
    return found


def asked(row: Row) -> str:
    """The half of a row that the core tells."""
    launch, defines = row.launch, dict(row.launch.defines)
    kernel = f"`{launch.kernel}`"
    kernel += ", no branch" * (defines.get("HAS_BRANCH") == "0") + ", no norm" * (
        defines.get("HAS_NORM") == "0"
    )
    moved = BYTES[launch.kernel][0] if launch.kernel in BYTES else "partial sums"
    return f"| {kernel} | {row.call} | {launch.block} | {launch.shared:,} | {moved} "


def told(figures: Sequence[Figures]) -> str:
    """The half of a row that the compiler tells."""
    registers = " / ".join(str(each.registers) for each in figures)
    spills = [max(each.spills) for each in figures]
    return f"| {registers} | {' / '.join(map(str, spills)) if any(spills) else 'none'} |"


def markdown() -> str:
    """The table, with what compiled it."""
    compiled: dict[tuple[object, ...], Mapping[str, Figures]] = {}
    lines = [asked(row) + told([row.figures(arch, compiled) for arch in ARCHITECTURES]) for row in rows()]
    return "\n".join(
        [
            f"Compiled by NVRTC {nvrtc().version}.",
            "",
            "| kernel | of the call | threads | shared bytes | elements moved "
            f"| registers {' / '.join(ARCHITECTURES)} | spilled bytes |",
            "|---|---|---|---|---|---|---|",
            *lines,
        ]
    )


def written() -> str:
    """The table of the page."""
    page = PAGE.read_text()
    return page[page.index(BEGIN) + len(BEGIN) : page.index(END)].strip()


def main() -> int:
    """Exit status 0."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--write", action="store_true", help="into docs/cuda.md")
    table = markdown()
    if parser.parse_args().write:
        page = PAGE.read_text()
        PAGE.write_text(page[: page.index(BEGIN)] + f"{BEGIN}\n\n{table}\n\n" + page[page.index(END) :])
    else:
        sys.stdout.write(table + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
