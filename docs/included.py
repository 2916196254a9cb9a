"""Links of the files that pages include: `src/cpu` in README.md is a folder of the repository, not a page."""

import re
from pathlib import Path

import tomllib
from sphinx.application import Sphinx
from sphinx.util.typing import ExtensionMetadata

PYPROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
FILES = PYPROJECT["project"]["urls"]["Repository"] + "/blob/main"

LINK = re.compile(
    r"(?<!!)(\[[^\]]+\])\((?!https?:|#)([^)]+)\)"
)  # an image is included with :relative-images:


def link_to_the_repository(_app: Sphinx, _file: Path, _page: str, content: list[str]) -> None:
    """Lead the relative links of an included file to the repository."""
    content[0] = LINK.sub(rf"\1({FILES}/\2)", content[0])


def setup(app: Sphinx) -> ExtensionMetadata:
    """Called by Sphinx."""
    app.connect("include-read", link_to_the_repository)
    return {"parallel_read_safe": True}
