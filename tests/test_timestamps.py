import datetime
import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.data.timestamps import parse_times, read_times, stamp_features
from kronos.errors import InputError


def utc(text: str) -> int:
    return pd.Timestamp(text, tz="UTC").value


def clock(wall: int) -> str:
    return str(np.datetime64(int(wall), "ns").astype("datetime64[s]")).replace("T", " ")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2019-11-26 09:35:00", "2019-11-26 09:35"),
        ("2019-11-26T09:35", "2019-11-26 09:35"),
        ("2019/11/26 9:35", "2019-11-26 09:35"),
        ("2019.1.2", "2019-01-02"),
        ("2019-11-26", "2019-11-26"),
        ("20191126", "2019-11-26"),
        ("20191126 09:35:00", "2019-11-26 09:35"),
        ("20191126T0935", "2019-11-26 09:35"),
        ("201911260935", "2019-11-26 09:35"),
        ("20191126093501", "2019-11-26 09:35:01"),
        ("2019-11-26 09:35:00.250", "2019-11-26 09:35:00.25"),
        ("2019-11-26T09:35:00Z", "2019-11-26 09:35"),
        ("2019-11-26 09:35:00+00:00", "2019-11-26 09:35"),
        ("2019-11-26 09:35:00+0800", "2019-11-26 01:35"),
        ("2019-11-26 09:35 -05", "2019-11-26 14:35"),
        ("1574760900", "2019-11-26 09:35"),
        ("1574760900.5", "2019-11-26 09:35:00.5"),
        ("1574760900123", "2019-11-26 09:35:00.123"),
        ("1574760900123456", "2019-11-26 09:35:00.123456"),
        ("1574760900123456789", "2019-11-26 09:35:00.123456789"),
        ("  2019-11-26  ", "2019-11-26"),
    ],
)
def test_every_documented_way_to_write_a_time_is_read(text, expected):
    assert parse_times([text]).times[0] == utc(expected)


def test_integers_floats_dates_and_datetimes_are_read_as_their_text_would_be():
    day = utc("2019-11-26")
    moment = utc("2019-11-26 09:35")
    for column in (
        pd.Series([20191126]),
        pd.Series([datetime.date(2019, 11, 26)]),
        pd.Series(pd.to_datetime(["2019-11-26"])),
        np.array(["2019-11-26"], "datetime64[D]"),
        pd.DatetimeIndex(["2019-11-26"]),
        pd.Series(["2019-11-26"], dtype="category"),
        pd.Series([pd.Timestamp("2019-11-26"), "2019-11-26"], dtype=object).iloc[:1],
    ):
        assert parse_times(column).times.tolist() == [day]
    for column in (pd.Series([1574760900]), pd.Series([1574760900000]), pd.Series([1574760900.0]), np.array([1574760900 * 10**9])):
        assert parse_times(column).times.tolist() == [moment]


def test_mixed_offsets_give_hour_0_on_both_and_the_right_utc_times():
    result = parse_times(["2001-01-02 00:00:00-05:00", "2001-07-02 00:00:00-04:00"])
    assert result.times.tolist() == [utc("2001-01-02 05:00"), utc("2001-07-02 04:00")]
    assert stamp_features(result.wall)[:, 1].tolist() == [0, 0]
    assert stamp_features(result.wall)[:, 3].tolist() == [2, 2]
    assert result.zone == "-05:00/-04:00"


def test_naive_text_is_the_wall_clock_of_the_zone():
    result = parse_times(["2024-01-02 09:35", "2024-07-02 09:35"], timezone="America/New_York")
    assert result.times.tolist() == [utc("2024-01-02 14:35"), utc("2024-07-02 13:35")]
    assert [clock(wall) for wall in result.wall] == ["2024-01-02 09:35:00", "2024-07-02 09:35:00"]
    assert result.zone == "America/New_York" and not result.assumed
    bare = parse_times(["2024-01-02 09:35"])
    assert bare.zone == "UTC" and bare.assumed and bare.times[0] == bare.wall[0]


def test_times_with_a_zone_keep_their_wall_clock_unless_a_zone_is_asked_for():
    text = ["2024-01-02T01:35:00Z", "2024-07-02T01:35:00+00:00"]
    assert [clock(wall) for wall in parse_times(text).wall] == ["2024-01-02 01:35:00", "2024-07-02 01:35:00"]
    moved = parse_times(text, timezone="Asia/Shanghai")
    assert [clock(wall) for wall in moved.wall] == ["2024-01-02 09:35:00", "2024-07-02 09:35:00"]
    assert moved.times.tolist() == parse_times(text).times.tolist()
    epoch = parse_times([1704159300], timezone="Asia/Shanghai")
    assert clock(epoch.wall[0]) == "2024-01-02 09:35:00" and epoch.times[0] == utc("2024-01-02 01:35")


def test_a_datetime_column_with_a_zone_keeps_it():
    column = pd.Series(pd.to_datetime(["2024-01-02 09:35", "2024-07-02 09:35"])).dt.tz_localize("America/New_York")
    result = parse_times(column)
    assert result.times.tolist() == [utc("2024-01-02 14:35"), utc("2024-07-02 13:35")]
    assert stamp_features(result.wall)[:, 1].tolist() == [9, 9] and result.zone == "America/New_York"


@pytest.mark.parametrize("text", ["2021-11-07 01:30:00", "2021-03-14 02:30:00"])
def test_a_local_time_that_a_clock_change_skips_or_repeats_is_not_guessed(text):
    with pytest.raises(InputError, match=rf"bars.csv, row 3: '{text}' falls into a clock change of America/New_York.*offset"):
        parse_times(["2021-03-01 00:00:00", text], timezone="America/New_York", source="bars.csv", lines=[2, 3])


@pytest.mark.parametrize(
    "text",
    ["26.11.2019", "11/26/2019", "2019-13-01", "2019-02-29", "2019-11-26 24:00", "2019-11-26 09:60", "9:35", "soon", "2019", "12345678",
     "2019-11-26 9:35 PM", "2019-11-26T00:00+14:30", "2019-11-26T00:00-13:00", "1.57e9", "-5", "99999999999999999999", "1899-01-01", "0"],
)  # fmt: skip
def test_what_is_not_a_time_is_named_with_file_row_value_and_fix(text):
    with pytest.raises(InputError) as error:
        parse_times(["2019-11-26", text, "2019-11-27"], source="bars.csv", lines=[2, 3, 4])
    assert str(error.value).startswith(f"bars.csv, row 3: '{text}' is not a time") and "2019-11-26 09:35:00" in str(error.value)


def test_numbers_of_rows_are_not_taken_for_epoch_seconds():
    with pytest.raises(InputError, match=r"row 1: 0 is not a time \(also row 2, 3\)"):
        parse_times([0, 1, 2])


@pytest.mark.parametrize("empty", ["", None, "NaN", "NaT", "null", " "])
def test_an_empty_time_is_missing_and_not_unreadable(empty):
    result = read_times(pd.Series(["2019-11-26", empty], dtype=object))
    assert result.missing.tolist() == [False, True] and not result.faults
    with pytest.raises(InputError, match="row 2: the time is empty"):
        parse_times(pd.Series(["2019-11-26", empty], dtype=object))


def test_a_column_with_and_without_zones_is_refused_at_the_odd_row():
    with pytest.raises(InputError, match="row 2: '2019-11-27' has no zone, unlike most rows"):
        parse_times(["2019-11-26 00:00+08:00", "2019-11-27", "2019-11-28 00:00+08:00"])


def test_a_mistyped_zone_gets_the_nearest_name():
    with pytest.raises(InputError, match=r"data.timezone: 'Asia/Shangai' .* did you mean Asia/Shanghai"):
        parse_times(["2019-11-26"], timezone="Asia/Shangai")


def test_an_empty_column_is_no_times():
    assert len(read_times([]).times) == 0


MOMENTS = st.datetimes(datetime.datetime(1900, 1, 1), datetime.datetime(2199, 12, 31))


LAYOUTS = st.sampled_from(["%Y-%m-%d %H:%M:%S", "%Y/%m/%dT%H:%M:%S.%f", "%Y%m%d%H%M%S", "%Y%m%d %H%M%S"])


@given(st.lists(st.tuples(MOMENTS, LAYOUTS), max_size=20))
@settings(max_examples=50, deadline=None)
def test_any_mixture_of_layouts_is_read_as_pandas_reads_each_and_stamped_alike(moments):
    times = [moment if "%f" in layout else moment.replace(microsecond=0) for moment, layout in moments]
    result = parse_times([moment.strftime(layout) for (moment, layout) in moments])
    assert result.times.tolist() == [utc(str(moment)) for moment in times]
    expected = [[moment.minute, moment.hour, moment.weekday(), moment.day, moment.month] for moment in times]
    assert stamp_features(result.wall).tolist() == expected


@given(st.lists(st.text(max_size=30), max_size=5), st.sampled_from(["", "Asia/Shanghai", "America/New_York"]))
@settings(max_examples=100, deadline=None)
def test_any_text_is_read_or_reported_and_nothing_else_happens(cells, zone):
    result = read_times(pd.Series(cells, dtype=object), timezone=zone)
    assert len(result.times) == len(cells)


def test_a_hundred_thousand_rows_take_a_fraction_of_a_second():
    text = pd.Series(pd.date_range("2000-01-01", periods=100_000, freq="5min").strftime("%Y/%m/%d %H:%M:%S"))
    begin = time.process_time()
    parse_times(text, timezone="Asia/Shanghai")
    assert time.process_time() - begin < 1  # 0.05 s when alone; row by row would take several seconds
