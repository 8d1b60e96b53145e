"""A short round of the ranks drill."""

import pytest
from test_drills_kill import drill


@pytest.mark.slow
def test_when_one_of_two_ranks_dies_or_hangs_the_other_ends_in_time_and_training_goes_on_to_the_same_bits():
    drill("ranks", "--rounds", "3", "--seed", "0")
