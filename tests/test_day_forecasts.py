"""Forecasts of every day: what they know, which numbers they get, that they end where bars end, and that a stopped run goes on."""

import dataclasses
import shutil
import signal
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from bars import make_panel

from benchmarks import day_forecasts as benchmark
from finetune.data.frames import bars_frame, wall_clock
from finetune.data.panel import Panel
from finetune.engine.errors import Interrupted
from finetune.evaluation import day_forecasts
from finetune.evaluation.day_forecasts import forecast_days
from finetune.evaluation.days import continued, stamps_ahead, stamps_of
from kronos import KronosPredictor
from kronos.errors import InputError

LOOKBACK, HORIZON = 12, 4
N_SYMBOLS, N_DAYS = 4, 40


def settings(**changes):
    return SimpleNamespace(**{**dict(T=1.0, top_k=0, top_p=0.9, sample_count=3, seed=7, series_at_once=8), **changes})


def predictor(seed=1):
    return KronosPredictor(tiny.predictor(seed), tiny.tokenizer(), device="cpu")


def changed(panel, **arrays):
    """The panel with some of its arrays replaced."""
    names = ("features", "stamps", "times", "offsets", "series", "origin", "breaks")
    return Panel.build(**{**{name: getattr(panel, name) for name in names}, **arrays})


def rows_kept(panel, keep):
    """The panel without some of its rows."""
    numbers, lengths = np.unique(np.repeat(np.arange(panel.n_series), np.diff(panel.offsets))[keep], return_counts=True)
    arrays = {name: getattr(panel, name)[keep] for name in ("features", "stamps", "times", "origin")}
    return changed(panel, **arrays, series=[panel.series[n] for n in numbers], offsets=np.concatenate([[0], np.cumsum(lengths)]))


def bars_of(seed):
    """Weekdays from 2020-01-01 on; the first to be forecast from is the first with a lookback."""
    panel = make_panel(N_SYMBOLS, N_DAYS, seed, freq="B")
    return changed(panel, origin=np.tile(np.arange(N_DAYS) >= LOOKBACK - 1, N_SYMBOLS))


@pytest.fixture(scope="module")
def panel():
    return bars_of(0)


@pytest.fixture(scope="module")
def calendar():
    return pd.bdate_range("2020-01-01", periods=N_DAYS + 2).as_unit("ns").to_numpy()  # two days to come are known


@pytest.fixture
def forecast(panel, calendar, tmp_path):
    """forecast(panel, ...) with everything else given; `said` holds what it said."""

    def run(of=panel, folder="forecasts", model=None, at=calendar, lookback=LOOKBACK, **changes):
        run.said = []
        return forecast_days(
            model or predictor(),
            of,
            calendar=at,
            folder=tmp_path / folder,
            lookback=lookback,
            horizon=HORIZON,
            settings=settings(**changes),
            say=run.said.append,
        )

    return run


def stopping_after(done):
    """A `predict_arrays` that is interrupted after so many calls."""
    arrays, calls = KronosPredictor.predict_arrays, []

    def stopping(self, values, *args, **how):
        if len(calls) == done:
            raise KeyboardInterrupt
        calls.append(len(values))
        return arrays(self, values, *args, **how)

    return stopping


def same(a, b):
    return all(np.array_equal(getattr(a, field.name), getattr(b, field.name)) for field in dataclasses.fields(a))


def test_every_day_with_a_lookback_is_forecast_in_the_order_of_days_the_last_one_too(forecast, panel, calendar):
    found = forecast()
    days = calendar[LOOKBACK - 1 : N_DAYS]
    assert np.array_equal(found.days, np.repeat(days, N_SYMBOLS)) and found.days[-1] == calendar[N_DAYS - 1]
    assert found.symbols.tolist() == ["S00", "S01", "S02", "S03"] * len(days)
    assert found.closes.shape == (len(days) * N_SYMBOLS, 3, HORIZON) and found.closes.dtype == np.float32
    assert np.array_equal(found.last, panel.features[found.rows, 3].astype(np.float64))
    assert np.isfinite(found.closes).all()


def test_a_forecast_is_that_of_predict_for_the_symbol_alone(forecast, panel):
    found = forecast()
    for place in (0, 37):
        row = int(found.rows[place])
        history = bars_frame(panel, row + 1 - LOOKBACK, row + 1)
        ahead = pd.Series(wall_clock(panel, row + 1, row + 1 + HORIZON))
        alone = predictor().predict(
            history, pd.Series(history.index), ahead, HORIZON, T=1.0, sample_count=3, seed=7, return_samples=True, verbose=False
        )
        np.testing.assert_allclose(found.closes[place], alone[:, :, 3], rtol=1e-5)


def test_other_symbols_and_other_batches_change_nothing(forecast, panel):
    everyone = forecast()
    of_one = rows_kept(panel, np.arange(panel.n_rows) >= panel.offsets[3])
    alone = forecast(of_one, "alone", series_at_once=3)
    np.testing.assert_allclose(alone.closes, everyone.closes[everyone.symbols == "S03"], rtol=1e-5)


def test_bars_after_a_day_change_nothing_up_to_it(forecast, panel):
    days = np.tile(np.arange(N_DAYS), N_SYMBOLS)
    noise = np.random.default_rng(0).uniform(1, 1000, panel.features.shape).astype(np.float32)
    told = forecast()
    blind = forecast(changed(panel, features=np.where((days > 25)[:, None], noise, panel.features)), "blind")
    upto = (25 - LOOKBACK + 2) * N_SYMBOLS
    assert np.array_equal(told.closes[:upto], blind.closes[:upto]) and np.array_equal(told.last[:upto], blind.last[:upto])
    assert not np.array_equal(told.closes[upto:], blind.closes[upto:])


def test_trading_that_stops_after_a_day_is_not_known_on_it(forecast, panel):
    days = np.tile(np.arange(N_DAYS), N_SYMBOLS)
    series = np.repeat(np.arange(N_SYMBOLS), N_DAYS)
    pauses = rows_kept(panel, (series != 1) | (days <= 25) | (days > 30))
    told, paused = forecast(), forecast(pauses, "paused")
    upto = (25 - LOOKBACK + 2) * N_SYMBOLS
    assert np.array_equal(told.closes[:upto], paused.closes[:upto])


def test_the_bars_to_come_are_stamped_by_the_calendar_also_beyond_its_end(forecast, panel, calendar, monkeypatch):
    stamps = []
    arrays = KronosPredictor.predict_arrays

    def noted(self, values, given, *args, **how):
        stamps.append(given[:, -HORIZON:])
        return arrays(self, values, given, *args, **how)

    monkeypatch.setattr(KronosPredictor, "predict_arrays", noted)
    holiday = np.delete(calendar, N_DAYS)  # the first day to come is known to be one
    forecast(at=holiday)
    after = pd.bdate_range(calendar[N_DAYS + 1], periods=HORIZON)
    assert np.array_equal(np.concatenate(stamps)[-1], stamps_of(after))


@pytest.mark.parametrize("done", [1, 3])
def test_a_stopped_run_goes_on_and_its_forecasts_are_those_of_one_run(forecast, monkeypatch, done):
    whole = forecast(folder="whole")
    monkeypatch.setattr(day_forecasts, "_SAVE_EVERY_S", 0)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(KronosPredictor, "predict_arrays", stopping_after(done))
        forecast()
    again = forecast()
    assert forecast.said[0].startswith(f"{8 * done} of 116 forecasts were there (")
    assert f"forecasts: {116 - 8 * done} on" in forecast.said[1]
    assert same(again, whole)
    monkeypatch.setattr(KronosPredictor, "predict_arrays", lambda *args, **how: pytest.fail("all were there"))
    assert same(forecast(), whole) and forecast.said == [forecast.said[0]]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (dict(model=predictor(2)), "the predictor's weights are others"),
        (dict(T=0.5, seed=8), "T is 0.5, was 1.0, seed is 8, was 7"),
        (dict(of=bars_of(1)), "the bars are others"),
        (dict(at=pd.date_range("2020-01-01", periods=N_DAYS * 2).as_unit("ns").to_numpy()), "the calendar's days to come are others"),
    ],
)
def test_other_weights_settings_bars_or_days_to_come_start_anew_and_it_is_said_why(forecast, changes, reason):
    before = forecast()
    after = forecast(**changes)
    assert forecast.said[0].startswith("forecasts start anew") and forecast.said[0].endswith(reason)
    assert not np.array_equal(before.closes, after.closes)
    assert same(after, forecast(folder="fresh", **changes))


def test_forecasts_of_other_weights_never_join_those_of_a_run_that_was_stopped(forecast, monkeypatch):
    monkeypatch.setattr(day_forecasts, "_SAVE_EVERY_S", 0)
    other = dict(model=predictor(2))
    whole = forecast(folder="whole", **other)
    forecast()  # leaves many parts
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(KronosPredictor, "predict_arrays", stopping_after(1))
        forecast(**other)
    assert same(forecast(**other), whole)
    assert forecast.said[0].startswith("8 of 116 forecasts were there")


def test_a_part_belongs_to_the_manifest_that_it_was_made_by_whatever_lies_beside_it(forecast, tmp_path):
    other = dict(model=predictor(2))
    whole = forecast(folder="other", **other)
    forecast()
    shutil.copy(tmp_path / "other" / "manifest.json", tmp_path / "forecasts" / "manifest.json")
    assert same(forecast(**other), whole)


def test_a_second_run_in_the_folder_is_refused_while_the_first_forecasts(forecast, monkeypatch, tmp_path):
    arrays, refused = KronosPredictor.predict_arrays, []

    def twice(self, *args, **how):
        if not refused:
            refused.append(True)
            with pytest.raises(InputError, match=f"^{tmp_path / 'forecasts'}: another run is forecasting into this folder"):
                forecast(model=predictor(2))
        return arrays(self, *args, **how)

    monkeypatch.setattr(KronosPredictor, "predict_arrays", twice)
    found = forecast()
    assert refused and same(forecast(), found), "the lock is given up at the end"


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_keeps_what_is_finished_and_the_same_command_continues(forecast, monkeypatch, tmp_path, name):
    whole = forecast(folder="whole")
    arrays, calls = KronosPredictor.predict_arrays, []

    def signalled(self, *args, **how):
        calls.append(1)
        if len(calls) == 3:
            signal.raise_signal(getattr(signal, name))
        return arrays(self, *args, **how)

    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    told = f"^stopped by {name}: 24 of 116 forecasts are kept in {tmp_path / 'forecasts'}; the same command continues$"
    with monkeypatch.context() as patch, pytest.raises(Interrupted, match=told):
        patch.setattr(KronosPredictor, "predict_arrays", signalled)
        forecast()
    assert handlers == [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    assert same(forecast(), whole) and forecast.said[0].startswith("24 of 116 forecasts were there")


def test_forecasts_made_before_an_error_are_kept(forecast, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(KronosPredictor, "predict_arrays", stopping_after(2))
        forecast()
    forecast()
    assert forecast.said[0].startswith("16 of 116 forecasts were there")


def test_another_number_at_once_goes_on_with_what_is_there(forecast):
    forecast()
    forecast(series_at_once=5)
    assert forecast.said[0].startswith("116 of 116 forecasts were there")


def test_a_damaged_part_and_what_follows_it_is_forecast_again(forecast, monkeypatch, tmp_path):
    monkeypatch.setattr(day_forecasts, "_SAVE_EVERY_S", 0)
    whole = forecast()
    parts = sorted((tmp_path / "forecasts").glob("part-*"))
    parts[4].write_bytes(parts[4].read_bytes()[:-8])
    assert same(forecast(), whole) and forecast.said[0].startswith("32 of 116")
    assert sorted((tmp_path / "forecasts").glob("part-*")) == parts


def test_days_without_a_lookback_or_behind_a_gap_are_left_out_and_counted(forecast, panel):
    origin = np.zeros(panel.n_rows, bool)
    origin[[LOOKBACK - 2, LOOKBACK - 1, N_DAYS + 10, N_DAYS + 29, N_DAYS + 30]] = True
    found = forecast(changed(panel, origin=origin, breaks=[N_DAYS + 30 - LOOKBACK + 1]), "gap")
    assert found.rows.tolist() == [LOOKBACK - 1, N_DAYS + 30]
    assert forecast.said[0] == f"left out: 3 of 5 forecasts with fewer than {LOOKBACK} bars before them"


def test_a_close_of_nothing_has_no_return_and_is_left_out(forecast, panel):
    features = panel.features.copy()
    features[[20, 30], 3] = 0
    found = forecast(changed(panel, features=features))
    assert len(found) == 114 and (found.last > 0).all()
    assert forecast.said[0] == "left out: 2 forecasts from a close of 0 or below, where returns mean nothing"


def test_what_cannot_be_forecast_is_one_message(forecast, panel, calendar):
    with pytest.raises(InputError, match=r"no day to forecast from: of 116 possible ones none has 50 bars.*lookback_window"):
        forecast(lookback=50)
    with pytest.raises(InputError, match=r"e.g. 2020-01-16, are not in the calendar of 2021.*another store"):
        forecast(at=calendar + np.timedelta64(366, "D"))
    columns = [*panel.columns[:5], dataclasses.replace(panel.columns[5], name="vwap")]
    with pytest.raises(InputError, match="forecasts need open, high, low, close, volume, amount"):
        forecast(changed(panel, columns=columns))


def test_weights_that_forecast_no_number_are_refused_by_symbol_and_day(forecast, monkeypatch):
    made = np.ones((8, 3, HORIZON, 6))
    made[5] = np.nan
    monkeypatch.setattr(KronosPredictor, "predict_arrays", lambda *args, **how: made)
    with pytest.raises(InputError, match="forecast for S01 on 2020-01-17 is not a number: its training diverged"):
        forecast()


def test_too_little_memory_names_the_setting(forecast, monkeypatch):
    def full(*args, **how):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(KronosPredictor, "predict_arrays", full)
    with pytest.raises(InputError, match=r"cpu has too little memory for 8 forecasts at once: lower inference\.series_at_once"):
        forecast()


def test_where_there_is_no_terminal_a_line_tells_rate_and_time_left(forecast, monkeypatch):
    clock = iter(range(0, 10_000, 20))
    monkeypatch.setattr(day_forecasts.time, "monotonic", lambda: next(clock))
    forecast()
    told = [text for text in forecast.said if "/s" in text]
    assert len(told) >= 3 and told[0].startswith("forecasts: 8 of 116, ") and told[0].endswith(" s left")


def test_arrays_are_forecast_as_their_frames_are(panel):
    rows = np.array([20, 57, 100])
    given = rows[:, None] + np.arange(1 - LOOKBACK, 1)
    stamps = panel.stamps[rows[:, None] + np.arange(1 - LOOKBACK, HORIZON + 1)]
    frames = [bars_frame(panel, row + 1 - LOOKBACK, row + 1) for row in rows]
    ahead = [pd.Series(wall_clock(panel, row + 1, row + 1 + HORIZON)) for row in rows]
    for how in (dict(), dict(context="fit", consistent=False)):
        model = KronosPredictor(tiny.predictor(), tiny.tokenizer(), device="cpu", max_context=12 if how else 512)
        how |= dict(sample_count=2, seed=3)
        framed = model.predict_batch(
            frames, [pd.Series(one.index) for one in frames], ahead, HORIZON, return_samples=True, verbose=False, **how
        )
        assert np.array_equal(model.predict_arrays(panel.features[given], stamps, HORIZON, **how), np.stack(framed))


def test_arrays_that_are_no_bars_are_refused(panel):
    values, stamps = np.ones((2, LOOKBACK, 6)), np.ones((2, LOOKBACK + HORIZON, 5))
    with pytest.raises(InputError, match=r"values \(2, 12, 6\) and stamps \(2, 15, 5\) do not fit: give \[B, P, 6\] and \[B, P \+ 4, 5\]"):
        predictor().predict_arrays(values, stamps[:, 1:], HORIZON)
    with pytest.raises(InputError, match=r"values \(12, 6\) and"):
        predictor().predict_arrays(values[0], stamps[0], HORIZON)
    values[1, 3, 5] = np.inf
    with pytest.raises(InputError, match="1 of 2 series hold bars that are not finite"):
        predictor().predict_arrays(values, stamps, HORIZON)


def test_a_calendar_goes_on_by_the_rhythm_of_its_weeks():
    weekdays = pd.bdate_range("2024-01-02", "2024-06-05").drop("2024-05-30")  # a Thursday's holiday is not repeated
    assert np.array_equal(continued(weekdays.as_unit("ns").to_numpy(), 7), pd.bdate_range("2024-06-06", periods=7))
    crypto = pd.date_range("2024-01-01", periods=100, freq="4h").as_unit("ns")
    assert np.array_equal(continued(crypto.to_numpy(), 9), pd.date_range(crypto[-1], periods=10, freq="4h")[1:])
    hours = pd.to_timedelta(["10h30m", "11h30m", "14h", "15h"])
    shares = pd.DatetimeIndex([day + hour for day in weekdays for hour in hours][:-3])  # ends at Wednesday's first bar
    ahead = continued(shares.as_unit("ns").to_numpy(), 12)
    assert ahead.astype("datetime64[m]").astype(str)[[0, 2, 3, 11]].tolist() == [
        "2024-06-05T11:30",
        "2024-06-05T15:00",
        "2024-06-06T10:30",
        "2024-06-10T10:30",
    ]


def test_a_calendar_without_weeks_goes_on_by_its_step():
    few = pd.date_range("2024-01-01", periods=3).as_unit("ns").to_numpy()
    assert np.array_equal(continued(few, 2), few[-1] + np.array([1, 2], "timedelta64[D]"))
    monthly = pd.date_range("2024-01-01", periods=6, freq="MS").as_unit("ns").to_numpy()
    assert np.array_equal(continued(monthly, 1), monthly[-1:] + np.timedelta64(31, "D"))


def test_the_benchmark_tells_forecasts_per_second():
    report = benchmark.main(["--symbols", "1", "--days", "1", "--rounds", "1"])
    assert len(report.rows) == 1 and report.rows[0].passed and report.rows[0].seen.endswith("/s")
    assert report.details["forecasts"] == "1 (1 symbols x 1 days)"


def test_the_benchmark_finds_the_bits_that_a_rounding_of_z_scores_turns():
    tokenizer = tiny.tokenizer().double().eval()
    ours = np.random.default_rng(0).normal(size=(3, LOOKBACK, 6)).astype(np.float32)
    theirs = ours.copy()
    theirs[1] += 0.5
    turned = [tokenizer.encode(torch.from_numpy(z).double()) for z in (ours, theirs)]
    count = sum(int(bit) for a, b in zip(*turned, strict=True) for one in (a ^ b).flatten().tolist() for bit in f"{one:b}")
    assert count
    told = benchmark._turned(tokenizer, ours, theirs, np.array([True, True, False]))
    assert told.startswith("2 of 3 forecasts differ, 1 of them with a turned bit in the window; z-scores differ by up to 5.0e-01")
    assert f"turns {count} of " in told and "bits, in 1 windows, which lie within" in told
    assert "turns 0 of " in benchmark._turned(tokenizer, ours, ours, np.array([False] * 3))


def test_known_days_to_come_go_before_the_rhythm(calendar):
    odd = np.append(calendar[:-1], np.datetime64("2020-03-07", "ns"))  # a Saturday that trades
    assert stamps_ahead(odd, odd[-2:-1], 2)[0, :, 2:4].tolist() == [[5, 7], [0, 9]]
