"""`python requirements_for.py 2.9.1 FOLDER`: what `uv pip install --group dev` has to be told for that torch.

A minor release, as in 2.9, is its last patch.

Writes overrides.txt, with the torch and the torchvision that fits it, and constraints.txt, with the lock
file's releases of everything else but what torch brings.
"""

import re
import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    from pip._vendor import tomli as tomllib

ROOT = Path(__file__).parents[1]
OF_TORCH = ("torch", "torchvision", "triton", "nvidia-", "cuda-", "setuptools", "sympy")


def main(torch: str, folder: Path) -> None:
    fits = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["batchformer"]["torchvision"]
    minor = ".".join(torch.split(".")[:2])
    if minor not in fits:
        sys.exit(f"TORCH: expected a release of torch {' or '.join(fits)}, got {torch!r}")
    exactly = torch if torch != minor else f"{minor}.*"
    (folder / "overrides.txt").write_text(f"torch=={exactly}\ntorchvision=={fits[minor]}\n")
    pins = re.findall(r"^([\w.-]+==[^\\\n]+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    others = [pin.strip() for pin in pins if not pin.startswith(OF_TORCH)]
    (folder / "constraints.txt").write_text("\n".join(others) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
