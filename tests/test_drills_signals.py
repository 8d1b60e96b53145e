"""A short round of the signals drill, and what it taught: nohup is respected."""

import os
import signal
from collections import Counter

import pytest
from test_drills_kill import drill

from finetune.engine.errors import Interrupted
from finetune.engine.signals import StopRequest
from tests.drills.common import Ended, Failed
from tests.drills.signals import _check_heard, _check_pictured


@pytest.mark.slow
def test_signals_twice_in_a_row_and_a_closed_terminal_save_once_and_leave_no_half_file():
    drill("signals", "--rounds", "5", "--seed", "0")


def test_signals_that_are_ignored_after_training_fail_the_drill():
    codes = Counter()
    with pytest.raises(Failed, match=r"the signal was not heard: it went on for 1\.4 s"):
        _check_pictured(Ended(0, 9.0, ""), 1.4, False, codes)
    for waited_s, late in ((0.2, False), (1.4, True)):  # it came as the command ended
        _check_pictured(Ended(0, 9.0, ""), waited_s, late, codes)
    with pytest.raises(Failed, match="none of 3 rounds ended with 75"):
        _check_heard(codes)
    _check_pictured(Ended(75, 9.0, "stopped by SIGINT during the evaluation; training is done and saved"), 0.1, False, codes)
    _check_heard(codes)
    _check_heard(Counter({0: 1}))


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


def test_after_training_a_signal_ends_what_can_be_made_again_where_it_stands_and_only_there():
    with StopRequest() as stop:
        with pytest.raises(Interrupted, match=r"^stopped by SIGTERM while it was drawn$"), stop.at_once("while it was drawn"):
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                raise AssertionError("it went on")
            except Exception:
                pytest.fail("taken for a failure, which libraries swallow")
            finally:
                os.kill(os.getpid(), signal.SIGTERM)  # the second one lets it clean up
                cleaned = True
        assert cleaned and stop.requested
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested, "outside it is a request"
        with pytest.raises(Interrupted, match="SIGINT"), stop.at_once("later"):
            pytest.fail("what was asked for before is heard")
