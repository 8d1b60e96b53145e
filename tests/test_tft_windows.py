"""Windows for the Temporal Fusion Transformer: what a batch may know, what a split may, and in which order they come."""

from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest
import tft_tiny
import torch

from finetune.data.panel import Column, Panel, SeriesInfo
from finetune.data.timestamps import stamp_features
from finetune.engine.batches import plan_epoch, step_micros
from finetune.engine.distributed import World
from finetune.engine.settings import FitSettings
from kronos.errors import InputError
from tft.indicators_calendar import calendar_rows
from tft.scales import Scales
from tft.target_panel import close_times
from tft.vocabulary import Vocabulary
from tft.windows import SplitRule, make_windows

HOUR = 3_600 * 10**9
START = pd.Timestamp("2022-03-01").value
LENGTH = {"1h": 1, "4h": 4, "1d": 24}
AHEAD = {"1h": 5, "4h": 3, "1d": 2}  # the horizon of target_up; target_move looks one bar less ahead
E, P, DAYS = 6, 1, 60
TARGETS = ("target_up", "target_move")
CALENDAR = {"time_of_day_sin": ["time_of_day", "sin"], "time_of_day_cos": ["time_of_day", "cos"], "hour_category": ["hour_category", ""]}
MANIFEST = {
    "calendar": CALENDAR,
    "targets": {"target_up": {"horizon": AHEAD}, "target_move": {"horizon": {period: h - 1 for period, h in AHEAD.items()}}},
}
NAMES = {"x": "past", "time_of_day_sin": "known", "regime": "categorical", "y@1d": "past", "time_of_day_cos": "known"}
NAMES |= {"hour_category": "categorical"}
quiet = lambda text: None  # noqa: E731


def labels(path: np.ndarray, period: str) -> np.ndarray:
    """[n, 2] of a random walk: whether it rises over the horizon, and by how much over one bar less."""
    out = np.full((len(path), 2), np.nan)
    h = AHEAD[period]
    out[:-h, 0] = path[h:] > path[:-h]
    out[: -(h - 1), 1] = path[h - 1 :] - path[: -(h - 1)]
    return out


def world(symbols=("BTC", "ETH"), periods=("1h", "4h", "1d"), days=DAYS, seed=0, breaks=(), short=None) -> Panel:
    """Walks of several symbols at several periods, a level and a spread of their own each; `short` (symbol, period, rows)."""
    draw = np.random.default_rng(seed)
    series, parts, marks, times = [], [], [], []
    for number, (symbol, period) in enumerate((symbol, period) for symbol in symbols for period in periods):
        count = short[2] if short and short[:2] == (symbol, period) else 24 * days // LENGTH[period]
        opens = START + np.arange(count) * LENGTH[period] * HOUR
        path = np.cumsum(draw.normal(0.1 * number, 1 + number, count))
        columns = {"x": path, "y@1d": draw.normal(size=count), "regime": draw.integers(0, 4, count)}
        known = calendar_rows(CALENDAR, list(CALENDAR), stamp_features(opens))
        columns |= {name: known[:, k] for k, name in enumerate(CALENDAR)}
        parts.append(np.stack([columns[name] for name in NAMES], 1))
        marks.append(labels(path, period))
        times.append(opens)
        series.append(SeriesInfo(symbol, period))
    return Panel.build(
        features=np.concatenate(parts),
        stamps=stamp_features(np.concatenate(times)),
        times=np.concatenate(times),
        offsets=np.cumsum([0, *map(len, times)]),
        breaks=np.array(breaks),
        series=series,
        columns=[Column(name, kind) for name, kind in NAMES.items()],
        targets=np.concatenate(marks),
        target_names=TARGETS,
    )


def changed(panel: Panel, **arrays) -> Panel:
    names = ("features", "stamps", "times", "offsets", "breaks", "origin", "series", "columns", "targets", "target_names", "stamp")
    return Panel.build(**{**{name: getattr(panel, name) for name in names}, **arrays})


def windows(panel=None, manifest=MANIFEST, **options):
    plain = dict(targets=TARGETS, real_targets=["target_move"], encoder=E, prediction=P, say=quiet)
    return make_windows(world() if panel is None else panel, manifest, **{**plain, **options})


def everything(source) -> dict:
    return source.gather(np.arange(len(source)))


def period_of(panel, rows) -> np.ndarray:
    return np.array([panel.series[s].period for s in np.searchsorted(panel.offsets, rows, side="right") - 1])


def column(panel, name) -> np.ndarray:
    return panel.features[:, list(NAMES).index(name)]


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


@pytest.mark.parametrize("rule", [SplitRule(), SplitRule("days", val_days=12, test_days=9), SplitRule(train_until="2022-04-10 07:00")])
def test_labels_end_before_a_cut_and_the_next_split_begins_a_horizon_after_it(rule):
    panel = world()
    made, closes = windows(panel, rule=rule), close_times(panel)
    for before, after, cut in ((made.train, made.val, made.cuts[0]), (made.val, made.test, made.cuts[1])):
        for period, ahead in AHEAD.items():
            last, first = (source.rows()[period_of(panel, source.rows()) == period] for source in (before, after))
            assert closes[last + ahead].max() <= cut
            assert closes[first].min() >= cut + ahead * LENGTH[period] * HOUR
            assert closes[last + ahead].max() > cut - LENGTH[period] * HOUR, "no more than that is lost"
            assert closes[first].min() < cut + (ahead + 1) * LENGTH[period] * HOUR
    if rule.train_until:
        assert made.cuts[0] == pd.Timestamp(rule.train_until).value
    if rule.val_mode == "days":
        assert [int(panel.times.max() - cut) / HOUR / 24 for cut in made.cuts] == [21, 9]


def test_what_comes_after_training_changes_no_statistic():
    panel = world()
    made = windows(panel, past_targets=TARGETS, scale_inputs=True)
    closes, features, targets = close_times(panel), panel.features.copy(), panel.targets.copy()
    used = np.zeros(panel.n_rows, bool)
    used[made.train.rows()] = True
    features[closes > made.cuts[0]] += 7
    targets[~used] = 3.0
    other = windows(changed(panel, features=features, targets=targets), past_targets=TARGETS, scale_inputs=True)
    assert made.scales.as_dict() == other.scales.as_dict()
    targets[made.train.rows()[-1], 1] += 5
    assert windows(changed(panel, targets=targets)).scales.as_dict() != windows(panel).scales.as_dict()


def test_real_targets_are_standardised_by_symbol_and_period_and_come_back():
    panel = world()
    made = windows(panel)
    rows, values = made.train.rows(), made.train.targets()
    for s in range(panel.n_series):
        own = values[np.searchsorted(panel.offsets, rows, side="right") - 1 == s, 1]
        assert abs(np.nanmean(own)) < 1e-4 and abs(np.nanstd(own) - 1) < 1e-4
    assert set(np.unique(values[:, 0])) == {0, 1}, "classes stay as they are"
    np.testing.assert_allclose(made.scales.inverse(panel, rows, "target_move", values[:, 1]), panel.targets[rows, 1], rtol=1e-3, atol=1e-3)
    quantiles = np.stack([values[:, 1]] * 3, 1)
    assert made.scales.inverse(panel, rows, "target_move", quantiles).shape == (len(rows), 3)
    np.testing.assert_array_equal(made.scales.inverse(panel, rows, "target_up", values[:, 0]), values[:, 0])
    read = Scales.from_dict(made.scales.as_dict())
    assert read.as_dict() == made.scales.as_dict() and windows(panel, scales=read).train.facts == made.train.facts


def test_a_series_with_few_training_labels_takes_its_periods_statistics():
    panel = world(periods=("1d",), short=("ETH", "1d", 48))
    scales = windows(panel, rule=SplitRule(train_until="2022-04-22", test_ratio=0)).scales
    cut = windows(panel, rule=SplitRule("ratio", 0.6, 0.1))  # 17 days of training or so
    assert (scales.of("ETH", "1d") != scales.of("BTC", "1d")).all()
    assert (cut.scales.of("ETH", "1d") == cut.scales.of("", "1d")).all() and (scales.of("new", "1d") == scales.of("", "1d")).all()
    np.testing.assert_array_equal(scales.of("new", "5min"), scales.of("", ""))
    draw, rows = np.random.default_rng(0), np.flatnonzero(np.arange(panel.n_rows) % 60 < 30)
    values = draw.normal(1e3, 1, (panel.n_rows, 1))
    found = Scales.fit(panel, values, ["v"], rows).of("", "1d")[:, 0]
    np.testing.assert_allclose(found, [values[rows].mean(), values[rows].std()], rtol=1e-12)


def test_groups_that_are_too_short_are_left_out_by_name():
    said = []
    made = windows(world(short=("ETH", "1d", E)), say=said.append)
    assert made.left_out == ["ETH 1d (6 rows in a row)"] and "shorter than encoder 6 + prediction 1: ETH 1d" in said[0]
    assert "ETH" in made.vocabulary.symbols and not (period_of(made.panel, made.train.rows()) == "").any()
    with pytest.raises(InputError, match="every group is shorter than encoder 2000"):
        windows(encoder=2000)


def test_a_focus_period_restricts_origins_and_nothing_else():
    whole, focus = windows(), windows(focus_period="4h")
    for a, b in zip(whole.splits, focus.splits, strict=True):
        rows = a.rows()
        assert b.rows().tolist() == rows[period_of(whole.panel, rows) == "4h"].tolist() != []
    assert focus.cuts == whole.cuts and focus.sizes == whole.sizes
    with pytest.raises(InputError, match=r"focus_period: '2h' .* 1d, 1h, 4h"):
        windows(focus_period=["1h", "2h"])


def test_windows_without_any_label_are_left_out_and_partly_labelled_ones_are_masked():
    panel = world()
    rows = windows(panel).train.rows()
    targets = panel.targets.copy()
    targets[rows[10]], targets[rows[20], 1] = np.nan, np.nan
    made = windows(changed(panel, targets=targets))
    assert made.train.rows().tolist() == np.delete(rows, 10).tolist()
    assert made.train.gather(np.array([19]))["targets"].isnan().tolist() == [[False, True]]
    assert set(made.everything().rows()) >= {rows[10], *rows}


def test_categories_are_registered_over_all_splits_and_unseen_ones_are_unknown():
    panel = world()
    features = panel.features.copy()
    features[int(panel.offsets[1]) - 10, 2] = 9  # in the test of the first series alone
    made = windows(changed(panel, features=features))
    assert made.vocabulary.categories["regime"] == (1, 2, 3, 9) and made.sizes["categories"] == (5, 25) and made.sizes["statics"] == (3, 4)
    given = Vocabulary(("ADA", "BTC"), ("1h", "4h", "1d"), {"regime": (2, 9), "hour_category": (1,)})
    assert given.codes("regime", np.array([0, 1, 2, 9, 10])).tolist() == [0, 0, 1, 2, 0]
    other = windows(panel, vocabulary=given)
    static = everything(other.train)["static"]
    eth = np.array([panel.series[s].symbol == "ETH" for s in np.searchsorted(panel.offsets, other.train.rows(), side="right") - 1])
    assert (static[eth, 0] == 0).all() and (static[~eth, 0] == 2).all() and other.sizes["statics"] == (3, 4)
    assert Vocabulary.from_dict(given.as_dict()) == given and given.period_names == ["", "1h", "4h", "1d"]
    assert Vocabulary.register([world(("A",)), world(("B", "A"), ("1h",))]).symbols == ("A", "B")


def test_clients_with_one_vocabulary_have_one_shape_and_scales_of_their_own():
    clients = [world((symbol,), seed=n) for n, symbol in enumerate(("BTC", "ETH"))]
    vocabulary = Vocabulary.register(clients)
    made = [windows(panel, vocabulary=vocabulary) for panel in clients]
    assert made[0].sizes == made[1].sizes
    assert made[0].scales.of("BTC", "1h").tolist() != made[1].scales.of("ETH", "1h").tolist()
    assert [int(everything(m.train)["static"][0, 0]) for m in made] == [1, 2]


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


def test_training_that_ends_before_the_thresholds_date_is_warned_of():
    noted = {**MANIFEST, "train_until": "2022-04-20T00:00:00+00:00", "thresholds": {"target_up": {}}}
    said = []
    windows(manifest=noted, rule=SplitRule(train_until="2022-04-10"), say=said.append)
    assert len(said) == 1 and "set train_until: 2022-04-20T00:00:00+00:00" in said[0]
    windows(manifest=noted, rule=SplitRule(train_until="2022-04-20"), say=said.append)
    assert len(said) == 1


def test_training_by_the_rule_that_the_targets_were_made_by_ends_where_their_thresholds_do():
    """Fusion drops rows, so that the same share of those left would end elsewhere."""
    rule = SplitRule("ratio", 0.3, 0.1)
    noted = {**MANIFEST, "train_until": "2022-04-20T00:00:00+00:00", "thresholds": {"target_up": {}}, "split": asdict(rule)}
    said = []
    same = windows(manifest=noted, rule=rule, say=said.append)
    assert not said and same.cuts[1] == windows(rule=rule).cuts[1]
    other = windows(manifest=noted, rule=SplitRule("ratio", 0.35, 0.1))
    assert pd.Timestamp(same.cuts[0], tz="UTC").isoformat() == noted["train_until"] != pd.Timestamp(other.cuts[0], tz="UTC").isoformat()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"targets": ["target_upp"]}, r"targets: 'target_upp' is not among the targets .*target_up.*it has target_up, target_move"),
        ({"reals": ["x", "z"]}, r"reals: the panel has no column 'z'; it has x, "),
        ({"reals": ["x", "regime"]}, r"reals: 'regime' is named twice"),
        ({"reals": ["regime"], "categoricals": []}, r"'regime' holds categories"),
        ({"categoricals": ["y@1d"], "reals": ["x"]}, r"categoricals: column 'y@1d' holds -?\d.*whole numbers from 0"),
        ({"manifest": {}}, r"target_up: how many 1h bars it looks ahead is not known"),
        (
            {"rule": SplitRule(train_until="2022-04-29 20:00", test_ratio=0)},
            r"the val split has no window: .*training to 2022-04-29T20:00",
        ),
        ({"rule": SplitRule("days", val_days=1, test_days=0.1), "focus_period": "1d"}, r"val split has no window"),
        ({"rule": SplitRule(train_until="2022-04-29", test_ratio=0.5)}, r"validation would end 2022-\d\d-\d\dT.* before training"),
    ],
)
def test_what_cannot_be_is_said_in_one_message(options, told):
    with pytest.raises(InputError, match=told):
        windows(**options)


def test_a_table_without_manifest_needs_its_horizon_and_has_no_constant_column():
    panel = world()
    made = windows(panel, manifest={}, horizon=AHEAD)
    assert made.train.rows().tolist() == windows(panel).train.rows().tolist()
    assert len(windows(panel, manifest={}, horizon=30, focus_period="1h").train) < len(windows(panel, focus_period="1h").train)
    features = panel.features.copy()
    features[:, 3] = 2.5
    with pytest.raises(InputError, match=r"1 columns have the same value in all .* y@1d = 2.5"):
        windows(changed(panel, features=features), manifest={}, horizon=AHEAD)
