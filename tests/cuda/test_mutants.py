"""The tests of the kernels see every mutant that changes anything: tests of the tests.

A few by default, all with BATCHFORMER_MUTANTS=all (4 minutes on two cores).
"""

import os

import pytest
from harness import emulator_missing
from mutants import CHANGES_NOTHING, FILES, RULES, changes_nothing, mutants, outcomes

pytestmark = pytest.mark.skipif(emulator_missing() is not None, reason=str(emulator_missing()))

EVERY_ONE = os.environ.get("BATCHFORMER_MUTANTS") == "all"
ALL = [mutant for mutant in mutants() if not changes_nothing(mutant)]
CHOSEN = [mutant.name for mutant in ALL[:: 1 if EVERY_ONE else 23]]
HARMLESS = [mutant.name for mutant in mutants() if changes_nothing(mutant)] if EVERY_ONE else []


@pytest.fixture(scope="module")
def seen() -> dict[str, str | None]:
    return dict(outcomes([*CHOSEN, *HARMLESS]))


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", CHOSEN)
def test_a_mutant_is_seen(name, seen):
    assert seen[name], "no test of the kernel minds this"


@pytest.mark.skipif(not EVERY_ONE, reason="BATCHFORMER_MUTANTS=all asks for it")
def test_what_is_said_to_change_nothing_is_not_seen(seen):
    assert {name: seen[name] for name in HARMLESS} == dict.fromkeys(HARMLESS)


def test_every_rule_and_every_file_has_its_mutants():
    assert {mutant.rule for mutant in ALL} == set(RULES)
    assert {mutant.file for mutant in ALL} == set(FILES)


def test_what_changes_nothing_is_still_there():
    everything = list(mutants())
    for file, rule, code, nth in CHANGES_NOTHING:
        assert any(
            (each.file, each.rule) == (file, rule) and each.code.startswith(code) and nth in (None, each.nth)
            for each in everything
        ), code
