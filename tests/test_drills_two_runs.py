"""A short round of the drill of two runs on one folder."""

import pytest

from tests.test_drills_malformed import drill


@pytest.mark.slow
def test_one_of_two_runs_trains_and_the_others_say_why_not():
    drill("two_runs", "--rounds", "5", "--seed", "5")
