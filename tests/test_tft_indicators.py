"""Features: none sees the future, none depends on where the series begins, all are free of price level; the registry's messages."""

import numpy as np
import pandas as pd
import pytest
from bars import make_frame, make_panel

from finetune.data.panel import Column, Panel
from finetune.data.timestamps import stamp_features
from kronos.errors import InputError
from tft import indicators
from tft.anomalies import lof_scores
from tft.data_config import FeaturesSection
from tft.features import Plan, compute, feature_panel, plan
from tft.indicators import Bars, choose, registry
from tft.normalise import rolling_minmax, rolling_zscore
from tft.safe_pickle import read_pickle, write_pickle

HOUR = 3_600 * 10**9
SMALL = {"lof": {"train_rows": 60, "refit_every": 40, "neighbours": 10}}  # the rest runs with its defaults
NAMES = sorted(registry())
quiet = lambda text: None  # noqa: E731


def make_bars(n: int = 700, seed: int = 0, first: int = 0) -> Bars:
    return bars_of(make_frame(n, seed), first)


def bars_of(frame: pd.DataFrame, first: int = 0) -> Bars:
    values = frame[["open", "high", "low", "close", "volume"]].to_numpy()[first:]
    times = frame["timestamps"].to_numpy("datetime64[ns]").astype(np.int64)[first:]
    return Bars.of(values, times, stamp_features(times), HOUR)


def chosen(name: str, **more):
    return choose({"name": name, **SMALL.get(name, {}), **more}, "1h")


def raws(name: str) -> list[bool]:
    return [False, True] if "raw" in registry()[name].parameters else [False]


CASES = [(name, raw) for name in NAMES for raw in raws(name)]


def with_another_future(frame: pd.DataFrame, cut: int) -> pd.DataFrame:
    """The same bars up to row `cut`, wild ones after it."""
    other = frame.copy()
    ratio = np.exp(np.random.default_rng(cut).normal(0.5, 0.7, len(frame) - 1 - cut))
    for name in ("open", "high", "low", "close", "volume"):
        other.loc[cut + 1 :, name] = frame[name][cut + 1 :] * ratio
    return other


def sees_the_future(one, cut: int) -> bool:
    frame = make_frame(700)
    before, after = compute(bars_of(frame), one), compute(bars_of(with_another_future(frame, cut)), one)
    assert np.isfinite(before[one.warm_up :]).all()
    return before[: cut + 1].tobytes() != after[: cut + 1].tobytes()


@pytest.mark.parametrize("method", ["none", "zscore", "minmax"])
@pytest.mark.parametrize("cut", [420, 421, 463, 698])
def test_no_feature_sees_the_future(cut, method):
    """Whatever happens after row `cut`, the rows up to it keep every bit: each registered feature, raw and free, and normalised."""
    for name, raw in CASES:
        normalise = method if registry()[name].kind == "past" else "none"
        line = {"name": name, **SMALL.get(name, {}), **({"raw": True} if raw else {}), "normalise": normalise, "normalise_window": 50}
        assert not sees_the_future(plan([line], "1h"), cut), f"{name} {'raw' * raw} at {cut} sees the future"


@pytest.mark.parametrize(
    "leak",
    [lambda bars: np.append(bars.close[1:], 0), lambda bars: bars.close / bars.close.max(), lambda bars: bars.close - bars.close.mean()],
    ids=["next close", "largest of all", "mean of all"],
)
def test_a_feature_that_looked_ahead_would_be_caught(leak):
    one = indicators.Chosen(indicators.Feature("leak", leak, {}, lambda **_: 0), ("leak",), {})
    assert sees_the_future(Plan((one,)), 421)


def anchored(name: str, raw: bool) -> bool:
    return registry()[name].anchored(raw=raw)


@pytest.mark.parametrize(("name", "raw"), [case for case in CASES if not anchored(*case)])
def test_beyond_its_warm_up_a_feature_does_not_know_where_the_series_begins(name, raw):
    one = chosen(name, **({"raw": True} if raw else {}))
    whole, late = one.compute(make_bars()), one.compute(make_bars(first=137))
    for all_of_it, part in zip(whole, late, strict=True):
        expected, found = all_of_it[137 + one.warm_up :], part[one.warm_up :]
        spread = np.nanstd(all_of_it) + 1e-12
        assert len(found) > 100
        assert np.abs(found - expected).max() < 0.02 * spread, f"{name}: {np.abs(found - expected).max() / spread:.4f} deviations"


@pytest.mark.parametrize("name", NAMES)
def test_the_warm_up_is_what_is_missing_and_no_more(name):
    one = chosen(name)
    for column in one.compute(make_bars()):
        assert np.isnan(column[: one.warm_up]).all() and np.isfinite(column[one.warm_up :]).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("price", "volume"), [(1e-9, 1e4), (3e5, 1e-3)])
def test_features_are_free_of_price_level_and_volume_unit(name, price, volume):
    """A coin at 0.00001 gives what one at 100 gives: TA-Lib's thresholds on absolute variances do not bite."""
    frame = make_frame(700)
    scaled = frame.copy()
    scaled[["open", "high", "low", "close"]] *= price
    scaled["volume"] *= volume
    one = chosen(name)
    for column, other in zip(one.compute(bars_of(frame)), one.compute(bars_of(scaled)), strict=True):
        spread = np.nanstd(column) + 1e-12
        wrong = np.nanmean(np.abs(column - other) > 1e-6 * spread)
        assert wrong < 0.005, f"{name}: {wrong:.1%} of rows differ"  # a flag on a rounding edge may flip


@pytest.mark.parametrize("name", [name for name in NAMES if name != "lof"])
def test_bars_that_never_move_and_have_no_volume_give_numbers(name):
    frame = make_frame(400)
    frame[["open", "high", "low", "close"]], frame["volume"] = 7.0, 0.0
    one = chosen(name)
    for column in one.compute(bars_of(frame)):
        assert np.isfinite(column[one.warm_up :]).all(), name


def test_known_answers():
    frame = make_frame(60)
    frame["close"] = np.arange(100.0, 160.0)
    frame["open"], frame["high"], frame["low"], frame["volume"] = frame.close - 1, frame.close + 1, frame.close - 2, 5.0
    bars = bars_of(frame)
    value = {name: choose({"name": name, **given}, "1h").compute(bars) for name, given in KNOWN.items()}
    assert value["ma"][0][-1] == pytest.approx(159 / 157 - 1)
    assert value["breakout"][0][-1] == 0 and value["log_return"][0][-1] == pytest.approx(np.log(159 / 157))
    assert [column[-1] for column in value["level_distance"]] == pytest.approx([(159 - 153) / 159, 1 / 159])
    assert value["obv"][0][-1] == pytest.approx(1.0), "every bar rose, so all volume counts as bought"
    assert value["volume_ratio"][0][-1] == pytest.approx(1.0) and value["volume_percentile"][0][-1] == pytest.approx(5.5 / 10)
    assert value["parkinson"][0][-1] == pytest.approx(np.sqrt(np.mean(np.log(frame.high / frame.low)[-3:] ** 2) / (4 * np.log(2))))
    assert value["vwap"][0][-1] == pytest.approx(159 / np.mean(frame.close[-4:] - 1 / 3) - 1)
    returns = np.diff(np.log(frame.close))
    assert value["volatility"][0][-1] == pytest.approx(np.std(returns[-10:], ddof=1))
    assert value["skewness"][0][-1] == pytest.approx(pd.Series(returns[-20:]).skew())
    assert value["body"][0][-1] == pytest.approx(1 / 3)


KNOWN = {
    "ma": {"window": 5},
    "breakout": {"window": 5},
    "log_return": {"window": 2},
    "level_distance": {"window": 5},
    "obv": {"window": 5},
    "volume_ratio": {"window": 10},
    "volume_percentile": {"window": 10},
    "parkinson": {"window": 3},
    "vwap": {"window": 4},
    "volatility": {"window": 10},
    "skewness": {"window": 20},
    "body": {},
}


def test_a_breakout_is_measured_against_the_bars_before():
    frame = make_frame(30)
    frame["open"] = frame["close"] = 100.0
    frame["high"], frame["low"] = 101.0, 99.0
    frame.loc[20, ["high", "close"]] = 103.0, 102.0
    frame.loc[25, ["low", "close"]] = 97.0, 98.0
    found = chosen("breakout", window=5).compute(bars_of(frame))[0]
    assert np.flatnonzero(found[5:]).tolist() == [15, 20] and found[20] == 1 and found[25] == -1


def test_kdj_and_ewma_follow_their_recursions():
    bars = make_bars(300)
    low, high = (pd.Series(x).rolling(9) for x in (bars.low, bars.high))
    raw = 100 * (bars.close - low.min()) / (high.max() - low.min())
    k = raw.ewm(alpha=1 / 3, adjust=False).mean()
    d = k.ewm(alpha=1 / 3, adjust=False).mean()
    found = chosen("kdj").compute(bars)
    np.testing.assert_allclose([column[-100:] for column in found], [k[-100:], d[-100:], (3 * k - 2 * d)[-100:]], rtol=1e-9)
    squares = np.diff(np.log(bars.close)) ** 2
    level = squares[0]
    for square in squares[1:]:
        level = 0.94 * level + 0.06 * square
    assert chosen("ewma_volatility").compute(bars)[0][-1] == pytest.approx(np.sqrt(level))


def test_lof_finds_what_was_planted_and_uses_only_the_past():
    rng = np.random.default_rng(0)
    values, times = rng.normal(size=(600, 2)), np.arange(600) * HOUR
    values[[420, 555]] = 8.0
    how = dict(neighbours=10, train_rows=150, refit_every=100)
    scores = lof_scores(values, times, HOUR, **how)
    assert np.isnan(scores[:200]).all() and np.isfinite(scores[200:]).all(), "the block at 100 has only 100 rows before it"
    assert set(np.argsort(-np.nan_to_num(scores))[:2]) == {420, 555}
    planted = values.copy()
    planted[530:] = 8.0  # many equal rows later on would make 420 and 555 look usual
    assert lof_scores(planted, times, HOUR, **how)[:530].tobytes() == scores[:530].tobytes()


def test_rolling_normalisation_is_that_of_the_window_alone():
    values = np.concatenate([[np.nan] * 3, np.random.default_rng(0).normal(50, 3, 80)])
    score, share = rolling_zscore(values, 20), rolling_minmax(values, 20)
    for row in (22, 60, 82):
        window = values[row - 19 : row + 1]
        assert score[row] == pytest.approx((values[row] - window.mean()) / window.std(ddof=1))
        assert share[row] == pytest.approx((values[row] - window.min()) / np.ptp(window))
    assert np.isnan(score[:22]).all() and np.isnan(share[:22]).all()
    assert (rolling_zscore(np.full(30, 0.1), 10)[9:] == 0).all() and (rolling_minmax(np.full(30, 0.1), 10)[9:] == 0.5).all()
    spiked = np.append(np.zeros(50), 1e9)
    spiked[::2] += 1e-3
    assert rolling_zscore(spiked, 20)[-1] == pytest.approx(4.2, abs=0.3), "at most sqrt(19)"


def section(*lines, **more) -> FeaturesSection:
    return FeaturesSection(use=list(lines), **more)


def test_warm_up_rows_are_dropped_counted_and_leave_no_break():
    panel = make_panel(2, [200, 30])
    said = []
    made = feature_panel(panel, section({"name": "ma", "window": 40}, "log_return", "weekday"), said.append)
    assert made.n_rows == 200 - 39 and [info.symbol for info in made.series] == ["S00"]
    assert len(made.breaks) == 0 and made.times[0] == panel.times[39]
    kinds = {column.name: column.kind for column in made.columns}
    assert kinds["ma_40"] == "past" and kinds["weekday_sin"] == "known" and list(kinds)[:6] == [c.name for c in panel.columns]
    assert "39 rows of each of 2 series" in said[0] and "S01 1h (30 rows)" in said[1]


def test_a_break_inside_a_series_stays_where_it_was():
    panel = with_columns(make_panel(1, 100), breaks=[10, 60])
    made = feature_panel(panel, section({"name": "ma", "window": 21}), quiet)
    assert made.breaks.tolist() == [40], "the one at row 10 went with the warm-up"


def with_columns(panel: Panel, features=None, breaks=(), columns=None) -> Panel:
    shared = {name: getattr(panel, name) for name in ("stamps", "times", "offsets", "series")}
    given = panel.features if features is None else features
    return Panel.build(**shared, features=given, columns=columns or panel.columns, breaks=np.array(breaks))


def test_files_of_one_symbol_in_several_periods_are_one_symbol():
    from finetune.data.panel import SeriesInfo
    from tft.rows import plain_symbol

    for name in ("BTCUSDT_1h", "BTCUSDT-1H", "BTCUSDT_1h_all"):
        assert plain_symbol(SeriesInfo(name, "1h")).symbol == "BTCUSDT"
    assert plain_symbol(SeriesInfo("BTCUSDT_1h", "4h")).symbol == "BTCUSDT_1h"


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (["rsii"], r"line 1: 'rsii' is not a feature; did you mean rsi\?"),
        ([{"name": "rsi", "windw": 3}], r"has no parameter 'windw'; did you mean window"),
        ([{"name": "rsi", "window": 0}], "window is 0; expected a whole number from 1"),
        ([{"name": "rsi", "window": {"4h": 3}}], "no entry for '1h'"),
        ([{"name": "rsi", "kind": "categorical"}], "expected past .it is made of bars, which are not known ahead"),
        ([{"name": "weekday", "normalise": "zscore"}], "made of the calendar"),
        ([{"name": "rsi", "normalise": "z"}], "expected one of none, zscore, minmax"),
        (["rsi", "rsi"], "line 2: column 'rsi_14' is also made by line 1"),
        ([{"name": "gap", "as": "close"}], "also made by the bars"),
        ([{"name": "lof", "inputs": ["log_retrun"]}], "did you mean log_return"),
        (["price_above_ma", "weekdy"], "did you mean weekday"),
    ],
)
def test_mistakes_in_a_line_are_told_with_what_was_probably_meant(lines, told):
    with pytest.raises(InputError, match=told):
        feature_panel(make_panel(1, 50), section(*lines), quiet)


def test_a_feature_that_is_no_number_names_its_column_and_first_rows(monkeypatch):
    def broken(bars, window=2):
        values = np.ones(len(bars))
        values[[30, 33]] = np.inf, np.nan
        return values

    made = indicators.Feature("broken", broken, {"window": 2}, lambda **_: 0)
    monkeypatch.setattr(indicators, "registry", lambda: {**registry(), "broken": made})
    with pytest.raises(InputError, match=r"broken_2: inf in 2 rows, first S00 2020-01-02 06:00, S00 2020-01-02 09:00"):
        feature_panel(make_panel(1, 50), section("broken"), quiet)


def test_constant_columns_are_an_error_or_left_out():
    panel = make_panel(1, 80, freq="24h")
    with pytest.raises(InputError, match=r"time_of_day_sin = 0, time_of_day_cos = 1; take them out .* features.constant: drop"):
        feature_panel(panel, section("log_return", "time_of_day"), quiet)
    made = feature_panel(panel, section("log_return", "time_of_day", constant="drop"), quiet)
    assert [column.name for column in made.columns[6:]] == ["log_return_1"]


def test_missing_bars_and_an_empty_result_are_told():
    panel = make_panel(1, 50)
    with pytest.raises(InputError, match="the panel has no column 'volume', 'amount'"):
        feature_panel(
            with_columns(panel, panel.features[:, :4], columns=[Column(n) for n in ("open", "high", "low", "close")]), section("gap")
        )
    with pytest.raises(InputError, match=r"no row is left.* S00 1h \(50 rows\)"):
        feature_panel(panel, section({"name": "ma", "window": 60}), quiet)


def test_pickles_of_tables_load_and_programs_do_not(tmp_path):
    frame = pd.DataFrame(
        {"symbol": ["a", "b"], "x": [1.0, 2.0], "t": pd.date_range("2020", periods=2, tz="UTC"), "c": pd.Categorical(["u", "v"])}
    )
    for name, write in (("ours", lambda p: write_pickle(frame, p)), ("theirs", frame.to_pickle)):
        write(tmp_path / f"{name}.pkl")
        pd.testing.assert_frame_equal(read_pickle(tmp_path / f"{name}.pkl"), frame, check_dtype=name == "theirs", check_column_type=False)
    for program in (
        b"cos\nsystem\n(S'touch PWNED'\ntR.",
        b"c__builtin__\neval\n(S'1'\ntR.",
        b"c__builtin__\ngetattr\n(cpandas\nDataFrame\nS'eval'\ntR.",
    ):
        (tmp_path / "bad.pkl").write_bytes(program)
        with pytest.raises(InputError, match=r"bad.pkl: is not read, because it wants to use"):
            read_pickle(tmp_path / "bad.pkl")
    (tmp_path / "torn.pkl").write_bytes((tmp_path / "ours.pkl").read_bytes()[:200])
    with pytest.raises(InputError, match=r"torn.pkl: is "):
        read_pickle(tmp_path / "torn.pkl")
