"""The figures of the documentation show the numbers of its tables, and come out alike each time."""

import json
import re

import pytest
from PIL import Image

from docs.figures.__main__ import FIGURES
from docs.figures.sheet import DOCS, save
from docs.figures.tables import read_table
from test_docs import PAGES, ROOT


def numbers_in(path):
    """What was drawn, as JSON, or None."""
    with Image.open(path) as picture:
        return picture.info.get("Description")


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_has_the_same_bytes_each_time_and_the_numbers_of_the_tables(name, tmp_path):
    for number in (1, 2):
        save(tmp_path / f"{number}.png", *FIGURES[name]())
    assert (tmp_path / "1.png").read_bytes() == (tmp_path / "2.png").read_bytes()
    assert numbers_in(DOCS / f"{name}.png") == numbers_in(tmp_path / "1.png"), "run make figures"


def test_the_tables_are_read_as_they_stand():
    numbers = json.loads(numbers_in(DOCS / "speed.png"))
    assert [len(ratios) for ratios in numbers.values()] == [12, 12]
    (row,) = [row for row in read_table("docs/speed.md", "frozen") if row["shape"] == "SWAD N=96 C=512"]
    assert numbers["Intel Xeon with AMX"]["SWAD N=96 C=512"] == float(row["torch's / ours"])
    with pytest.raises(LookupError, match="no such column"):
        read_table("README.md", "no such column")


def test_every_picture_says_in_words_what_it_shows():
    pictures = [
        picture
        for page in (ROOT / "README.md", *PAGES.values())
        for picture in re.findall(r"!\[([^]]*)\]\(([^)]*\.png)\)", page.read_text())
    ]
    assert len(pictures) >= 9
    assert [file for words, file in pictures if len(words.split()) < 6] == []


def test_every_picture_of_the_pages_is_drawn_by_make_figures():
    tables = {path.name for path in (DOCS / "tables").glob("*.png")}  # by python -m examples.tables.page
    drawn = {*(f"{name}.png" for name in FIGURES), "glyphs.png", *tables}
    assert {path.name for path in DOCS.rglob("*.png")} == drawn
