"""Times of bars to come: exchange calendars with their breaks, half days and holidays, and markets that never close."""

from pathlib import Path

import pandas as pd
import pytest

from kronos import InputError, KronosPredictor, load_predictor, load_tokenizer
from kronos.calendar import future_times

GOLDEN = Path(__file__).parent / "golden"
pytestmark = pytest.mark.filterwarnings("ignore:Series.values")  # exchange_calendars 4.13 with pandas 3.1


def texts(times: pd.DatetimeIndex) -> list[str]:
    return [time.strftime("%m-%d %H:%M") for time in times]


def bars_of(exchange_days: str, opens: list[str], step: str, count: int, shift: int = 0) -> pd.DatetimeIndex:
    """Times of `count` bars from each of `opens` on each day, moved by `shift` steps."""
    days = [pd.Timestamp(day) for day in exchange_days.split()]
    starts = [day + pd.Timedelta(f"{clock}:00") for day in days for clock in opens]
    return pd.DatetimeIndex([start + (i + shift) * pd.Timedelta(step) for start in starts for i in range(count)])


SHANGHAI_OPEN = bars_of("2024-06-18 2024-06-19", ["09:30", "13:00"], "5min", 24)
SHANGHAI_CLOSE = bars_of("2024-06-18 2024-06-19", ["09:30", "13:00"], "5min", 24, shift=1)
FRIDAY = bars_of("2024-06-06 2024-06-07", ["09:30", "13:00"], "60min", 2)  # Monday 10 June 2024 is the Dragon Boat festival
BEFORE_THE_FOURTH = bars_of("2024-07-01 2024-07-02", ["09:30"], "1h", 7)

FUTURES = [
    ("Shanghai, stamped at the open", SHANGHAI_OPEN[:-26], "XSHG", 3, ["06-19 11:20", "06-19 11:25", "06-19 13:00"]),
    ("Shanghai, stamped at the close", SHANGHAI_CLOSE[:-26], "XSHG", 3, ["06-19 11:25", "06-19 11:30", "06-19 13:05"]),
    ("overnight", SHANGHAI_CLOSE, "XSHG", 2, ["06-20 09:35", "06-20 09:40"]),
    ("over a weekend and a holiday", FRIDAY, "XSHG", 2, ["06-11 09:30", "06-11 10:30"]),
    (
        "a half day and a holiday in New York",
        BEFORE_THE_FOURTH,
        "XNYS",
        5,
        ["07-03 09:30", "07-03 10:30", "07-03 11:30", "07-03 12:30", "07-05 09:30"],
    ),
    ("daily bars", pd.bdate_range("2024-06-03", "2024-06-07"), "XSHG", 2, ["06-11 00:00", "06-12 00:00"]),
    (
        "daily bars stamped at the close",
        pd.bdate_range("2024-07-01", "2024-07-03") + pd.Timedelta("16h"),
        "XNYS",
        2,
        ["07-05 16:00", "07-08 16:00"],
    ),
    ("five days a week", pd.date_range("2024-07-04", "2024-07-05 20:00", freq="4h"), "24/5", 2, ["07-08 00:00", "07-08 04:00"]),
    ("crypto", pd.date_range("2024-12-30 20:00", periods=9, freq="4h"), None, 2, ["01-01 08:00", "01-01 12:00"]),
    ("crypto by name", pd.date_range("2024-12-31", periods=3, freq="D"), "24/7", 2, ["01-03 00:00", "01-04 00:00"]),
    ("weeks", pd.date_range("2024-01-01", periods=5, freq="7D"), None, 2, ["02-05 00:00", "02-12 00:00"]),
    ("months", pd.date_range("2024-01-01", periods=5, freq="MS"), None, 2, ["06-01 00:00", "07-01 00:00"]),
]


@pytest.mark.parametrize(("times", "calendar", "horizon", "expected"), [case[1:] for case in FUTURES], ids=[case[0] for case in FUTURES])
def test_bars_to_come_follow_the_market(times, calendar, horizon, expected):
    assert texts(future_times(times, horizon, calendar)) == expected


@pytest.mark.parametrize("zone", ["Asia/Shanghai", "UTC"])
def test_times_stay_in_their_zone(zone):
    given = SHANGHAI_CLOSE.tz_localize("Asia/Shanghai").tz_convert(zone)
    found = future_times(given, 60, "XSHG")
    plain = future_times(SHANGHAI_CLOSE, 60, "XSHG")
    assert str(found.tz) == zone
    assert found.tz_convert("Asia/Shanghai").tz_localize(None).equals(plain)


def test_summer_time_moves_sessions_in_utc_but_not_on_the_wall():
    times = bars_of("2024-03-07 2024-03-08", ["09:30"], "1h", 7)
    assert texts(future_times(times, 1, "XNYS")) == ["03-11 09:30"]
    utc = times.tz_localize("America/New_York").tz_convert("UTC")
    assert texts(future_times(utc, 1, "XNYS")) == ["03-11 13:30"] and texts(utc[:1]) == ["03-07 14:30"]


def test_a_short_outage_does_not_hide_the_rhythm():
    times = pd.date_range("2024-01-01", periods=300, freq="h").delete([100, 101])
    assert texts(future_times(times, 1, None)) == ["01-13 12:00"]


REFUSED = [
    (SHANGHAI_CLOSE, None, "this market closes; give y_timestamp, or calendar="),
    (pd.bdate_range("2024-06-03", "2024-06-28"), None, "this market closes"),
    (
        pd.date_range("2024-06-03", "2024-06-08", freq="h")[:-1].append(pd.date_range("2024-06-10", "2024-06-15", freq="h")[:-1]),
        None,
        "closes",
    ),
    (pd.date_range("2024-06-03", periods=1), None, "x_timestamp has 1 entries: the step between bars cannot be told"),
    (SHANGHAI_CLOSE[::-1], "XSHG", "entry 1: oldest first, each once"),
    (SHANGHAI_CLOSE, "XSGH", "there is no calendar 'XSGH': did you mean XSHG"),
    (SHANGHAI_CLOSE, "XNYS", r"do not lie on the 0 days 00:05:00 grid of XNYS: is it the right exchange"),
    (pd.date_range("2024-01-05", periods=9, freq="7D"), "XSHG", "bars are 7 days 00:00:00 apart"),
    (pd.date_range("1960-01-04", periods=9), "XSHG", "calendar XSHG does not reach back to 1959"),
]


@pytest.mark.parametrize(("times", "calendar", "words"), REFUSED)
def test_what_cannot_be_told_is_refused_with_the_fix(times, calendar, words):
    with pytest.raises(InputError, match=f"series 3: .*{words}"):
        future_times(times, 5, calendar, "series 3: ")


def test_more_than_the_calendar_knows_is_refused():
    with pytest.raises(InputError, match=r"calendar XSHG is known up to 20.*give y_timestamp"):
        future_times(pd.bdate_range("2024-06-03", "2024-06-07"), 5000, "XSHG")


def test_forecasts_make_their_own_times():
    forecaster = KronosPredictor(load_predictor(GOLDEN / "predictor"), load_tokenizer(GOLDEN / "tokenizer"), "cpu", max_context=64)
    bars = pd.read_csv(GOLDEN / "bars.csv").drop(columns="timestamps")[:30]
    crypto = pd.date_range("2024-01-01", periods=30, freq="h")
    frame = forecaster.predict(bars, crypto, None, 3, verbose=False, seed=0)
    assert texts(frame.index) == ["01-02 06:00", "01-02 07:00", "01-02 08:00"]
    assert frame.equals(forecaster.predict(bars, crypto, frame.index, 3, verbose=False, seed=0))
    for futures in (None, [None, None]):
        batch = forecaster.predict_batch(
            [bars] * 2, [SHANGHAI_CLOSE[-30:], SHANGHAI_CLOSE[:30]], futures, 2, calendar="XSHG", verbose=False
        )
        assert [texts(one.index) for one in batch] == [["06-20 09:35", "06-20 09:40"], ["06-18 13:35", "06-18 13:40"]]
