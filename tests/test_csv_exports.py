"""Files as terminals, brokers and data services export them."""

import io

import numpy as np
import pandas as pd
import pytest
from bars import make_frame
from test_csv_reading import load

from finetune.data import KRONOS_NAMES
from kronos.errors import InputError

CHINESE = {"timestamps": "日期", "open": "开盘", "high": "最高", "low": "最低", "close": "收盘", "volume": "成交量", "amount": "成交额"}


def exported(tmp_path, frame: pd.DataFrame, *, head: str = "", foot: str = "", encoding: str = "gbk", **options) -> str:
    path = tmp_path / "SH600977.txt"
    path.write_bytes(f"{head}{frame.to_csv(index=False, **options)}{foot}".encode(encoding))
    return str(path)


def minutes(n: int = 40) -> pd.DataFrame:
    """Bars from 08:35 on, so that hours have lost zeros to find again."""
    return make_frame(n, freq="5min", start="2024-01-02 08:35")


def split_times(frame: pd.DataFrame, date: str, clock: str) -> pd.DataFrame:
    times = frame["timestamps"].dt
    joined = frame.rename(columns=CHINESE).assign(日期=times.strftime(date))
    joined.insert(1, "时间", [int(text) if clock == "lost" else text for text in times.strftime("%H%M" if clock == "lost" else clock)])
    return joined


@pytest.mark.parametrize("date", ["%Y/%m/%d", "%Y-%m-%d", "%Y%m%d", "%Y年%m月%d日", "%Y-%m-%d 00:00:00"])
@pytest.mark.parametrize("clock", ["%H%M", "%H:%M", "%H:%M:%S", "%H%M%S", "%H%M%S000", "lost"])
def test_a_date_and_a_time_of_day_in_two_columns_are_joined(tmp_path, date, clock):
    frame = minutes()
    panel, _ = load(exported(tmp_path, split_times(frame, date, clock)))
    np.testing.assert_array_equal(panel.times, frame["timestamps"].to_numpy("datetime64[ns]").astype(np.int64))


def test_a_time_column_of_whole_moments_is_taken_beside_a_date_column(tmp_path):
    frame = minutes()
    for layout in ("%Y%m%d%H%M%S000", "%Y-%m-%d %H:%M:%S"):
        both = frame.assign(date=frame["timestamps"].dt.strftime("%Y-%m-%d"), time=frame["timestamps"].dt.strftime(layout))
        panel, _ = load(exported(tmp_path, both.drop(columns="timestamps")))
        np.testing.assert_array_equal(panel.times, frame["timestamps"].to_numpy("datetime64[ns]").astype(np.int64))


def test_a_time_of_day_that_cannot_be_read_is_named_with_its_date(tmp_path):
    both = split_times(minutes(), "%Y/%m/%d", "%H:%M")
    both.loc[3, "时间"] = "25:10"
    both.loc[5, "时间"] = "noon"
    with pytest.raises(InputError, match=r"row 5, column '日期 时间': '2024/01/02 25:10' is not a time \(also row 7\)"):
        load(exported(tmp_path, both))


def test_a_date_and_a_time_in_a_parquet_file_are_joined_too(tmp_path):
    frame = minutes()
    both = frame.assign(date=frame["timestamps"].dt.date, time=frame["timestamps"].dt.strftime("%H%M").astype(float))
    both.drop(columns="timestamps").to_parquet(tmp_path / "x.parquet")
    panel, _ = load(str(tmp_path / "x.parquet"))
    np.testing.assert_array_equal(panel.times, frame["timestamps"].to_numpy("datetime64[ns]").astype(np.int64))


def test_a_title_above_the_header_and_a_remark_below_the_bars_are_left_out_and_said(tmp_path):
    frame = minutes()
    expected, _ = load(exported(tmp_path, frame))
    titled = exported(tmp_path, split_times(frame, "%Y/%m/%d", "%H%M"), head="600977 中国电影\n", foot="#数据来源:通达信\n", sep="\t")
    panel, said = load(titled)
    assert panel.fingerprint == expected.fingerprint
    assert "the title '600977 中国电影' above the header is left out" in said
    assert "the last row, 43, '#数据来源:通达信', is no bar and is left out" in said
    panel, said = load(exported(tmp_path, frame, foot="数据来源：通达信,,,,,,\n"))
    assert panel.fingerprint == expected.fingerprint and "the last row, 42, '数据来源：通达信', is no bar" in said


@pytest.mark.parametrize("foot", ["2024-01-0", "600977", "合计,,,,,1,1\n", "数据来源:通达信\n2024-01-02 14:00,1,1,1,1,1,1\n"])
def test_a_last_line_that_may_be_a_bar_cut_short_is_still_an_error(tmp_path, foot):
    with pytest.raises(InputError, match="row 42"):
        load(exported(tmp_path, minutes(), foot=foot))


def test_a_unit_behind_a_name_in_brackets_is_overlooked_unless_the_bare_name_is_there(tmp_path):
    frame = minutes()
    expected, _ = load(exported(tmp_path, frame))
    names = {**CHINESE, "open": "开盘（元）", "volume": "成交量(手)", "amount": "成交额 [元]"}
    assert load(exported(tmp_path, frame.rename(columns=names)))[0].fingerprint == expected.fingerprint
    assert load(exported(tmp_path, frame.assign(**{"Close (adj)": 1.0})))[0].fingerprint == expected.fingerprint
    angled = frame.rename(columns=lambda name: f"<{name.upper()}>")
    assert load(exported(tmp_path, angled))[0].fingerprint == expected.fingerprint
    both = frame.drop(columns="volume").assign(**{"成交量(手)": 1.0, "成交量(股)": 100.0})
    with pytest.raises(InputError, match=r"'成交量\(手\)' and '成交量\(股\)' could both be volume"):
        load(exported(tmp_path, both))


def test_a_volume_under_another_name_is_proposed_and_not_set_to_zero_without_a_word(tmp_path):
    frame = minutes().drop(columns="amount").rename(columns={"volume": "Volume BTC"})
    panel, said = load(exported(tmp_path, frame))
    assert (panel.features[:, 4] == 0).all() and "no volume: set to 0 (is it 'Volume BTC'? then set data.columns.volume)" in said


@pytest.mark.parametrize("dash", ["-", "--", "—"])
def test_dashes_of_a_halted_day_count_as_empty(tmp_path, dash):
    frame = minutes().astype(object)
    frame.loc[7, ["open", "high", "low", "close", "volume", "amount"]] = dash
    path = exported(tmp_path, frame)
    with pytest.raises(InputError, match=r"row 9, column 'open': the cell is empty .*data.missing: drop or ffill"):
        load(path)
    panel, said = load(path, missing="drop")
    assert panel.n_rows == 39 and panel.breaks.tolist() == [7] and "dropped, value missing: 1 bars" in said


def test_thousands_separators_are_read_and_said_where_they_can_be_nothing_else(tmp_path):
    frame = minutes().assign(volume=lambda bars: bars["volume"].round(), amount=lambda bars: bars["amount"].round(2))
    expected, _ = load(exported(tmp_path, frame))
    grouped = frame.assign(volume=frame["volume"].map("{:,.0f}".format), amount=frame["amount"].map("{:,.2f}".format))
    panel, said = load(exported(tmp_path, grouped))
    assert panel.fingerprint == expected.fingerprint
    first = grouped["volume"][0]
    assert f"column 'volume': '{first}' is read as {first.replace(',', '')}" in said


def test_a_comma_that_may_be_a_decimal_point_is_an_error(tmp_path):
    prices = {name: minutes()[name].map("{:.3f}".format).str.replace(".", ",") for name in KRONOS_NAMES[:4]}
    with pytest.raises(InputError, match=r"row 2, column 'open': '100,000' is not a number .*with a decimal point and without separators"):
        load(exported(tmp_path, minutes().assign(**prices)))
    with pytest.raises(InputError, match=r"column 'volume': '12,5' is not a number"):
        load(exported(tmp_path, minutes().assign(volume="12,5")))


def test_archives_and_pages_are_named_as_what_they_are(tmp_path):
    packed = io.BytesIO()
    minutes().to_csv(packed, index=False, compression={"method": "zip", "archive_name": "x.csv"})
    contents = {
        packed.getvalue(): "is a zip archive; unpack it",
        b"PK\x03\x04 [Content_Types].xml xl/worksheets": "is an Excel workbook, not a CSV; save it as CSV",
        b"BZh91AY&SY": "is a bzip2 archive; unpack it",
        b'[{"open": 1}]': "is JSON or a web page",
        b"\n<!DOCTYPE html>\n<html>": "is JSON or a web page",
    }
    for content, message in contents.items():
        (tmp_path / "x.csv").write_bytes(content)
        with pytest.raises(InputError, match=message):
            load(str(tmp_path / "x.csv"))


def yfinance(*tickers: str) -> pd.DataFrame:
    """Bars as yfinance downloads them: times in the index, columns of two levels, prices in its own order."""
    prices = minutes().set_index(pd.DatetimeIndex(minutes()["timestamps"], name="Date"))[["close", "high", "low", "open", "volume"]]
    return pd.concat({ticker: prices.rename(columns=str.title) for ticker in tickers}, axis=1, names=["Ticker", "Price"]).swaplevel(axis=1)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_bars_of_yfinance_are_read_although_their_header_has_two_levels(tmp_path, kind):
    path = tmp_path / f"AAPL.{kind}"
    getattr(yfinance("AAPL"), f"to_{kind}")(path)
    panel, _ = load(str(path))
    np.testing.assert_array_equal(panel.times, minutes()["timestamps"].to_numpy("datetime64[ns]").astype(np.int64))
    np.testing.assert_array_equal(panel.features[:, :5], minutes()[list(KRONOS_NAMES[:5])].to_numpy(np.float32))


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_several_tickers_side_by_side_are_refused(tmp_path, kind):
    path = tmp_path / f"both.{kind}"
    getattr(yfinance("AAPL", "MSFT"), f"to_{kind}")(path)
    with pytest.raises(InputError, match=r"(2 tickers|several symbols) side by side .*per (ticker|symbol)"):
        load(str(path))


def test_symbols_that_are_whole_floats_lose_their_point(tmp_path):
    minutes().assign(symbol=600977.0).to_parquet(tmp_path / "x.parquet")
    assert load(str(tmp_path / "x.parquet"))[0].series[0].symbol == "600977"


def test_bars_missing_from_a_market_that_never_closes_are_counted_and_pauses_of_others_are_not(tmp_path):
    frame = make_frame(24 * 9)
    assert "missing" not in load(exported(tmp_path, frame))[1]
    said = load(exported(tmp_path, frame.drop(index=[*range(30, 40), 77])))[1]
    assert (
        "11 bars are missing in 1 series of a market that never closes (SH600977 11; the first: SH600977 from 2020-01-02 05:00:00" in said
    )
    weekdays = frame[frame["timestamps"].dt.day_of_week < 5]
    assert "missing" not in load(exported(tmp_path, weekdays))[1]
    assert "missing" not in load(exported(tmp_path, make_frame(40, freq="1D")))[1]
