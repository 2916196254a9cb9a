"""The numbers that are drawn: those of the tables in the documentation, which stand nowhere else."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
Row = dict[str, str]


def read_table(page: str, *headings: str) -> list[Row]:
    """The first table of a page that has these columns, its cells by their headings.

    A heading that comes a second time is called "... again".
    """
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    for place, line in enumerate(lines):
        if line.startswith("|") and set(headings) <= {*_cells(line)}:
            names: list[str] = []
            for heading in _cells(line):
                names.append(f"{heading} again" if heading in names else heading)
            rows = []
            for row in lines[place + 2 :]:  # behind the line of dashes
                if not row.startswith("|"):
                    break
                rows.append(dict(zip(names, _cells(row), strict=True)))
            return rows
    raise LookupError(f"{page}: expected a table with the columns {headings}, found none")


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]
