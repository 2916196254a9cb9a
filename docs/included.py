"""Links of the files that pages include: `src/cpu` in README.md is a folder of the repository, not a page."""

from pathlib import Path

from sphinx.application import Sphinx
from sphinx.util.typing import ExtensionMetadata

from build_backend import with_whole_links


def link_to_the_repository(_app: Sphinx, _file: Path, _page: str, content: list[str]) -> None:
    """Lead the relative links of an included file there; its pictures go by :relative-images:."""
    content[0] = with_whole_links(content[0], "main")


def setup(app: Sphinx) -> ExtensionMetadata:
    """Called by Sphinx."""
    app.connect("include-read", link_to_the_repository)
    return {"parallel_read_safe": True}
