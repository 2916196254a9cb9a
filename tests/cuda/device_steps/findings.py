"""What a step has found, written at once, so that a step that is ended early has not run for nothing."""

import json
import os
import sys
from pathlib import Path
from typing import Any

_found: dict[str, Any] = {}


def note(line: str | None = None, **found: Any) -> None:
    """Keep these; `line` is what device_call.py prints of the step."""
    _found.update(found)
    if line is not None:
        say(line)
        _found["line"] = line
    if file := os.environ.get("DEVICE_FINDINGS"):
        Path(file).write_text(json.dumps(_found, indent=1, default=str))


def say(line: str) -> None:
    """A line for the log."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
