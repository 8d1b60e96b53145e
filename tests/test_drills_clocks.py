"""A short round of the drill on clocks."""

import pytest

from tests.drills import clocks, common
from tests.test_drills_malformed import drill


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    common.import_once()
    return clocks.kinds(tmp_path_factory.mktemp("clocks"))


@pytest.mark.parametrize(("kind", "rounds"), [("instants", 2), ("naive", 2), ("mixed", 3), ("exchanges", 2)])
def test_stamps_are_those_of_the_calendar_libraries(kinds, kind, rounds, tmp_path):
    for seed in range(rounds):
        (tmp_path / str(seed)).mkdir()
        kinds[kind](seed, tmp_path / str(seed))


@pytest.mark.slow
def test_a_clock_that_jumps_changes_no_bit():
    drill("clocks", "--kind", "jumps", "--rounds", "1")


def test_the_drill_knows_clock_changes():
    new_york = [str(change) for change in clocks._changes("America/New_York", 2024)]
    assert new_york == ["2024-03-10 07:00:00+00:00", "2024-11-03 06:00:00+00:00"]
    assert clocks._changes("UTC", 2024) == ()
