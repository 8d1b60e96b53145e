"""Fusion: a slow bar is seen once it has closed and not before, in made-up bars whose answer is known; tables; the commands."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from bars import make_frame

from finetune.data.panel import Column, Panel, SeriesInfo
from finetune.data.samples import load_sample
from finetune.data.timestamps import stamp_features
from finetune.engine.config import load_config
from kronos.errors import InputError
from tft.data_config import FeaturesSection, FusionSection, TftDataConfig
from tft.features import feature_panel, plan
from tft.fusion import fuse, visible
from tft.health import write_report
from tft.indicators_calendar import calendar_rows
from tft.long_tables import open_dataset, read_table, table_to_panel, write_parquet
from tft.rows import keep_rows, open_with_manifest
from tft.safe_pickle import write_pickle
from tft.target_panel import close_times
from tft.targets import choose_targets

ROOT = Path(__file__).resolve().parents[1]
HOUR = 3_600 * 10**9
THREE = ("1h", "4h", "1d")
START = pd.Timestamp("2020-01-06").value
LENGTH = {"1h": 1, "4h": 4, "1d": 24, "1w": 168}
quiet = lambda text: None  # noqa: E731


def hours(period: str, days: int = 5) -> np.ndarray:
    """Opening times in hours since START."""
    return np.arange(0, 24 * days, LENGTH[period])


def fake_panel(series: dict[tuple[str, str], np.ndarray], stamp: str = "open", columns=("number", "other"), targets=False) -> Panel:
    """Series with bars that open at the given hours; `number` says the hour at which the bar closes, `other` which symbol it is of."""
    closing = [opens + LENGTH[period] for (_, period), opens in series.items()]
    times = [START + (opens if stamp == "open" else ends) * HOUR for opens, ends in zip(series.values(), closing, strict=True)]
    symbols = sorted({symbol for symbol, _ in series})
    other = [np.full(len(ends), symbols.index(symbol)) + ends / 1000 for (symbol, _), ends in zip(series, closing, strict=True)]
    n_rows = sum(map(len, times))
    return Panel.build(
        features=np.stack([np.concatenate(closing), np.concatenate(other)], axis=1),
        stamps=stamp_features(np.concatenate(times)),
        times=np.concatenate(times),
        offsets=np.cumsum([0, *map(len, times)]),
        series=[SeriesInfo(*who) for who in series],
        columns=[Column(name) for name in columns],
        targets=np.arange(n_rows, dtype=float)[:, None] if targets else None,
        target_names=["target_row"] if targets else [],
        stamp=stamp,
    )


def three_periods(stamp: str = "open", symbols=("BTC",)) -> Panel:
    return fake_panel({(symbol, period): hours(period) for symbol in symbols for period in THREE}, stamp)


def column(panel: Panel, name: str, symbol: str = "", period: str = "") -> np.ndarray:
    rows = np.repeat(
        [(not symbol or info.symbol == symbol) and (not period or info.period == period) for info in panel.series], np.diff(panel.offsets)
    )
    return panel.features[rows, [c.name for c in panel.columns].index(name)]


@pytest.mark.parametrize("stamp", ["open", "close"])
def test_a_slow_bar_is_seen_from_the_moment_it_has_closed(stamp):
    """`number` is the hour at which a bar closes, so every row knows what it should see: the last multiple of 4, or of 24, up to it."""
    fused = fuse(three_periods(stamp), FusionSection(carry={"4h": ["number"], "1d": ["number"]}, rows=["1h"]), say=quiet)
    now, four, day = (column(fused, name) for name in ("number", "number@4h", "number@1d"))
    assert now.tolist() == list(range(24, 121)), "rows before the first daily bar has closed are dropped"
    np.testing.assert_array_equal(four, now // 4 * 4)
    np.testing.assert_array_equal(day, now // 24 * 24)


def test_stamps_at_the_open_and_at_the_close_are_told_apart():
    """The same times, read as openings and as closings, show different bars."""
    seen = {}
    for stamp in ("open", "close"):
        panel = three_periods("open")
        shared = {name: getattr(panel, name) for name in ("features", "stamps", "times", "offsets", "series", "columns")}
        fused = fuse(Panel.build(**shared, stamp=stamp), FusionSection(carry={"4h": ["number"]}, rows=["1h"]), say=quiet)
        row = int(np.flatnonzero(fused.times == START + 9 * HOUR)[0])
        seen[stamp] = fused.features[row, 2]
    assert seen == {"open": 8.0, "close": 12.0}, "open: the bar 4 to 8 has closed by 10; close: the bar that closed at 8 is number 12"


def test_all_periods_may_be_rows_and_none_sees_later_than_itself():
    fused = fuse(three_periods(), FusionSection(carry={"4h": ["number"], "1d": ["number"]}), say=quiet)
    for info, first, end in zip(fused.series, fused.offsets[:-1], fused.offsets[1:], strict=True):
        own, four, day = fused.features[first:end, 0], fused.features[first:end, 2], fused.features[first:end, 3]
        assert (four <= own).all() and (day <= own).all()
        np.testing.assert_array_equal(day, own // 24 * 24)
        if info.period == "1d":
            np.testing.assert_array_equal(four, own)


def test_changing_slow_bars_changes_no_row_before_they_close():
    panel = three_periods()
    features = panel.features.copy()
    slow = np.repeat([info.period != "1h" for info in panel.series], np.diff(panel.offsets))
    changed = slow & (close_times(panel) > START + 60 * HOUR)
    features[changed] = -1.0
    shared = {name: getattr(panel, name) for name in ("stamps", "times", "offsets", "series", "columns")}
    carry = FusionSection(carry={"4h": "all", "1d": "all"}, rows=["1h"])
    before, after = (fuse(p, carry, say=quiet) for p in (panel, Panel.build(features=features, **shared)))
    same = (before.features == after.features).all(axis=1)
    assert same[before.times + HOUR <= START + 60 * HOUR].all() and not same[before.times + HOUR >= START + 64 * HOUR].any()


def test_a_gap_in_the_slow_bars_leaves_the_last_one_until_it_is_too_old():
    opens = hours("4h")
    opens = opens[(opens < 20) | (opens >= 60)]  # the last before the gap closes at 20, the first after it at 64
    panel = fake_panel({("BTC", "1h"): hours("1h"), ("BTC", "4h"): opens}, targets=True)
    said = []
    fused = fuse(panel, FusionSection(carry={"4h": ["number"]}, rows=["1h"], max_age=3), say=said.append)
    now = column(fused, "number")
    assert now.tolist() == [*range(4, 33), *range(64, 121)], "twelve hours, three bars, after the last close it is unknown"
    assert fused.breaks.tolist() == [29], "a break where rows went missing inside, none where they went at the beginning"
    assert said == ["dropped, no 4h bar that has closed and is recent enough: 34 of 120 rows"]
    np.testing.assert_array_equal(fused.targets[:, 0] + 1, now)


def test_a_day_of_25_hours_closes_an_hour_later():
    opens = np.array([0, 24, 49, 73, 97])
    panel = fake_panel({("BTC", "1d"): opens})
    assert ((close_times(panel) - START) // HOUR).tolist() == [24, 49, 73, 97, 121]


@pytest.mark.parametrize("opens", [[0, 24, 47, 71], [0, 24, 49, 73]], ids=["a day of 23 hours", "a day of 25 hours"])
def test_on_the_days_of_a_clock_change_no_daily_row_sees_an_hour_that_is_not_over_and_none_sees_it_early(opens):
    panel = fake_panel({("BTC", "1h"): hours("1h", 4), ("BTC", "1d"): np.array(opens)})
    by_day = fuse(panel, FusionSection(carry={"1h": ["number"]}, rows=["1d"]), say=quiet)
    true_closes = np.append(opens[1:], opens[-1] + 24)
    assert (column(by_day, "number@1h") <= true_closes).all() and (column(by_day, "number@1h") >= true_closes - 1).all()
    by_hour = fuse(panel, FusionSection(carry={"1d": ["other"]}, rows=["1h"]), say=quiet)
    day, now = np.rint(1000 * column(by_hour, "other@1d")) - 24, column(by_hour, "number")  # the hour at which the day seen opened
    closed = np.array([true_closes[opens.index(one)] for one in day.astype(int)])
    assert (closed <= now).all() and (closed > now - 26).all()


def test_visible_is_the_last_closed_bar():
    closes = np.array([10, 20, 40])
    assert visible(np.array([9, 10, 19, 20, 39, 40, 99]), closes).tolist() == [-1, 0, 0, 1, 1, 2, 2]
    assert visible(np.array([9, 10, 19, 20, 39, 40, 99]), closes, max_age=9).tolist() == [-1, 0, 0, 1, -1, 2, -1]


def weekly_and_daily(until: int) -> Panel:
    """Real daily bars of two indices (2010 to 2012) that have closed by `until`, and the whole weeks made of them."""
    series, parts = [], []
    for name in ("sp500", "nasdaq"):
        daily = load_sample(f"arch:{name}").set_index("timestamps")["2010":"2012"].assign(amount=1.0)
        how = {"open": "first", "high": "max", "low": "min", "close": "last", "volume": "sum", "amount": "sum"}
        for period, bars in (("1d", daily), ("1w", daily.resample("W-MON", closed="left", label="left").agg(how))):
            times = bars.index.to_numpy("datetime64[ns]").astype(np.int64)
            whole = times + LENGTH[period] * HOUR <= until
            series.append(SeriesInfo(name, period))
            parts.append((bars.to_numpy()[whole], times[whole]))
    times = np.concatenate([part for _, part in parts])
    features = np.concatenate([part for part, _ in parts])
    offsets = np.cumsum([0, *(len(part) for _, part in parts)])
    return Panel.build(features=features, stamps=stamp_features(times), times=times, offsets=offsets, series=series)


def test_with_real_bars_what_was_known_on_a_day_is_what_the_history_shows_for_it():
    """The whole chain on the bars that had closed by a moment gives, bit for bit, the rows that it gives with all later bars at hand."""
    lines = ["log_return", {"name": "ma", "window": 8}, {"name": "rsi", "window": 3, "normalise": "zscore", "normalise_window": 10}]
    section = FeaturesSection(
        use=[*lines, {"name": "lof", "train_rows": 40, "refit_every": 10, "neighbours": 5}, "weekday"], constant="drop"
    )
    carry = FusionSection(
        rows=["1d"], carry={"1w": "all"}, market=[{"column": "ma_8"}, {"column": "rsi_3", "how": "of", "symbol": "sp500"}]
    )

    def known_by(until: int) -> Panel:
        return fuse(feature_panel(weekly_and_daily(until), section, quiet), carry, say=quiet)

    history = known_by(2**62)
    week = [column.name for column in history.columns].index("log_return_1@1w")
    monday = history.stamps[:, 2] == 0
    changes = np.diff(history.features[:, week], prepend=0) != 0
    assert changes[monday].mean() > 0.95 and (changes & ~monday).sum() < 0.2 * changes.sum(), "a week is seen from the next Monday's bar on"
    for day in ("2011-11-04", "2011-11-07", "2011-11-08", "2012-08-15"):  # Friday, Monday, Tuesday, Wednesday
        until = pd.Timestamp(day).value + 24 * HOUR
        then = known_by(until)
        same = history.times + 24 * HOUR <= until
        assert then.columns == history.columns and then.n_rows == same.sum() > 200
        assert then.features.tobytes() == history.features[same].tobytes()


def test_market_columns_are_equal_for_all_symbols_at_a_time():
    late = {("ETH", period): opens[opens >= 30] for period, opens in ((p, hours(p)) for p in THREE)}
    panel = fake_panel({**{("BTC", period): hours(period) for period in THREE}, **late, ("VIX", "1h"): hours("1h")[::3]})
    market = [{"column": "other"}, {"column": "number", "how": "of", "symbol": "VIX"}]
    fused = fuse(panel, FusionSection(market=market, symbols=["BTC", "ETH"], rows=["1h"]), say=quiet)
    assert {info.symbol for info in fused.series} == {"BTC", "ETH"}
    frame = pd.DataFrame(fused.features, columns=[c.name for c in fused.columns]).assign(time=fused.times)
    assert (frame.groupby("time")[["market_other", "VIX_number"]].nunique() == 1).all().all()
    both = frame[frame.number == 41]
    assert both.market_other.tolist() == pytest.approx([0.541, 0.541]), "mean of BTC 0.041 and ETH 1.041; VIX has no bar at that hour"
    assert both.VIX_number.tolist() == [40, 40]
    assert frame[frame.number == 20].market_other.tolist() == pytest.approx([0.02]), "ETH is not there yet"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"carry": {"4h": ["numbr"]}}, "fusion.carry.4h: the panel has no column 'numbr'"),
        ({"carry": {"2h": "all"}}, "fusion.carry: '2h' is not among the bars"),
        ({"rows": ["1hh"]}, r"fusion.rows: '1hh' is not among the bars; did you mean 1h"),
        ({"symbols": ["BTX"]}, "did you mean BTC"),
        ({"market": [{"column": "other", "how": "of", "symbol": "ETH"}]}, "fusion.market: 'ETH' is not among the bars"),
        ({"market": [{"column": "other"}, {"column": "other"}]}, "two columns are called 'market_other'"),
    ],
)
def test_mistakes_are_told(given, told):
    with pytest.raises(InputError, match=told):
        fuse(three_periods(), FusionSection(**given), say=quiet)


def test_an_empty_result_says_why():
    panel = fake_panel({("BTC", "1h"): hours("1h")[:20], ("BTC", "1d"): hours("1d")})
    with pytest.raises(
        InputError, match=r"fusion leaves no row: no 1d bar that has closed and is recent enough: 20 rows; check fusion.carry"
    ):
        fuse(panel, FusionSection(carry={"1d": "all"}, rows=["1h"]), say=quiet)


def test_dropped_rows_leave_breaks_inside_series_only():
    keep = np.array([0, 1, 1, 0, 0, 1, 1, 1, 0, 1, 1, 1, 0], bool)
    kept = keep_rows(keep, np.array([0, 7, 13]), np.array([6, 11]))
    assert kept.rows.tolist() == [1, 2, 5, 6, 7, 9, 10, 11] and kept.offsets.tolist() == [0, 4, 8] and kept.series.tolist() == [0, 1]
    assert kept.breaks.tolist() == [2, 3, 5, 7]
    assert keep_rows(np.array([0, 0, 1, 1], bool), np.array([0, 2, 4]), np.array([], int)).series.tolist() == [1]


@pytest.fixture
def fused() -> Panel:
    panel = fake_panel(
        {("BTC", "1h"): hours("1h"), ("BTC", "4h"): np.delete(hours("4h"), slice(5, 15)), ("ETH", "1h"): hours("1h", 2)}, targets=True
    )
    targets = panel.targets.copy()
    targets[-3:] = np.nan
    shared = {name: getattr(panel, name) for name in ("features", "stamps", "times", "offsets", "series", "target_names")}
    return Panel.build(
        **shared, columns=[Column("number"), Column("other", "known")], targets=targets, breaks=np.array([7, 70]), stamp="close"
    )


def test_a_parquet_table_is_the_same_panel_again(tmp_path, fused):
    write_parquet(fused, tmp_path / "t.parquet")
    again, _ = open_dataset(tmp_path / "t.parquet")
    assert again.fingerprint == fused.fingerprint
    frame, _ = read_table(tmp_path / "t.parquet")
    assert list(frame.columns) == ["symbol", "period", "time", "datetime", "time_idx", "stretch", "number", "other", "target_row"]


def test_a_pickled_table_is_the_same_rows_again(tmp_path, fused):
    frame, _ = read_table(fused.save(tmp_path / "p"))
    write_pickle(frame.sample(frac=1, random_state=0), tmp_path / "t.pkl")
    again, _ = open_dataset(tmp_path / "t.pkl", known=["other"])
    assert {(info.symbol, info.period) for info in again.series} == {(info.symbol, info.period) for info in fused.series}
    assert sorted(np.diff(again.offsets)) == sorted(np.diff(fused.offsets)) and again.columns == fused.columns
    assert np.sort(again.targets[:, 0]).tobytes() == np.sort(fused.targets[:, 0]).tobytes()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda f: f.assign(number=f.number.where(f.index != 4)), r"number: 1 rows, first 5 \(rows count from 1\)"),
        (lambda f: f.assign(note="x"), "column 'note' holds something that is not a number"),
        (lambda f: f.drop(columns="symbol"), "has no column symbol"),
        (lambda f: f.drop(columns=["time", "datetime"]), "has no column time"),
        (lambda f: f.iloc[:0], "holds no row"),
        (lambda f: pd.concat([f, f.iloc[:1]]), "not later than the row before it"),
    ],
)
def test_tables_that_cannot_be_used_are_told(tmp_path, fused, change, told):
    frame, _ = read_table(fused.save(tmp_path / "p"))
    with pytest.raises(InputError, match=told):
        table_to_panel(change(frame))


def write_bars(folder, symbol: str, seed: int) -> None:
    bars = make_frame(900, seed).drop(columns="amount").set_index("timestamps")
    how = {"open": "first", "high": "max", "low": "min", "close": "last", "volume": "sum"}
    for period in ("1h", "4h"):
        bars.resample(period).agg(how).dropna().to_csv(folder / f"{symbol}_{period}.csv")


YAML = """
data: {data_path: "bars"}
output: {folder: out}
features:
  use: [log_return, {name: ma, window: 10}, {name: rsi, normalise: zscore, normalise_window: 20}, weekday]
targets: {use: [binarytrend, logreturn, sideway_detect], horizon: {1h: 4, 4h: 2}}
fusion:
  carry: {4h: [rsi_14]}
  market: [{column: log_return_1}]
"""


def run(monkeypatch, module: str, *flags: str) -> None:
    import importlib

    monkeypatch.setattr(sys, "argv", [module, *flags])
    importlib.import_module(f"tft.{module}").main()


def test_the_three_commands_make_one_panel(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bars").mkdir()
    for seed, symbol in enumerate(("BTC", "ETH")):
        write_bars(tmp_path / "bars", symbol, seed)
    (tmp_path / "data.yaml").write_text(YAML)
    with pytest.raises(InputError, match=r"make it first: python .*tft/indicating.py --config data.yaml"):
        run(monkeypatch, "target_config", "--config", "data.yaml")
    run(monkeypatch, "indicating", "--config", "data.yaml")
    run(monkeypatch, "target_config", "--config", "data.yaml")
    run(monkeypatch, "data_fusion", "--config", "data.yaml", "--parquet", "out/table.parquet")
    panel, manifest = open_with_manifest("out/fused", "")
    assert [(info.symbol, info.period) for info in panel.series] == [("BTC", "1h"), ("BTC", "4h"), ("ETH", "1h"), ("ETH", "4h")]
    names = [column.name for column in panel.columns]
    assert names == ["log_return_1", "ma_10", "rsi_14", "weekday_sin", "weekday_cos", "rsi_14@4h", "market_log_return_1"]
    assert panel.target_names == ("target_binarytrend", "target_logreturn", "target_sideway_detect")
    assert manifest["targets"]["target_logreturn"]["horizon"] == {"1h": 4, "4h": 2} and manifest["train_until"].startswith("2020-02-01")
    ahead = calendar_rows(manifest["calendar"], ["weekday_cos", "weekday_sin"], panel.stamps[-5:])
    np.testing.assert_array_equal(ahead[:, ::-1], panel.features[-5:, 3:5])
    with pytest.raises(InputError, match="'rsi_14' is not a calendar column"):
        calendar_rows(manifest["calendar"], ["rsi_14"], panel.stamps[-1:])
    assert open_dataset("out/table.parquet")[0].fingerprint == panel.fingerprint
    run(monkeypatch, "feature_healthcheck", "out/fused", "--out", "health")
    table = pd.read_csv("health/columns.csv").set_index("column")
    assert table.loc["rsi_14", "kind"] == "past" and table.loc["target_logreturn", "missing"] > 0
    assert {path.name for path in (tmp_path / "health").iterdir()} >= {
        "columns.csv",
        "correlations.csv",
        "correlations.png",
        "distributions.png",
    }
    assert "done: 7 columns" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["data.yaml", "demo_data.yaml"])
def test_the_configurations_that_come_along_name_what_there_is(name):
    config = load_config(TftDataConfig, ROOT / "configs" / "tft" / name, environment={})
    settings = dict(normalise=config.features.normalise, normalise_window=config.features.normalise_window)
    periods = ["1h", "4h", "1d"] if name == "data.yaml" else ["1d"]
    plans = [plan(config.features.use, period, **settings) for period in periods]
    assert all(made.columns == plans[0].columns for made in plans), "a panel has one set of columns"
    assert [len(choose_targets(config.targets.use, period, config.targets.horizon)) for period in periods] == [11] * len(periods)
    carried = {column for columns in config.fusion.carry.values() for column in columns}
    assert carried | {line["column"] for line in config.fusion.market} <= {column.name for column in plans[0].columns}


def test_the_health_report_names_what_is_wrong(tmp_path):
    rng = np.random.default_rng(0)
    good = rng.normal(size=400)
    frame = pd.DataFrame({"symbol": "A", "time": pd.date_range("2020", periods=400), "good": good, "twin": np.exp(good), "still": 3.0})
    frame["holes"] = np.where(np.arange(400) % 4, rng.normal(size=400), np.nan)
    frame["moved"] = rng.normal(size=400) + (np.arange(400) > 330) * 2
    frame["target_x"] = frame["moved"] * 2
    told = write_report(frame.sample(frac=1, random_state=0), {"good": "past"}, tmp_path)
    kinds = [line.split(":")[0] + " " + line.split()[1] for line in told]
    assert kinds == ["constant still", "missing holes", "twins good", "leak? moved", "drift moved", "drift target_x"]
    table = pd.read_csv(tmp_path / "columns.csv").set_index("column")
    assert table.missing["holes"] == 100 and table["mean"]["good"] == pytest.approx(good.mean(), rel=1e-4)
    assert all((tmp_path / f"{name}.png").stat().st_size > 5000 for name in ("correlations", "distributions", "missing"))
    with pytest.raises(InputError, match="0 numeric columns"):
        write_report(frame[["symbol"]], {}, tmp_path)
