"""Windows for the Temporal Fusion Transformer: what a batch may know, and in which order batches come."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import tft_tiny
import torch
from tft_world import AHEAD, CALENDAR, MANIFEST, NAMES, TARGETS, E, P, changed, column, everything, period_of, windows, world

from finetune.engine.batches import plan_epoch, step_micros
from finetune.engine.distributed import World
from finetune.engine.settings import FitSettings
from kronos.errors import InputError
from tft.target_panel import close_times
from tft.windows import SplitRule


def test_a_batch_is_what_the_panel_says_around_each_origin():
    """Against a slow transcription: encoder rows end at t, the decoder row has the calendar alone, the label is targets[t]."""
    panel = world(breaks=(200,))
    made = windows(panel)
    assert made.columns[:3] == (("x", "y@1d"), ("time_of_day_sin", "time_of_day_cos"), ("regime", "hour_category"))
    for source in (*made.splits, made.everything()):
        batch, rows = everything(source), source.rows()
        edges = np.array([*panel.offsets[1:], 200])
        assert not ((rows[:, None] - E + 1 < edges) & (edges <= rows[:, None] + P)).any(), "no window crosses a series' end or a break"
        for b, t in list(enumerate(rows.tolist()))[::7]:
            past, whole = slice(t - E + 1, t + 1), slice(t - E + 1, t + P + 1)
            np.testing.assert_array_equal(batch["past"][b], np.stack([column(panel, "x")[past], column(panel, "y@1d")[past]], 1))
            known = np.stack([column(panel, name)[whole] for name in made.columns.known], 1)
            np.testing.assert_array_equal(batch["known"][b], known)
            hours = column(panel, "hour_category")[whole]
            values = np.array([0, *made.vocabulary.categories["hour_category"]])
            np.testing.assert_array_equal(values[batch["categorical"][b, :, 1]], hours)
            assert batch["categorical"][b, :E, 0].tolist() == column(panel, "regime")[past].tolist(), "0..3 are their own codes"
            assert batch["categorical"][b, E:, 0].tolist() == [0], "a category that is no calendar is not known ahead"
            info = panel.series[np.searchsorted(panel.offsets, t, side="right") - 1]
            mean, std = made.scales.of(info.symbol, info.period)[:, 0]
            np.testing.assert_allclose(batch["targets"][b], [panel.targets[t, 0], (panel.targets[t, 1] - mean) / std], rtol=1e-5)
            assert batch["row"][b] == t
            codes = [made.vocabulary.symbols.index(info.symbol) + 1, made.vocabulary.periods.index(info.period) + 1]
            assert batch["static"][b].tolist() == codes and batch["period"][b] == codes[1]


@pytest.mark.parametrize("place", [0, 0.5, 1])
def test_nothing_after_an_origin_changes_its_inputs(place):
    """Every bar that closes later, in any series, and every label made of one is replaced; inputs must be bit-equal."""
    panel = world()
    made = windows(panel, past_targets=TARGETS, scale_inputs=True)
    rows, closes, changes = made.val.rows(), close_times(panel), 0
    for period in AHEAD:
        of_period = np.flatnonzero(period_of(panel, rows) == period)
        index = of_period[[int(place * (len(of_period) - 1))]]
        now = closes[rows[index[0]]]
        later, features, targets = closes > now, panel.features.copy(), panel.targets.copy()
        touched = [k for k, name in enumerate(NAMES) if name not in CALENDAR]
        features[np.ix_(later, touched)] = np.where(features[np.ix_(later, touched)] == 1, 2, 1)
        for k, horizon in enumerate(MANIFEST["targets"][name]["horizon"] for name in TARGETS):
            ahead = np.array([horizon[info.period] for info in panel.series])[
                np.searchsorted(panel.offsets, np.arange(len(closes)), "right") - 1
            ]
            target = np.arange(len(closes)) + ahead
            unknown = (target >= len(closes)) | (closes[np.minimum(target, len(closes) - 1)] > now)
            targets[unknown, k] = 1 - targets[unknown, k]
        other = windows(changed(panel, features=features, targets=targets), past_targets=TARGETS, scale_inputs=True)
        at = np.flatnonzero(other.val.rows() == rows[index[0]])
        before, after = made.val.gather(index), other.val.gather(at)
        for name in ("past", "known", "categorical", "static", "period"):
            assert torch.equal(before[name], after[name]), name
        changes += not torch.equal(before["targets"], after["targets"])
    assert changes == 3, "the label is made of what comes after, so it does change"


def test_a_past_target_enters_lagged_by_its_own_horizon_in_each_period():
    panel = world(breaks=(100,))
    made = windows(panel, past_targets=TARGETS)
    assert made.columns.past == ("x", "y@1d", "target_up_lag", "target_move_lag")
    batch, rows = everything(made.train), made.train.rows()
    for b, t in list(enumerate(rows.tolist()))[::11]:
        s = int(np.searchsorted(panel.offsets, t, side="right") - 1)
        info = panel.series[s]
        for k, name in enumerate(TARGETS):
            place = made.scales.names.index(name if name == "target_move" else "target_up_lag")
            mean, std = made.scales.of(info.symbol, info.period)[:, place]
            source = np.arange(t - E + 1, t + 1) - MANIFEST["targets"][name]["horizon"][info.period]
            known = np.where(source >= panel.offsets[s], panel.targets[np.maximum(source, 0), k], np.nan)
            np.testing.assert_allclose(batch["past"][b, :, 2 + k], np.nan_to_num((known - mean) / std), rtol=1e-4, atol=1e-6)


def test_blocks_hold_consecutive_windows_and_every_window_comes_up():
    made = windows(world(breaks=(300,)))
    blocks = made.in_blocks(8).train
    assert blocks.alone == 0 and blocks.distinct == len(made.train)
    seen = blocks.windows_at(np.arange(len(blocks))).reshape(-1, 8)
    rows = made.train.rows()[seen]
    assert (np.diff(rows, axis=1) == 1).all() and set(seen.reshape(-1)) == set(range(len(made.train)))
    assert seen.size < len(made.train) + 8 * 7, "at most one block of a run repeats windows"
    batch, plain = blocks.gather(np.array([3, 0])), made.train.gather(seen[[3, 0]].reshape(-1))
    assert batch["blocks"].shape == (2, 8) and all(torch.equal(batch[name], plain[name]) for name in plain if name != "targets")
    np.testing.assert_array_equal(batch["targets"], plain["targets"])
    with pytest.raises(InputError, match="no 9999 training windows follow each other"):
        made.in_blocks(9999)


def test_the_order_of_blocks_is_the_same_on_any_number_of_ranks_and_from_any_position():
    source = windows().in_blocks(8).train
    settings = FitSettings(batch_size=2, seed=3)
    orders = {}
    for size in (1, 2):
        each = replace(settings, accumulation_steps=2 // size)
        plan = plan_epoch(source, each, World())
        assert plan.per_epoch == len(source)
        micros = [
            m.index.tolist()
            for first in range(0, len(source), 4)
            for rank in range(size)
            for m in step_micros(source, each, World(rank=rank, size=size), 1, first, min(first + 4, len(source)))
            if m.real
        ]
        orders[size] = [block for micro in micros for block in micro]
    assert orders[1] == orders[2] and sorted(orders[1]) == list(range(len(source))) and orders[1] != sorted(orders[1])
    resumed = [m.index.tolist() for m in step_micros(source, replace(settings, accumulation_steps=2), World(), 1, 8, 12)]
    assert [block for micro in resumed for block in micro] == orders[1][8:12]


def test_validation_in_order_says_where_windows_follow_each_other_and_forecasts_stay_equal():
    made = windows(past_targets=["target_up"])
    val = made.in_blocks(8).val
    batch = val.gather(np.arange(5, 12))
    assert batch["blocks"].shape == (1, 7) and len(val) == len(made.val)
    edge = int(made.val.windows.first_of_run[1])
    assert "blocks" not in val.gather(np.arange(edge - 2, edge + 2)) and "blocks" not in made.val.gather(np.arange(5))
    sizes = {**tft_tiny.SIZES, **made.sizes}
    task = tft_tiny.task(targets={"target_up": "focal", "target_move": "SmoothL1"}, **sizes).eval()
    plain, shared = task(made.val.gather(np.arange(5, 12))), task(batch)
    torch.testing.assert_close(plain.loss, shared.loss, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("end", [900, 1439])
def test_a_forecast_from_the_newest_bar_has_the_inputs_that_history_will_show(end):
    """A panel that ends at bar t against the same panel with later bars: future calendar included, bit for bit."""
    panel = world(("BTC",), ("1h",))
    cut = {name: getattr(panel, name)[:end] for name in ("features", "stamps", "times", "origin", "targets")}
    made = windows(panel, encoder=E, prediction=P)
    now = windows(changed(panel, **cut, offsets=np.array([0, end])), scales=made.scales, vocabulary=made.vocabulary)
    newest = now.predict(newest=3)
    assert newest.rows().tolist() == [end - 3, end - 2, end - 1] and len(newest) == 3
    later = made.everything()
    batch, history = everything(newest), later.gather(np.searchsorted(later.rows(), newest.rows()))
    for name in ("past", "known", "categorical", "static", "period", "row"):
        assert torch.equal(batch[name], history[name]), name
    assert batch["targets"].isnan().all() and newest.future[:, 0].tolist() == panel.times[newest.rows() + 1].tolist()
    assert newest.stamps(np.arange(3)).tolist() == panel.stamps[newest.rows() + 1][:, None].tolist()


def test_newest_bars_of_a_market_that_closes_need_its_calendar():
    panel = world(("SPX",), ("1d",), days=90)
    open_days = np.flatnonzero(panel.stamps[:, 2] < 5)
    kept = {name: getattr(panel, name)[open_days] for name in ("features", "stamps", "times", "origin", "targets")}
    made = windows(changed(panel, **kept, offsets=np.array([0, len(open_days)])), rule=SplitRule("ratio", 0.3, 0.0))
    with pytest.raises(InputError, match=r"SPX 1d: .*this market closes"):
        made.predict()
    last = pd.Timestamp(int(made.panel.times[-1]))
    future = pd.Timestamp(int(made.predict(calendar="XNYS").future[0, 0]))
    assert last.day_name() == "Friday" or future - last == pd.Timedelta(days=1)
    assert future.day_of_week < 5 and future > last


def test_what_is_known_ahead_must_come_from_the_calendar_to_forecast_from_the_newest_bar():
    noted = {**MANIFEST, "calendar": {"time_of_day_sin": CALENDAR["time_of_day_sin"]}}
    made = windows(manifest=noted)
    with pytest.raises(InputError, match="'time_of_day_cos' is not a calendar column"):
        made.predict()
    assert (everything(made.val)["categorical"][:, E:] == 0).all(), "hours are not in this calendar either"


def test_columns_that_lie_side_by_side_are_not_copied():
    made = windows(reals=["x"])
    assert made.table.reals.data_ptr() != made.panel.features.ctypes.data, "one of six columns is copied out, or a window would copy six"
    panel = world()
    order = [0, 3, 1, 4, 2, 5]
    sorted_panel = changed(panel, features=panel.features[:, order], columns=[panel.columns[k] for k in order])
    straight, moved = windows(sorted_panel), windows(panel)
    assert straight.table.reals.data_ptr() == sorted_panel.features.ctypes.data
    for a, b in zip(straight.splits, moved.splits, strict=True):
        assert torch.equal(everything(a)["past"], everything(b)["past"]) and torch.equal(everything(a)["known"], everything(b)["known"])


def test_a_resumed_run_with_other_windows_is_told_apart():
    facts = [
        windows(**options).train.facts for options in ({}, {"targets": TARGETS[::-1]}, {"past_targets": ["target_up"]}, {"encoder": 7})
    ]
    assert len({str(f) for f in facts}) == 4 and windows().train.facts == facts[0]
    assert windows().in_blocks(4).train.facts != facts[0]
