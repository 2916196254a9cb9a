"""What the README and the docstrings show runs, and gives what they say."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest
import torch

import batchformer as bf

README = Path(__file__).parents[1] / "README.md"


def python_blocks(file: Path = README) -> list[str]:
    """The Python of a file in Markdown, block by block."""
    return re.findall(r"^```python\n(.*?)^```", file.read_text(), re.DOTALL | re.MULTILINE)


def test_the_readme_has_python():
    assert len(python_blocks()) >= 1


@pytest.mark.parametrize("number", range(len(python_blocks())))
def test_the_blocks_of_the_readme_run(number):
    exec(compile(python_blocks()[number], f"README.md, block {number}", "exec"), {})


def test_the_first_example_of_the_readme_is_short():
    assert len(python_blocks()[0].strip().splitlines()) <= 12


def test_the_files_that_the_readme_links_are_there():
    links = re.findall(r"\]\(((?!http)[^)#]+)\)|src=\"((?!http)[^\"]+)\"", README.read_text())
    assert links
    missing = [path for pair in links for path in pair if path and not (README.parent / path).exists()]
    assert not missing


MODULES = sorted(
    info.name for info in pkgutil.walk_packages(bf.__path__, "batchformer.") if "_core" not in info.name
)


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_docstrings_give_what_they_say(name):
    names = {**vars(bf), "torch": torch}
    failed, _ = doctest.testmod(importlib.import_module(name), extraglobs=names)
    assert failed == 0


def test_every_public_name_has_a_docstring_with_an_example():
    public = [name for name in vars(bf) if not name.startswith("_") and callable(getattr(bf, name))]
    assert len(public) >= 9
    for name in public:
        assert ">>> " in (getattr(bf, name).__doc__ or ""), name
