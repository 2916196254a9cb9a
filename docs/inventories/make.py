"""Writes torch.inv and numpy.inv, which tell Sphinx where a name is documented.

    python docs/inventories/make.py

The pages are built without network, so the inventories that Sphinx would load from the sites lie here.
Python's is whole, as Debian's package python3.11-doc has it. PyTorch's and NumPy's come in no package;
theirs are written from the names that these pages refer to. A name that Sphinx does not find is a line more.

The format: https://sphobjinv.readthedocs.io/en/stable/syntax.html
"""

import zlib
from pathlib import Path
from pydoc import locate

import numpy as np
import torch

TORCH = {
    "torch.Tensor": ("py:class", "tensors.html"),
    "torch.nn.Module": ("py:class", "generated/torch.nn.Module.html"),
    "torch.nn.TransformerEncoderLayer": ("py:class", "generated/torch.nn.TransformerEncoderLayer.html"),
    # The same by the modules that define them, as autodoc names them; the site has pages for these, too.
    "torch.nn.modules.module.Module": ("py:class", "generated/torch.nn.modules.module.Module.html"),
    "torch.nn.modules.transformer.TransformerEncoderLayer": (
        "py:class",
        "generated/torch.nn.modules.transformer.TransformerEncoderLayer.html",
    ),
}
NUMPY = {
    "numpy.dtype": ("py:class", "reference/generated/numpy.dtype.html"),
    "numpy.floating": ("py:class", "reference/arrays.scalars.html"),
    "numpy.ndarray": ("py:class", "reference/generated/numpy.ndarray.html"),
}


def write(project: str, version: str, names: dict[str, tuple[str, str]]) -> None:
    """The inventory of a project beside this file; each name is the anchor of its place on the page."""
    missing = [name for name in names if locate(name) is None]
    if missing:
        raise ValueError(f"{project}: expected names that {version} has, got {missing}")
    header = (
        "# Sphinx inventory version 2\n"
        f"# Project: {project}\n"
        f"# Version: {version}\n"
        "# The remainder of this file is compressed using zlib.\n"
    )
    lines = "".join(f"{name} {role} 1 {page}#$ -\n" for name, (role, page) in sorted(names.items()))
    file = Path(__file__).with_name(f"{project.lower()}.inv")
    file.write_bytes(header.encode() + zlib.compress(lines.encode(), 9))


if __name__ == "__main__":
    write("torch", torch.__version__.split("+")[0], TORCH)
    write("numpy", np.__version__, NUMPY)
