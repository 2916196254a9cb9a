"""One process of `pairs`: times the shapes with the build of batchformer that a folder holds, prints JSON.

It is run as a file, and uses only what every release of the package has.
"""

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

WARM_UP = 2


def measure(task: dict[str, Any]) -> list[float]:
    """Seconds of a training step of each shape [N, L, C, H]: medians, float32 and dropout 0.5."""
    import torch

    import batchformer as bf

    asked, found = Path(task["folder"]) / "batchformer", Path(bf.__file__).parent
    if asked != found:
        sys.exit(f"batchformer: expected the build in {asked}, got the one in {found}")
    torch.set_num_threads(task["threads"])
    medians = []
    for samples, positions, channels, heads in task["shapes"]:
        layer = bf.TransformerEncoderLayer(channels, heads, channels, 0.5)
        x = torch.randn(samples, positions, channels, requires_grad=True)
        grad_y = torch.randn(samples, positions, channels)
        seconds: list[float] = []
        spent = 0.0
        while len(seconds) < WARM_UP + task["steps"] or spent < task["seconds"]:
            layer.zero_grad()
            x.grad = None
            start = time.perf_counter()
            layer(x).backward(grad_y)
            seconds.append(time.perf_counter() - start)
            spent += seconds[-1]
        medians.append(statistics.median(seconds[WARM_UP:]))
    return medians


if __name__ == "__main__":
    asked_for = json.loads(sys.argv[1])
    here = Path(__file__).parent  # its files are no top-level modules
    sys.path[:] = [asked_for["folder"], *(path for path in sys.path if Path(path) != here)]
    sys.stdout.write(json.dumps(measure(asked_for)))
