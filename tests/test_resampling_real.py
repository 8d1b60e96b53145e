"""Coarser bars from real files against what others published, where those files lie beside the checkout: they are not ours to commit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from finetune.config_manager import ConfigManager
from finetune.data.resampling_source import prepare
from finetune.multi_config import ModelConfig

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
FIVE_MINUTES = DATA / "XSHG_600977_5min.csv"
needs_shares = pytest.mark.skipif(not FIVE_MINUTES.is_file(), reason=f"no {FIVE_MINUTES}")
needs_crypto = pytest.mark.skipif(not (DATA / "crypto").is_dir(), reason=f"no {DATA / 'crypto'}")
KNOWN = {  # of 4 hours, and why: the hourly file lacks trades of 2022-07-16, and on 2023-11-10 the 4h file was stored too early
    *((symbol, "2022-07-16 04:00:00") for symbol in ("BTCUSDT", "ETHUSDT", "BNBUSDT")),
    *((symbol, "2023-11-10 12:00:00") for symbol in ("BTCUSDT", "ETHUSDT", "BNBUSDT")),
    ("BNBUSDT", "2023-11-10 08:00:00"),
}


def model(folder: Path, **timeframe: str) -> ModelConfig:
    text = "\n".join(f"  {key}: {value}" for key, value in timeframe.items())
    (folder / "real.yaml").write_text(f"timeframe:\n{text}\nmodel_paths: {{base_path: {folder}}}\n")
    return ConfigManager(folder, {}).load_config(folder / "real.yaml")


@needs_shares
@pytest.mark.parametrize(("period", "first", "last"), [("15min", "11:30", "11:30"), ("1h", "14:00", "11:30"), ("1d", "00:00", "00:00")])
def test_close_stamped_minutes_of_shanghai_become_the_bars_that_pandas_makes_of_them_by_hand(tmp_path, period, first, last):
    config = model(tmp_path, period=period, source=f"[{FIVE_MINUTES}]", calendar="XSHG")
    said: list[str] = []
    panel = prepare(config, say=said.append)
    assert any(line.startswith("stamp: close (bars run 09:35 to 15:00") for line in said)
    raw = pd.read_csv(FIVE_MINUTES, parse_dates=["timestamps"])
    opened = raw["timestamps"] - pd.Timedelta("5min")
    minute = opened.dt.hour * 60 + opened.dt.minute
    begin = np.where(minute < 12 * 60, 9 * 60 + 30, 13 * 60)
    length = {"15min": 15, "1h": 60, "1d": 24 * 60}[period]
    group = [opened.dt.date] if period == "1d" else [opened.dt.date, begin + (minute - begin) // length * length]
    whole = (raw.groupby(group).size() == min(length, 4 * 60) // 5).to_numpy()
    how = {"open": "first", "high": "max", "low": "min", "close": "last", "volume": "sum", "amount": "sum"}
    wanted = raw.groupby(group).agg(how)[whole]
    assert np.array_equal(panel.features[:, :4], wanted[["open", "high", "low", "close"]].to_numpy(np.float32))
    np.testing.assert_allclose(panel.features[:, 4:], wanted[["volume", "amount"]], rtol=1e-6)
    clock = [f"{hour:02d}:{minute:02d}" for minute, hour, *_ in (panel.stamps[0].tolist(), panel.stamps[-1].tolist())]
    assert clock == [first, last] and (panel.stamp == "close") == (period != "1d")


@needs_crypto
@pytest.mark.slow
def test_four_hours_made_of_real_hourly_bars_equal_the_published_ones_but_for_seven_that_are_explained(tmp_path):
    files = [str(DATA / "crypto" / f"*_{period}.csv.gz") for period in ("1h", "4h")]
    config = model(tmp_path, period="4h", source=f"['{files[0]}']", calendar="'24/7'")
    said: list[str] = []
    prepare(config, check=[files[1]], say=said.append)
    found = pd.read_csv(tmp_path / "real" / "data" / "panel" / "differences.csv")
    differing = found[found["kind"] == "differs"]
    assert set(zip(differing["symbol"], differing["time"], strict=True)) == KNOWN and differing["why"].notna().all()
    rest = found[found["kind"] != "differs"]
    assert set(zip(rest["kind"], rest["why"], strict=True)) == {("only given", "after the finer bars end")}
    assert any("27,996 bars of BNBUSDT, BTCUSDT, ETHUSDT are equal" in line for line in said)
