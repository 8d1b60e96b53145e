"""CSV files as tables for the Temporal Fusion Transformer: what csv2Parquet.py and csv2Pkl.py make of them."""

import pandas as pd
import pytest
from test_tft_fusion import run, write_bars

from kronos.errors import InputError
from tft.long_tables import open_dataset, read_table


def test_csv_files_become_parquet_and_pickle(tmp_path, monkeypatch):
    write_bars(tmp_path, "BTC", 0)
    write_bars(tmp_path, "ETH", 1)
    run(monkeypatch, "csv2Parquet", str(tmp_path / "BTC_1h.csv"), "--out", str(tmp_path / "btc.parquet"))
    pd.testing.assert_frame_equal(
        pd.read_parquet(tmp_path / "btc.parquet"), pd.read_csv(tmp_path / "BTC_1h.csv", parse_dates=["timestamps"]), check_dtype=False
    )
    run(monkeypatch, "csv2Pkl", str(tmp_path / "*_*.csv"), "--merge", "--out", str(tmp_path / "all.pkl"))
    frame, _ = read_table(tmp_path / "all.pkl")
    assert frame.groupby(["symbol", "period"], observed=True).size().to_dict() == {
        (s, p): n for s in ("BTC", "ETH") for p, n in (("1h", 900), ("4h", 225))
    }
    (tmp_path / "odd_1h.csv").write_text("timestamps,close\n2020-01-01,1\n")
    with pytest.raises(InputError, match=r"odd_1h.csv: has not the columns of"):
        run(monkeypatch, "csv2Parquet", str(tmp_path / "*_1h.csv"), "--merge", "--out", str(tmp_path / "x.parquet"))


def test_symbols_in_a_csv_stay_text_whatever_they_look_like(tmp_path, monkeypatch):
    names = ["000001", "1E5", "NA", "TRUE"]
    for name in names:
        rows = "".join(f"{name},{time},1.5\n" for time in pd.date_range("2022-03-01", periods=3, freq="h"))
        (tmp_path / f"of_{name}.csv").write_text(f"symbol,timestamps,x\n{rows}")
        panel, _ = open_dataset(tmp_path / f"of_{name}.csv")
        assert [info.symbol for info in panel.series] == [name]
    run(monkeypatch, "csv2Parquet", str(tmp_path / "of_*.csv"), "--merge", "--out", str(tmp_path / "all.parquet"))
    assert pd.read_parquet(tmp_path / "all.parquet")["symbol"].unique().tolist() == names


def test_files_whose_columns_differ_in_kind_are_not_merged(tmp_path, monkeypatch):
    for name, value in (("a", "1"), ("b", "x")):
        (tmp_path / f"{name}.csv").write_text(f"symbol,timestamps,x\n{name},2022-03-01,{value}\n")
    with pytest.raises(InputError, match=r"x.parquet: a column is of another kind in one file than in another .*Field x"):
        run(monkeypatch, "csv2Parquet", str(tmp_path / "?.csv"), "--merge", "--out", str(tmp_path / "x.parquet"))
