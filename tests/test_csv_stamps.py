import numpy as np
import pandas as pd
import pytest

from finetune.data.stamps import choose_stamp, period_name, period_of
from kronos.errors import InputError


def days(spans: list[tuple[str, str]], freq: str, n: int = 8) -> np.ndarray:
    """Wall clock of `n` working days with bars at every `freq` of each span, both ends included."""
    clocks = [pd.date_range(f"2024-03-04 {first}", f"2024-03-04 {last}", freq=freq) for first, last in spans]
    one = np.concatenate([span.to_numpy("datetime64[ns]") for span in clocks])
    dates = pd.bdate_range("2024-03-04", periods=n).to_numpy("datetime64[ns]")
    return np.concatenate([one - one[0].astype("datetime64[D]") + date for date in dates]).astype(np.int64)


CASES = {
    "A-share 5min, close": ([("09:35", "11:30"), ("13:05", "15:00")], "5min", "close"),
    "A-share 5min, open": ([("09:30", "11:25"), ("13:00", "14:55")], "5min", "open"),
    "A-share 1min, close": ([("09:31", "11:30"), ("13:01", "15:00")], "1min", "close"),
    "A-share 60min, close": ([("10:30", "11:30"), ("14:00", "15:00")], "60min", "close"),
    "A-share 60min, open": ([("09:30", "10:30"), ("13:00", "14:00")], "60min", "open"),
    "Hong Kong 5min, close": ([("09:35", "12:00"), ("13:05", "16:00")], "5min", "close"),
    "New York 5min, open": ([("09:30", "15:55")], "5min", "open"),
    "New York 60min, open, last bar cut": ([("09:30", "15:30")], "60min", "open"),
    "Mumbai 15min, open": ([("09:15", "15:15")], "15min", "open"),
    "A-share 5min in UTC, close": ([("01:35", "03:30"), ("05:05", "07:00")], "5min", "close"),
    "night session 15min, close": ([("09:15", "10:15"), ("10:45", "11:30"), ("21:15", "23:00")], "15min", "close"),
}


@pytest.mark.parametrize("name", CASES)
def test_session_edges_tell_open_from_close(name):
    spans, freq, expected = CASES[name]
    guess = choose_stamp("auto", [days(spans, freq)])
    assert guess.stamp == expected and guess.sure, guess.reason


def test_the_reason_names_the_edges_and_the_exchange():
    guess = choose_stamp("auto", [days([("09:35", "11:30"), ("13:05", "15:00")], "5min")])
    assert guess.reason == "bars run 09:35 to 15:00, the session of Shanghai and Shenzhen closes at 15:00"


def test_cut_first_and_last_days_do_not_mislead():
    wall = days([("09:35", "11:30"), ("13:05", "15:00")], "5min")
    assert choose_stamp("auto", [wall[21:-30]]).stamp == "close"
    two_days = days([("10:30", "11:30"), ("14:00", "15:00")], "60min", n=2)  # hourly bars: nothing but the session tells
    assert choose_stamp("auto", [two_days[1:-1]]).stamp == "close"


@pytest.mark.parametrize("freq", ["1min", "1h", "4h", "1D", "7D"])
def test_bars_around_the_clock_and_daily_bars_are_open_stamped_by_convention(freq):
    wall = pd.date_range("2024-01-01", periods=2000, freq=freq).to_numpy("datetime64[ns]").astype(np.int64)
    guess = choose_stamp("auto", [wall])
    assert guess.stamp == "open" and not guess.sure and "convention" in guess.reason


def test_times_that_end_a_second_before_the_next_bar_are_close_stamped():
    wall = pd.date_range("2024-01-01 00:59:59", periods=500, freq="1h").to_numpy("datetime64[ns]").astype(np.int64)
    assert choose_stamp("auto", [wall]).stamp == "close"


def test_what_cannot_be_told_is_open_and_says_how_to_set_it():
    wall = np.sort(np.random.default_rng(0).choice(200_000, 3000, replace=False)).astype(np.int64) * 7 * 60 * 10**9
    guess = choose_stamp("auto", [wall])
    assert guess.stamp == "open" and not guess.sure


def test_the_setting_wins_and_a_wrong_one_is_refused():
    wall = days([("09:35", "11:30"), ("13:05", "15:00")], "5min")
    assert choose_stamp("open", [wall]).stamp == "open"
    with pytest.raises(InputError, match=r"data\.stamp: 'end' is not one of auto, open, close"):
        choose_stamp("end", [wall])


def test_series_that_contradict_each_other_are_an_error_that_names_both_reasons():
    opening, closing = days([("09:30", "15:55")], "5min"), days([("09:35", "11:30"), ("13:05", "15:00")], "5min")
    with pytest.raises(InputError, match=r"at their open \(bars run 09:30 to 15:55.*at their close \(bars run 09:35 to 15:00"):
        choose_stamp("auto", [opening, closing])
    assert choose_stamp("auto", [days([("00:00", "00:00")], "1D"), closing]).stamp == "close"  # a convention yields to what is seen


NAMES = {"15s": "15s", "1min": "1min", "5min": "5min", "60min": "1h", "4h": "4h", "1D": "1d", "7D": "1w", "MS": "1mo"}


@pytest.mark.parametrize(("freq", "name"), NAMES.items())
def test_the_distance_between_bars_gets_its_usual_name(freq, name):
    times = pd.date_range("2024-01-01", periods=50, freq=freq).to_numpy("datetime64[ns]").astype(np.int64)
    assert period_name(period_of(times)) == name


def test_gaps_do_not_change_the_period_and_one_bar_has_none():
    assert period_name(period_of(days([("09:35", "11:30"), ("13:05", "15:00")], "5min"))) == "5min"
    assert period_name(period_of(np.array([5]))) == ""
