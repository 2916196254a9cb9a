"""The table of errors is whole: every sentence of the package has a row, with a cause and a remedy."""

import ast
import re
from pathlib import Path
from typing import NamedTuple

import pytest

from error_table import ROWS, TABLE, WHATEVER_THE_CALL, line, markdown
from error_table.loading import UNREACHED
from test_bad_input import PACKAGE, outcome

RUST = Path(__file__).parents[1] / "src"
EXCLUDED = {"benchmark"}  # a program, whose errors end it with the usage; the package never calls it
HOLE = "\N{OBJECT REPLACEMENT CHARACTER}"


class Raise(NamedTuple):
    file: str
    first: int
    last: int
    sentence: str
    """As it stands in the source, a hole for what is filled in."""


def raises_of(file: Path) -> list[Raise]:
    """The raise statements with a sentence. A bare one, and an abstract method, say nothing of their own."""
    found = []
    for node in ast.walk(ast.parse(file.read_text())):
        if not isinstance(node, ast.Raise) or node.exc is None:
            continue
        if isinstance(node.exc, ast.Name) and node.exc.id in ("NotImplementedError", "TakesApart"):
            continue
        assert isinstance(node.exc, ast.Call), f"{file}:{node.lineno}: no sentence to read"
        (argument,) = node.exc.args
        name = str(file.relative_to(PACKAGE))
        found.append(Raise(name, node.lineno, node.end_lineno, template(argument)))
    return found


def template(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    assert isinstance(node, ast.JoinedStr), ast.unparse(node)
    return "".join(part.value if isinstance(part, ast.Constant) else HOLE for part in node.values)


RAISES = [
    each
    for file in sorted(PACKAGE.rglob("*.py"))
    if file.relative_to(PACKAGE).parts[0] not in EXCLUDED
    for each in raises_of(file)
]


def fits(template: str, sentence: str) -> bool:
    return re.fullmatch(".*".join(map(re.escape, template.split(HOLE))), sentence, re.DOTALL) is not None


@pytest.mark.parametrize("each", RAISES, ids=[f"{each.file}: {each.sentence}" for each in RAISES])
def test_every_raise_of_the_package_is_reached_by_a_row(each):
    at = {row for row in ROWS if outcome(row).place[0] == each.file}
    reached = {row for row in at if each.first <= outcome(row).place[1] <= each.last}
    assert reached, "give it a row in tests/error_table"
    assert all(fits(each.sentence, outcome(row).sentence) for row in reached)


def sentences_of_the_core() -> dict[str, str]:
    """By the variant of LayerError, or by the file of an error of libtorch's kind that is made by hand."""
    source = (RUST / "layer" / "error.rs").read_text()
    variants = set(re.findall(r"^    (\w+)(?: \{|\(|,)", source[: source.index("impl LayerError")], re.M))
    display = source[source.index("impl fmt::Display") : source.index("/// Torch's message")]
    found = {}
    for arm in display.split("LayerError::")[1:]:
        if written := re.search(r'write!\(\s*f,\s*"(.+?)"[,)\s]', arm, re.DOTALL):
            found[re.match(r"\w+", arm)[0]] = re.sub(r"\\\n\s+", "", re.sub(r"\{.*?\}", HOLE, written[1]))
    assert variants - found.keys() == {"Torch", "Cuda"}, (
        "Torch passes on what torch says, and tests/cuda/test_driver.py has the rows of Cuda"
    )
    for file in RUST.rglob("*.rs"):
        assert file.name == "exceptions.rs" or "new_err(" not in file.read_text(), (
            f"{file} has an error of its own"
        )
        own = file.read_text().split("#[cfg(test)]")[0]
        found |= {f"{file.name} {text}": text for text in re.findall(r'TchError::\w+\(\s*"(.+?)"', own)}
    return found


CORE = sentences_of_the_core()


@pytest.mark.parametrize("sentence", CORE.values(), ids=CORE)
def test_every_error_of_the_core_has_a_row(sentence):
    assert any(fits(sentence, row.sentence) for row in (*ROWS, *UNREACHED)), (
        "give it a row in tests/error_table"
    )


def test_the_scans_have_found_what_there_is():
    assert len(RAISES) > 50
    assert len({each.file for each in RAISES}) > 15
    assert len(CORE) > 12


def test_what_no_call_reaches_is_in_no_row_and_is_still_in_the_package():
    for each in UNREACHED:
        assert each.reason
        assert any(fits(sentence, each.sentence) for sentence in CORE.values())
        assert each.sentence not in {row.sentence for row in ROWS}


def test_the_table_prints_every_sentence_with_its_cause_and_its_remedy():
    text = markdown()
    headings = re.findall(r"^## (.+)$", text, re.M)
    assert headings == [*TABLE, WHATEVER_THE_CALL]
    for row in (*ROWS, *UNREACHED):
        assert (
            f"`{row.error.__name__}: {row.sentence}` {row.cause} **Instead:** {row.remedy}" == line(row)[2:]
        )
        assert f"\n{line(row)}\n" in f"{text}\n"
        assert row.cause.endswith(".")
        assert row.remedy.endswith(".")
        assert "\n" not in line(row)
    assert len(text.splitlines()) > 100
