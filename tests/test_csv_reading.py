import gzip
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from bars import make_frame

from finetune.data import KRONOS_NAMES, Panel, build_panel, describe, load_panel
from finetune.data.columns import ALIASES
from finetune.data.sources import find_sources
from kronos.errors import InputError, MissingFileError


def section(data_path, **changes) -> SimpleNamespace:
    windows = {"lookback_window": 10, "predict_window": 4}
    rules = {"timezone": "", "stamp": "auto", "missing": "error", "max_ffill": 5, "drop_suspended": False}
    return SimpleNamespace(**{"data_path": data_path, "symbol_column": "", "columns": {}, **rules, **windows, **changes})


def load(data_path, **changes) -> tuple[Panel, str]:
    """(panel, everything that was said)."""
    said = []
    panel = load_panel(section(data_path, **changes), say=said.append)
    return panel, "\n".join(said)


def write(path, frame: pd.DataFrame, **options) -> str:
    frame.to_csv(path, index=False, **options)
    return str(path)


def features(frame: pd.DataFrame) -> np.ndarray:
    return frame[list(KRONOS_NAMES)].to_numpy(np.float32)


def two_symbols() -> pd.DataFrame:
    return pd.concat([make_frame(30, 1).assign(symbol="BBB"), make_frame(40, 2).assign(symbol="AAA")])


def test_a_csv_becomes_a_panel_with_its_values_times_and_stamps(tmp_path):
    frame = make_frame(100, freq="5min", start="2024-03-01 09:35")
    panel, said = load(write(tmp_path / "BTC.csv", frame))
    assert panel.series[0].symbol == "BTC" and panel.series[0].period == "5min"
    np.testing.assert_array_equal(panel.features, features(frame))
    np.testing.assert_array_equal(panel.times, frame["timestamps"].to_numpy("datetime64[ns]").astype(np.int64))
    assert panel.stamps[0].tolist() == [35, 9, 4, 1, 3]  # a Friday
    assert "1 series, 100 rows of 5min, 2024-03-01 09:35 to 2024-03-01 17:50 UTC" in said
    assert "carry no zone and count as UTC" in said


def test_columns_in_any_order_and_case_and_further_columns_make_no_difference(tmp_path):
    frame = make_frame(50)
    other = frame[["amount", "close", "open", "volume", "timestamps", "low", "high"]].assign(comment="x")
    one, _ = load(write(tmp_path / "x.csv", frame))
    other, _ = load(write(tmp_path / "x.csv", other.rename(columns=str.upper)))
    assert one.fingerprint == other.fingerprint


def test_every_alias_is_read_as_its_column(tmp_path):
    frame = make_frame(20)
    expected = load(write(tmp_path / "x.csv", frame))[0].fingerprint
    for key, aliases in ALIASES.items():
        for alias in aliases:
            assert load(write(tmp_path / "x.csv", frame.rename(columns={key: alias})))[0].fingerprint == expected, alias


def test_a_mapping_names_columns_that_no_alias_knows(tmp_path):
    frame = make_frame(20)
    expected = load(write(tmp_path / "x.csv", frame))[0].fingerprint
    odd = write(tmp_path / "x.csv", frame.rename(columns={"close": "Settle", "timestamps": "when"}).assign(close=-1.0))
    assert load(odd, columns={"close": "settle", "timestamps": "when"})[0].fingerprint == expected


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"clsoe": "x"}, r"data.columns: 'clsoe' is not one of .*; did you mean 'close'"),
        ({"close": "Setle"}, r"x.csv: found columns .*none of them 'Setle' as data.columns.close says; did you mean 'settle'"),
        ({"close": "open"}, r"x.csv: found .*one of them is used twice"),
    ],
)
def test_a_wrong_mapping_is_named(tmp_path, mapping, message):
    path = write(tmp_path / "x.csv", make_frame(20).assign(settle=1.0))
    with pytest.raises(InputError, match=message):
        load(path, columns=mapping)


def test_a_missing_column_is_named_with_those_found(tmp_path):
    path = write(tmp_path / "x.csv", make_frame(20).drop(columns=["high", "low"]))
    with pytest.raises(InputError, match=r"x.csv: found columns 'timestamps', 'open', 'close', .* but none for high, low; .*data.columns"):
        load(path)


def test_a_choice_of_columns_that_cannot_be_made_is_not_made(tmp_path):
    frame = make_frame(20).rename(columns={"timestamps": "date"}).assign(time="09:35")
    with pytest.raises(InputError, match="'date' and 'time' could both be timestamps"):
        load(write(tmp_path / "x.csv", frame))
    text = frame.drop(columns="time").to_csv(index=False).replace("low", "high", 1)
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(InputError, match="column 'high' is there 2 times"):
        load(str(tmp_path / "x.csv"))


def test_missing_volume_is_zero_and_missing_amount_is_volume_times_the_mean_price(tmp_path):
    frame = make_frame(20)
    panel, said = load(write(tmp_path / "x.csv", frame.drop(columns=["volume", "amount"])))
    assert (panel.features[:, 4:] == 0).all() and "no volume: set to 0; no amount: set to volume x mean" in said
    panel, said = load(write(tmp_path / "x.csv", frame.drop(columns="amount")))
    mean = frame[["open", "high", "low", "close"]].mean(axis=1)
    np.testing.assert_allclose(panel.features[:, 5], frame["volume"] * mean, rtol=1e-6)
    panel, said = load(write(tmp_path / "x.csv", frame.assign(volume=0, amount=np.nan)))
    assert (panel.features[:, 4:] == 0).all() and "volume is 0" not in said  # no volume at all is not a suspension


def test_symbols_of_one_file_stay_apart_however_its_rows_are_mixed(tmp_path):
    frame = two_symbols()
    mixed = frame.sample(frac=1, random_state=0)
    panel, said = load(write(tmp_path / "x.csv", mixed))
    assert [info.symbol for info in panel.series] == ["AAA", "BBB"] and panel.offsets.tolist() == [0, 40, 70]
    np.testing.assert_array_equal(panel.features[:40], features(frame[frame.symbol == "AAA"]))
    np.testing.assert_array_equal(panel.features[40:], features(frame[frame.symbol == "BBB"]))
    assert "rows were earlier than the row above" in said and "sorted by time" in said
    assert load(write(tmp_path / "x.csv", frame))[0].fingerprint == panel.fingerprint


def test_unsorted_rows_of_one_symbol_are_sorted_and_said(tmp_path):
    frame = make_frame(30)
    panel, said = load(write(tmp_path / "x.csv", frame.iloc[::-1]))
    np.testing.assert_array_equal(panel.features, features(frame))
    assert "x.csv: 29 rows were earlier than the row above (first: row 3); sorted by time" in said
    assert "sorted" not in load(write(tmp_path / "x.csv", frame))[1]


def test_rows_ordered_by_time_with_symbols_interleaved_count_as_sorted(tmp_path):
    panel, said = load(write(tmp_path / "x.csv", two_symbols().sort_values(["timestamps", "symbol"])))
    assert panel.n_series == 2 and "sorted" not in said


@pytest.mark.parametrize("name", ["ticker", "Code", "股票代码", "my symbol"])
def test_a_symbol_column_is_found_or_named(tmp_path, name):
    path = write(tmp_path / "x.csv", two_symbols().rename(columns={"symbol": name}).assign(**{name: "000001"}).head(30))
    panel, _ = load(path, symbol_column=name if name == "my symbol" else "")
    assert panel.series[0].symbol == "000001"  # a code is text: its zeros stay


def test_a_symbol_named_na_is_a_symbol_and_an_empty_one_is_an_error(tmp_path):
    assert load(write(tmp_path / "x.csv", make_frame(20).assign(symbol="NA")))[0].series[0].symbol == "NA"
    frame = make_frame(20).assign(symbol=["A"] * 9 + [""] + ["A"] * 10)
    with pytest.raises(InputError, match=r"row 11, column 'symbol': the symbol is empty"):
        load(write(tmp_path / "x.csv", frame))


@pytest.mark.parametrize("order", [["a.csv", "b.csv"], ["b.csv", "a.csv"]])
def test_a_list_a_glob_and_a_folder_give_one_series_per_file(tmp_path, order):
    for seed, name in enumerate(["a", "b"]):
        write(tmp_path / f"{name}.csv", make_frame(30 + seed, seed))
    (tmp_path / "readme.txt").write_text("not bars")
    (tmp_path / ".hidden.csv").write_text("not bars")
    paths = [str(tmp_path / name) for name in order]
    assert [info.symbol for info in load(paths)[0].series] == [name[0] for name in order]
    for path in (str(tmp_path), str(tmp_path / "?.csv"), [str(tmp_path / "*.csv"), *paths]):  # named twice, read once
        panel, _ = load(path)
        assert [info.symbol for info in panel.series] == ["a", "b"] and panel.offsets.tolist() == [0, 30, 61]


def test_a_file_reached_by_two_ways_is_read_once(tmp_path, monkeypatch):
    write(tmp_path / "a.csv", make_frame(30))
    (tmp_path / "link.csv").symlink_to(tmp_path / "a.csv")
    monkeypatch.chdir(tmp_path)
    assert load(["a.csv", str(tmp_path / "a.csv"), "link.csv"])[0].n_rows == 30


def test_files_of_one_name_are_told_apart_by_their_folder(tmp_path):
    for folder in ("spot", "perp"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "BTC.csv", make_frame(30))
    panel, _ = load([str(tmp_path / "spot" / "BTC.csv"), str(tmp_path / "perp" / "BTC.csv")])
    assert [info.symbol for info in panel.series] == ["spot/BTC", "perp/BTC"]


def test_two_files_that_would_be_one_series_are_refused(tmp_path):
    write(tmp_path / "BTC.csv", make_frame(30))
    make_frame(30).to_parquet(tmp_path / "BTC.parquet")
    with pytest.raises(InputError, match=r"BTC.csv and .*BTC.parquet would both be series 'BTC'"):
        load(str(tmp_path))


def test_one_symbol_in_two_files_is_refused_unless_the_periods_differ(tmp_path):
    hourly, daily = make_frame(30).assign(symbol="BTC"), make_frame(30, freq="1D").assign(symbol="BTC")
    paths = [write(tmp_path / "a.csv", hourly), write(tmp_path / "b.csv", daily)]
    assert [info.period for info in load(paths)[0].series] == ["1h", "1d"]
    write(tmp_path / "b.csv", hourly)
    with pytest.raises(InputError, match=r"a.csv and .*b.csv: both hold 1h bars of 'BTC'; join them"):
        load(paths)


def test_gzip_and_parquet_hold_the_same_panel_as_the_csv(tmp_path):
    frame = make_frame(50).assign(symbol="X")
    expected = load(write(tmp_path / "x.csv", frame))[0].fingerprint
    assert load(write(tmp_path / "x.csv.gz", frame))[0].fingerprint == expected
    frame.to_parquet(tmp_path / "x.parquet", index=False)
    assert load(str(tmp_path / "x.parquet"))[0].fingerprint == expected
    frame.set_index("timestamps").to_parquet(tmp_path / "x.parquet")
    assert load(str(tmp_path / "x.parquet"))[0].fingerprint == expected


@pytest.mark.parametrize(("encoding", "said_so"), [("utf-8", ""), ("utf-8-sig", ""), ("gbk", "read as GBK"), ("utf-16", "read as UTF-16")])
def test_usual_encodings_are_read_and_unusual_ones_said(tmp_path, encoding, said_so):
    frame = make_frame(30).rename(columns={"timestamps": "日期", "close": "收盘", "amount": "成交额"}).assign(代码="平安银行")
    panel, said = load(write(tmp_path / "x.csv", frame, encoding=encoding))
    assert panel.series[0].symbol == "平安银行" and said_so in said and ("read as" in said) == bool(said_so)


@pytest.mark.parametrize("separator", [";", "\t", "|"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_other_separators_and_line_ends_are_found(tmp_path, separator, line_end):
    frame = make_frame(30)
    expected = load(write(tmp_path / "x.csv", frame))[0].fingerprint
    assert load(write(tmp_path / "x.csv", frame, sep=separator, lineterminator=line_end))[0].fingerprint == expected


def test_empty_lines_do_not_shift_the_row_numbers_of_errors(tmp_path):
    lines = make_frame(30).to_csv(index=False).splitlines()
    lines[5] = lines[5].replace("2020", "oops", 1)
    (tmp_path / "x.csv").write_text("\n".join(["", *lines[:2], "", "", *lines[2:], "", ""]))
    with pytest.raises(InputError, match=r"x.csv, row 9, column 'timestamps': 'oops-01-01 04:00:00' is not a time"):
        load(str(tmp_path / "x.csv"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b" \n\n", "the file is empty"),
        (b"\xfe\xff", "the file is empty"),
        (b"timestamps,open,high,low,close\n", "holds a header but no bars"),
        (b"timestamps,open,high,low,close\n\n\n", "holds a header but no bars"),
        (b"hello world\n1\n", "holds one field; separate columns by commas, semicolons or tabs"),
        (b"2020-01-01,1,1,1,1\n2020-01-02,1,1,1,1\n", "has no names; write a header"),
        (b"timestamps,open\0\n", r"is not text \(byte 15 is zero\)"),
        (b"timestamps,open\xff\xfe\xfd\n", "neither UTF-8 nor GBK"),
        (b"PAR1 and then nothing of parquet", "the parquet file is damaged"),
        (gzip.compress(b"timestamps,open,high,low,close\n" * 99, mtime=0)[:-9], "gzip archive is damaged or cut short"),
        (b"\x1f\x8b but not gzip", "gzip archive is damaged"),
    ],
)
def test_what_is_not_a_table_of_bars_is_said_plainly(tmp_path, content, message):
    (tmp_path / "x.csv").write_bytes(content)
    with pytest.raises(InputError, match=f"x.csv: .*{message}"):
        load(str(tmp_path / "x.csv"))


def test_a_truncated_last_line_is_named_with_its_row(tmp_path):
    text = make_frame(20).to_csv(index=False)
    (tmp_path / "x.csv").write_text(text[: text.rindex(",") - 25])
    with pytest.raises(InputError, match=r"x.csv, row 21: has \d fields where the header names 7: '2020-01-01 19:00:00"):
        load(str(tmp_path / "x.csv"))


@pytest.mark.parametrize("path", ["nowhere.csv", "nowhere/*.csv"])
def test_a_missing_file_is_named(tmp_path, path):
    with pytest.raises(MissingFileError, match="nowhere"):
        load(str(tmp_path / path))


@pytest.mark.parametrize("path", ["", [], [""], None, 7])
def test_an_empty_data_path_is_refused(path):
    with pytest.raises(InputError, match=r"data.data_path: .* names no file"):
        load(path)


def test_a_folder_without_bars_is_named(tmp_path):
    with pytest.raises(InputError, match=r"the folder holds no \.csv, \.csv\.gz, \.parquet file"):
        load(str(tmp_path))


def test_a_folder_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    def refused(_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(tmp_path), "iterdir", refused)
    with pytest.raises(MissingFileError, match=r"the folder cannot be read \(Permission denied\); make it readable"):
        find_sources(str(tmp_path))


def test_errors_of_several_files_come_together(tmp_path):
    for name in "abcdefg":
        write(tmp_path / f"{name}.csv", make_frame(20).assign(open=-1.0) if name != "d" else make_frame(20))
    with pytest.raises(InputError) as error:
        load(str(tmp_path))
    text = str(error.value)
    assert text.startswith("6 of 7 files cannot be used:") and text.endswith("and 1 more files")
    assert text.count("price -1.0 is not above 0") == 5


def test_short_series_are_left_out_counted_and_named(tmp_path):
    for name, rows in (("long", 40), ("enough", 15), ("short", 14), ("tiny", 3)):
        write(tmp_path / f"{name}.csv", make_frame(rows))
    panel, said = load(str(tmp_path))
    assert [info.symbol for info in panel.series] == ["enough", "long"]
    assert "left out, shorter than lookback_window + predict_window + 1 = 15 rows: 2 series (short 14, tiny 3)" in said
    with pytest.raises(InputError, match=r"no series has the 41 rows .*the longest has 40: long 40.*reduce data.lookback_window"):
        load(str(tmp_path), lookback_window=36)


def test_a_saved_panel_is_opened_as_it_is(tmp_path):
    first, _ = load(write(tmp_path / "x.csv", make_frame(40)))
    first.save(tmp_path / "p")
    panel, said = load(tmp_path / "p")
    assert isinstance(panel.features, np.memmap) and panel.fingerprint == first.fingerprint and "1 series, 40 rows" in said
    with pytest.raises(InputError, match="no series has the 51 rows"):
        load(str(tmp_path / "p"), lookback_window=46)
    with pytest.raises(InputError, match="cannot stand in a list"):
        load([str(tmp_path / "p"), str(tmp_path / "x.csv")])


def test_the_samples_of_arch_are_two_series_of_valid_daily_bars():
    panel, said = load(["arch:sp500", "arch:nasdaq"])
    assert [(info.symbol, info.period, info.calendar) for info in panel.series] == [("sp500", "1d", "XNYS"), ("nasdaq", "1d", "XNYS")]
    assert panel.n_rows == 2 * 5031 and "1999-01-04 00:00 to 2018-12-31 00:00" in said
    assert panel.features[0, :4].tolist() == [1229.22998046875, 1248.81005859375, 1219.0999755859375, 1228.0999755859375]


def test_an_unknown_sample_and_a_missing_package_are_one_line_each(monkeypatch):
    with pytest.raises(InputError, match="'arch:dax' is not a sample; there are arch:sp500, arch:nasdaq"):
        load("arch:dax")
    monkeypatch.setitem(sys.modules, "arch.data.sp500", None)
    with pytest.raises(InputError, match="needs the package arch, which is not installed; run: pip install arch"):
        load("arch:sp500")


def test_data_frames_make_the_same_panel_as_their_files(tmp_path):
    frame = make_frame(40)
    expected, _ = load(write(tmp_path / "x.csv", frame))
    assert build_panel({"x": frame}).fingerprint == expected.fingerprint
    assert build_panel({"x": frame.set_index("timestamps")}).fingerprint == expected.fingerprint
    assert build_panel({"x": frame.set_index(pd.DatetimeIndex(frame.pop("timestamps"), name=None))}).fingerprint == expected.fingerprint
    with pytest.raises(InputError, match=r"series 'x', row 3, column 'open': price -1.0 is not above 0"):
        build_panel({"x": make_frame(9).assign(open=[1, 1, -1, 1, 1, 1, 1, 1, 1], low=0.5)})


def test_describe_lists_every_series():
    table = describe(build_panel({"a": make_frame(40), "b": make_frame(30, freq="1D")}))
    assert table["symbol"].tolist() == ["a", "b"] and table["rows"].tolist() == [40, 30] and table["period"].tolist() == ["1h", "1d"]
    assert str(table["last"][0]) == "2020-01-02 15:00:00+00:00"
