"""What the pages have from the package itself: errors, families, the parameters of the layer, the ops.

A comment `<!-- generated: NAME -->` in a page becomes the text of that name while the page is read; no file
is written.
"""

import re

import torch
from sphinx.application import Sphinx
from sphinx.util.typing import ExtensionMetadata

import batchformer as bf
import error_table
from batchformer._extension import core

PLACE = re.compile(r"^<!-- generated: (\w+) -->$", re.MULTILINE)


def errors() -> str:
    """The table of errors, each sentence on a line of its own."""
    return re.sub(r"^(- `[^`]+`) ", r"\1\\\n  ", error_table.markdown(), flags=re.MULTILINE)


def parameters() -> str:
    """The tensors of the layer and their shapes, from the core's table."""
    rows = []
    for name, shape, optional in core.parameter_facts():
        sizes = ", ".join(f"{times if times > 1 else ''}{letter}" for times, letter in shape)
        rows.append(f"| `{name}` | `[{sizes}]` | {'or None' if optional else ''} |")
    return "\n".join(["| name | shape | |", "|---|---|---|", *rows])


def schemas() -> str:
    """The schemas of the ops, an argument a line, from what torch has registered."""
    ops = (torch.ops.batchformer.encoder_layer, torch.ops.batchformer.encoder_layer_backward)
    blocks = []
    for op in ops:
        name, arguments, outputs = re.fullmatch(r"(.*?)\((.*)\) -> (.*)", str(op.default._schema)).groups()
        lines = "".join(f"    {argument},\n" for argument in arguments.split(", "))
        blocks.append(f"```text\n{name}(\n{lines}) -> {outputs}\n```")
    return "\n\n".join(blocks)


def families() -> str:
    """The families of models that attach() knows."""
    rows = []
    for family in bf.families():
        by_name = ", ".join(f'`"{name}"`' for name in family.names)
        rows.append(
            f"| {by_name} | {family.models} | {family.place} | {'yes' if family.recognised else 'by name'} |"
        )
    about = []
    for family in bf.families():
        about.append(f"`{family.names[0]}`, {family.models}\n: " + family.about.replace("\n", "\n  "))
    header = ["| `preset` | models | place, if you name none | recognised |", "|---|---|---|---|"]
    return "\n".join([*header, *rows, "", "\n\n".join(about)])


TEXTS = {"errors": errors, "families": families, "parameters": parameters, "schemas": schemas}


def fill(_app: Sphinx, _page: str, source: list[str]) -> None:
    """Put the texts into the source of a page."""
    source[0] = PLACE.sub(lambda place: TEXTS[place[1]](), source[0])


def setup(app: Sphinx) -> ExtensionMetadata:
    """Called by Sphinx."""
    app.connect("source-read", fill)
    return {"parallel_read_safe": True}
