"""The digest of a table's code: what changes it, and what does not."""

from types import SimpleNamespace

import pytest

from examples.tables import code

PLAIN = "examples/plain.py", "from examples.other import number\n\n\ndef value():\n    return number\n"
OTHER = "examples/other.py", "number = 1\n"


@pytest.fixture
def digest(tmp_path, monkeypatch):
    """The digest of a module of two files, one of which is rewritten."""
    (tmp_path / "examples").mkdir()
    monkeypatch.setattr(code, "ROOT", tmp_path)

    def of(*changed):
        for name, text in (PLAIN, OTHER, *changed):
            (tmp_path / name).write_text(text)
        code.digest.cache_clear()
        return code.digest("examples.plain")

    yield of
    code.digest.cache_clear()
    code.library.cache_clear()


def test_comments_docstrings_and_layout_change_nothing(digest):
    said = '"""A module."""\n' + PLAIN[1].replace("():\n", '():\n    """A value."""  # one\n')
    assert digest() == digest((PLAIN[0], said)) == digest()


def test_code_changes_it_also_in_what_is_imported(digest):
    found = {
        digest(),
        digest((PLAIN[0], PLAIN[1].replace("return", "return -"))),
        digest((OTHER[0], "number = 2\n")),
    }
    assert len(found) == 3


def test_code_of_the_library_and_its_extension_change_it(digest, tmp_path, monkeypatch):
    package, extension = tmp_path / "package", tmp_path / "core.so"
    package.mkdir()
    monkeypatch.setattr(code.batchformer, "__file__", str(package / "__init__.py"))
    monkeypatch.setattr(code, "core", SimpleNamespace(__file__=str(extension)))

    def of(text, built=b"once"):
        (package / "__init__.py").write_text(text)
        extension.write_bytes(built)
        code.library.cache_clear()
        return digest()

    assert of("number = 1\n") == of("number = 1  # one\n")
    assert len({of("number = 1\n"), of("number = 2\n"), of("number = 1\n", b"again")}) == 3


def test_the_tables_differ_and_know_what_they_import():
    from examples.tables.catalogue import TABLES

    assert len({code.digest(table.module) for table in TABLES.values()}) == len(TABLES)
    found: dict[str, str] = {}
    code._collect("examples.tables.few_shot", found)
    assert {"examples.glyphs.instances", "examples.tables.letters", "examples.tables.optimization"} <= set(
        found
    )
