"""The pages of the documentation are whole; `make docs` builds them."""

import re
from pathlib import Path
from types import ModuleType

import batchformer as bf
from test_readme import python_blocks

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = {file.relative_to(DOCS).with_suffix("").as_posix(): file for file in DOCS.rglob("*.md")}


def directives(name: str, page: Path) -> list[tuple[str, str]]:
    """Argument and body of each directive of that name in a page."""
    return re.findall(rf"^```{{{name}}} *(.*?)\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def exported(module: ModuleType) -> set[str]:
    names = (name for name in vars(module) if not name.startswith("_") and callable(getattr(module, name)))
    return {f"{module.__name__}.{name}" for name in names}


def documented() -> set[str]:
    module, names = "", set()
    for directive, name in re.findall(
        r"^\.\. (currentmodule|auto\w+):: ([\w.]+)", PAGES["api"].read_text(), re.M
    ):
        if directive == "currentmodule":
            module = name
        else:
            names.add(f"{module}.{name}")
    return names


def test_the_page_of_the_api_has_every_exported_name_and_no_other():
    assert len(exported(bf)) >= 12
    assert documented() == exported(bf) | exported(bf.ops)


def test_every_page_is_in_one_table_of_contents():
    entries = [
        entry
        for page in PAGES.values()
        for _, body in directives("toctree", page)
        for entry in body.split("\n")
        if entry and not entry.startswith(":")
    ]
    assert len(entries) >= 7
    assert sorted(["index", *entries]) == sorted(PAGES)


def test_every_included_part_is_where_its_page_looks_for_it():
    included = [(page, *include) for page in PAGES.values() for include in directives("include", page)]
    assert len(included) >= 7
    for page, path, options in included:
        text = (page.parent / path).read_text()
        marks = re.findall(r'^:(?:start-after|end-before): "(.*)"$', options, re.MULTILINE)
        assert [text.count(mark) for mark in marks] == [1] * len(marks), f"{page.name}: {marks}"
        assert sorted(marks, key=text.index) == marks


def test_the_files_that_the_pages_name_are_there():
    folders = "src|python|tests|examples|compat"
    names = {
        name
        for page in PAGES.values()
        for name in re.findall(rf"`((?:{folders})(?:/[\w./]+)?)`", page.read_text())
    }
    assert len(names) >= 15
    assert [name for name in names if not (ROOT / name).exists()] == []


def test_the_python_of_the_pages_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where a figure is saved
    for name, page in PAGES.items():
        for number, block in enumerate(python_blocks(page)):
            exec(compile(block, f"docs/{name}.md, block {number}", "exec"), {})
