"""How the path of the CPU gains from threads: the benchmark with 16, 8, 4, 2 and 1 of them.

One thread takes longest, so it comes last: what is over is kept.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from device_steps.findings import note

SHAPES = ("DETR N=2 L=850", "DeiT-T N=64", "V1 N=256 C=512")


def main() -> int:
    """Exit status 1 if a run ends with an error."""
    times: dict[str, dict[str, dict[int, float]]] = {}
    counts = [count for count in (16, 8, 4, 2, 1) if count <= (os.cpu_count() or 1)]
    for threads in counts:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "rows.json")
            command = [sys.executable, "-m", "batchformer.benchmark", "--threads", str(threads)]
            done = subprocess.run(
                [*command, "--shapes", *SHAPES, "--json", str(file)],
                env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
                check=False,
            )
            if done.returncode:
                return 1
            document = json.loads(file.read_text())
        for row in document["rows"]:
            for name, parts in row["times"].items():
                times.setdefault(row["shape"], {}).setdefault(name, {})[threads] = 1e3 * parts["step"][0]
        note(milliseconds=times, machine=document["machine"])
    gains = [f"{shape}: {of['ours'][counts[-1]] / of['ours'][counts[0]]:.1f}" for shape, of in times.items()]
    note(f"ours with {counts[-1]} thread / with {counts[0]}: " + ", ".join(gains))
    return 0


if __name__ == "__main__":
    sys.exit(main())
