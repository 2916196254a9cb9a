"""The figures of a run, as a table at its end."""

from collections.abc import Callable

import pytest

FIGURES = pytest.StashKey[list[tuple[str, str, float]]]()


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Callable[[str, float], None]:
    """Notes what a run was compared with, and the largest difference."""
    run = request.node.nodeid.rpartition("/")[2]
    figures = request.config.stash.setdefault(FIGURES, [])
    return lambda against, difference: figures.append((run, against, difference))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    terminalreporter.section("largest differences")
    for run, against, difference in config.stash.get(FIGURES, []):
        terminalreporter.write_line(f"{difference:8.1e}  {run}  |  {against}")
