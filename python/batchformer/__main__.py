"""`python -m batchformer`: what a bug report needs to say about the machine and the installed packages."""

import argparse
import json
import sys
from collections.abc import Sequence

from batchformer.about import as_text, facts


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m batchformer",
        description="Versions, processor, threads, CUDA, environment, and which kernels run.",
        epilog="python -m batchformer.cuda --check tries every kind of call on a CUDA device.",
    )
    parser.add_argument("--json", action="store_true", help="the same as one JSON object")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, even if a fact is not known; 2 for bad options."""
    options = make_parser().parse_args(arguments)
    found = facts()
    sys.stdout.write((json.dumps(found, indent=1) if options.json else as_text(found)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
