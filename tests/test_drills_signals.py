"""A short round of the signals drill, and what it taught: nohup is respected."""

import os
import signal

import pytest
from test_drills_kill import drill

from finetune.engine.signals import StopRequest


@pytest.mark.slow
def test_signals_twice_in_a_row_and_a_closed_terminal_save_once_and_leave_no_half_file():
    drill("signals", "--rounds", "4", "--seed", "0")


def test_a_hangup_that_was_ignored_from_the_start_stays_ignored_and_other_signals_are_heard():
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.requested
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.requested and stop.name == "SIGTERM"
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, former)
