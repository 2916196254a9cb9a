"""The figures of a run, as a table at its end."""

from collections.abc import Callable, Iterator

import pytest

FIGURES = pytest.StashKey[list[tuple[str, str, float]]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[FIGURES] = []


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Iterator[Callable[[str, float], None]]:
    """Notes what a run was compared with, and the largest difference."""
    run = request.node.nodeid.rpartition("/")[2]
    return lambda against, difference: request.config.stash[FIGURES].append((run, against, difference))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    terminalreporter.section("largest differences")
    for run, against, difference in config.stash[FIGURES]:
        terminalreporter.write_line(f"{difference:8.1e}  {run}  |  {against}")
