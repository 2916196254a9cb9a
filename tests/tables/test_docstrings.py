"""The examples in the docstrings of the tables and of the letters give what they say."""

import doctest
import importlib
import pkgutil

import pytest

import examples.glyphs
import examples.tables

MODULES = sorted(
    info.name
    for package in (examples.glyphs, examples.tables)
    for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    if not info.name.endswith("__main__")
)


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_docstrings_give_what_they_say(name):
    failed, _ = doctest.testmod(importlib.import_module(name))
    assert failed == 0


def test_there_are_modules():
    assert len(MODULES) > 30
