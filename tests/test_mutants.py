"""The faults of mutants.py fit the sources: running them takes long, and is not for every day."""

import mutants
import pytest


@pytest.mark.parametrize("mutant", mutants.MUTANTS, ids=lambda mutant: mutant.name)
def test_has_one_place(mutant):
    assert (mutants.ROOT / mutant.file).read_text().count(mutant.old) == 1
    assert mutant.old != mutant.new and mutant.check in mutants.CHECKS
    files = [test.split("::")[0] for test in mutant.tests if mutant.check != "proof"]
    assert all((mutants.ROOT / file).is_file() for file in files)


def test_names_are_names():
    assert len({mutant.name for mutant in mutants.MUTANTS}) == len(mutants.MUTANTS)
