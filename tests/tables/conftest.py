"""What the tests of the tables share."""

import pytest
from rich.console import Console


@pytest.fixture
def quiet(tmp_path):
    with (tmp_path / "printed").open("w") as file:
        yield Console(file=file)
