"""`python -m batchformer.cuda`: checks the kernels on this machine, and writes a report to send to us."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

import batchformer
from batchformer._extension import core
from batchformer.hardware import cuda_device
from batchformer.ops.on_cuda import Signature

DTYPES = (
    *(((dtype,) * 3) for dtype in ("float32", "bfloat16", "float16")),
    ("float32", "bfloat16", "float32"),
    ("float32", "float16", "float32"),
)
"""Dtypes of x, of the linears and of the norms; the mixed ones are those of autocast."""
WIDTHS = ((192, 4), (256, 8), (384, 4), (512, 4), (2048, 4))
"""Channels and heads of the systems that BatchFormer trains in."""
OPTIONS = ((False, False), (True, True))
"""Pairs (GELU, norm_first)."""


class Checked(NamedTuple):
    """The result for one kind of call."""

    kind: Signature
    finding: str
    runs_rightly: bool
    declined: str | None
    """Why torch's own layer runs instead."""

    @property
    def sentence(self) -> str:
        """The finding and, if the kernels are right but declined, why."""
        return f"{self.finding}; {self.declined}" if self.runs_rightly and self.declined else self.finding


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m batchformer.cuda",
        description="Whether batchformer's CUDA kernels compute correctly on this machine.",
    )
    parser.add_argument("--check", action="store_true", help="compare the kernels with libtorch")
    parser.add_argument(
        "--report", type=Path, metavar="FILE", help="write the result and this GPU's ledger as Markdown"
    )
    parser.add_argument(
        "--device", type=int, default=0, metavar="INDEX", help="index of the CUDA device (default: 0)"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 if the kernels are right, 1 if one is not, 2 for bad options or no device."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    if not options.check and options.report is None:
        parser.error("expected --check or --report FILE")
    devices = torch.cuda.device_count()
    if devices and not 0 <= options.device < devices:
        parser.error(f"--device: expected an index from 0 to {devices - 1}, got {options.device}")
    lines = list(facts(options.device))
    print("\n".join(lines))
    if not devices:
        print("no CUDA device found: the CPU kernels run, and torch's own layer elsewhere")
        return 2
    checked = []
    width = max(len(str(kind)) for kind in kinds(options.device))
    for kind in kinds(options.device):
        found = check(kind)
        print(f"  {kind!s:{width}}  {'declined' if found.declined else 'verified'}  {found.sentence}")
        checked.append(found)
    if options.report is not None:
        options.report.write_text(report(lines, checked, options.device))
        print(f"{options.report} is written: please send it with an issue, so that this GPU can be listed")
    return 0 if all(each.runs_rightly for each in checked) else 1


def facts(device: int) -> Iterator[str]:
    """Lines about the machine and its CUDA libraries."""
    versions = (batchformer.__version__, torch.__version__, torch.version.cuda)
    yield "batchformer {}, torch {}, CUDA of torch {}".format(*versions)
    if torch.cuda.device_count():
        yield cuda_device(device)
    for name, value in core.cuda_status().items():
        yield f"{name}: {'-' if value is None else value}"


def kinds(device: int) -> Iterator[Signature]:
    """The kinds of calls in the systems that BatchFormer trains in, in every dtype."""
    for dtypes in DTYPES:
        for channels, heads in WIDTHS:
            for gelu, norm_first in OPTIONS:
                yield Signature(device, *dtypes, channels, heads, channels, gelu, norm_first)


def check(kind: Signature) -> Checked:
    """Compares the kernels with libtorch, whether they are declined or not."""
    try:
        finding = f"differs from libtorch by {core.cuda_self_check(kind):.1e}"
    except RuntimeError as error:
        finding = " ".join(str(error).split())  # one line, also what a compiler says
        return Checked(kind, finding, runs_rightly=False, declined=finding)
    declined = core.cuda_reason(kind, True)
    return Checked(kind, finding, runs_rightly=True, declined=None if declined is None else declined[0])


def report(lines: Sequence[str], checked: Sequence[Checked], device: int) -> str:
    """The report as Markdown: facts, the ledger's lines, findings."""
    try:
        ledger = "\n".join(" ".join(words) for words in core.cuda_sources(device))
    except RuntimeError as error:
        ledger = str(error)
    listed = "\n".join(f"- {line}" for line in lines)
    table = "\n".join(f"| {each.kind} | {each.sentence} |" for each in checked)
    return f"""# CUDA kernels of batchformer on a device

{listed}

## Sources

```
{ledger}
```

## Difference from libtorch, relative, in the 2-norm

| call | finding |
| --- | --- |
{table}
"""


if __name__ == "__main__":
    sys.exit(main())
