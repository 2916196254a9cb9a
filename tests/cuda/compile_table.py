"""What ptxas makes of the kernels: registers and spilled bytes of each, per architecture and major of NVRTC.

    python tests/cuda/compile_table.py            measures with torch's NVRTC and writes registers.tsv
    python tests/cuda/compile_table.py PATH ...   the same with these libraries, say those of other torches

Several minors of one major leave the larger numbers. A row of a kernel or define that is gone goes, too.
"""

import os
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import plans_long
import plans_norm
import plans_small
import torch
from harness import Figures, Heads, nvrtc, source_text

TABLE = Path(__file__).resolve().parent / "registers.tsv"
ARCHS = ("sm_80", "sm_86", "sm_90", "sm_100", "sm_120")
BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32


class Unit(NamedTuple):
    """What is compiled at once."""

    source: str
    defines: tuple[tuple[str, Any], ...]

    @property
    def name(self) -> str:
        return " ".join([self.source, *(f"{key}={value}" for key, value in self.defines)])


class Cell(NamedTuple):
    registers: int
    spilled: int

    def __str__(self) -> str:
        return f"{self.registers}+{self.spilled}" if self.spilled else str(self.registers)


def cell(figures: Figures) -> Cell:
    return Cell(figures.registers, sum(figures.spills))


Row = tuple[str, str, str]  # unit, kernel, major of NVRTC


def units() -> list[Unit]:
    """The sizes of the benchmark and of the papers; what `plans_*.py` makes of them, each once."""
    return list(
        dict.fromkeys(Unit(plan.source, tuple(sorted(plan.defines.items()))) for plan in _plans() if plan)
    )


def _plans() -> Iterator[Any]:
    types = {
        (BF16, BF16, BF16, BF16): (256, 512, 1024, 2048),
        (F16, F16, F16, F16): (256,),
        (F32, F32, F32, F32): (256, 512, 2048),
        (BF16, BF16, F32, BF16): (256,),  # half precision with the norms in float32
        (F32, BF16, F32, BF16): (256, 512),  # autocast
        (F32, BF16, F32, F32): (256,),
    }
    for each, widths in types.items():
        for channels in widths:
            yield plans_norm.norm_forward(3400, channels, plans_norm.Types(*each))
    for flags in ({"has_norm": False}, {"has_branch": False}):
        for each in ((BF16,) * 4, (F32,) * 4, (F32, BF16, F32, BF16)):
            yield plans_norm.norm_forward(3400, 256, plans_norm.Types(*each), **flags)
    for dtype in (BF16, F16, F32):
        for gelu in (False, True):
            yield plans_norm.activation_forward(3400, 2048, dtype, gelu)
        for norms in {dtype, F32}:
            yield plans_norm.column_sums(264, 4096, dtype, norms)
    for dtype, widths in ((BF16, (32, 64, 96)), (F16, (64,)), (F32, (32, 64))):
        for width in widths:
            for samples in (2, 20, 64):
                yield plans_small.forward(Heads(samples, samples, samples, 850, 4, 0), width, dtype)
    for width in (12, 48, 192):
        yield plans_small.forward(Heads(2, 2, 2, 850, 4, 0), width, BF16)
    yield plans_small.forward(Heads(4, 4, 4, 850, 4, 0), 64, F32, tf32=True)
    for dtype, tf32 in ((BF16, False), (F16, False), (F32, False), (F32, True)):
        for width in (64, 128, 256) if dtype == BF16 else (128,):
            for samples, keys in ((1024, 1024), (128, 4096)):
                heads = Heads(samples, keys, keys, 1, 4, 0)
                yield plans_long.forward(heads, width, dtype, tf32)
                yield plans_long.backward("BY_QUERY", heads, width, dtype, tf32)
                yield plans_long.backward("BY_KEY", heads, width, dtype, tf32)
    for dtype, scores in ((BF16, BF16), (BF16, F32), (F16, F16), (F32, F32)):
        for keys in (256, 4096, 8191):
            yield plans_long.softmax("softmax_forward", Heads(keys, keys, keys, 1, 4, 0), 64, dtype, scores)
    yield plans_norm.Plan("primitives", "", {}, (), 0, 0)


def measured(compiler: Any, unit: Unit, arch: str) -> dict[str, Figures]:
    return compiler.compiled(source_text(unit.source), dict(unit.defines), arch).kernels


def read() -> dict[Row, dict[str, Cell]]:
    table = {}
    for line in TABLE.read_text().splitlines()[1:] if TABLE.exists() else []:
        *row, cells = line.split("\t", 3)
        pairs = ([*map(int, each.split("+")), 0][:2] for each in cells.split("\t"))
        table[tuple(row)] = dict(zip(ARCHS, (Cell(*pair) for pair in pairs), strict=True))
    return table


def write(table: Mapping[Row, Mapping[str, Cell]]) -> None:
    lines = ["\t".join(["unit", "kernel", "nvrtc", *ARCHS])]
    lines += ["\t".join([*row, *(str(table[row][arch]) for arch in ARCHS)]) for row in sorted(table)]
    TABLE.write_text("\n".join(lines) + "\n")


def measure(paths: list[str | None]) -> None:
    """Measures anew for the majors of these libraries; rows of other majors stay, while their unit does."""
    names = {unit.name for unit in units()}
    majors = {nvrtc(path).version.split(".")[0] for path in paths}
    table = {row: cells for row, cells in read().items() if row[0] in names and row[2] not in majors}
    for path in paths:
        compiler = nvrtc(path)
        major = compiler.version.split(".")[0]
        work = [(unit, arch) for unit in units() for arch in ARCHS]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            all_figures = pool.map(lambda each, compiler=compiler: measured(compiler, *each), work)
            for (unit, arch), kernels in zip(work, all_figures, strict=True):
                for kernel, figures in kernels.items():
                    cells = table.setdefault((unit.name, kernel, major), {})
                    pairs = zip(cells.get(arch, Cell(0, 0)), cell(figures), strict=True)
                    cells[arch] = Cell(*map(max, pairs))  # a minor may spill, and another take registers
        write(table)


if __name__ == "__main__":
    measure(sys.argv[1:] or [None])
