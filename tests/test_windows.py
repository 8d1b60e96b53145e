"""Windows and splits: what they contain, what they never cross, in what order they come."""

import numpy as np
import pytest
import torch
from bars import make_frame, make_panel

from finetune.data.panel import KRONOS_NAMES, Panel, SeriesInfo
from finetune.engine.splits import make_splits, time_at_share
from finetune.engine.windows import epoch_order, sample_subset
from kronos.errors import InputError

L, H = 12, 4
LENGTH = L + H + 1


def quiet(_: str) -> None:
    return None


def splits(panel, ratios=(0.7, 0.2, 0.1), **options):
    return make_splits(panel, L, H, ratios, say=quiet, **options)


def all_starts(windows):
    return windows.start_rows(np.arange(len(windows)))


def series_of(panel, rows):
    return np.searchsorted(panel.offsets, rows, side="right") - 1


def test_no_window_crosses_from_one_series_into_the_next():
    panel = make_panel(4, [60, 100, 80, 17 + LENGTH])
    for windows in splits(panel, (0.6, 0.2, 0.2)):
        starts = all_starts(windows)
        assert len(starts) == len(set(starts.tolist())) > 0
        assert (series_of(panel, starts) == series_of(panel, starts + LENGTH - 1)).all()


def test_every_training_bar_is_earlier_than_every_validation_lookahead_bar_of_every_series():
    frames = [
        make_panel(1, n, seed=i, start=start) for i, (n, start) in enumerate([(120, "2020-01-01"), (60, "2020-01-04"), (90, "2020-01-02")])
    ]
    panel = Panel.build(
        features=np.concatenate([p.features for p in frames]),
        stamps=np.concatenate([p.stamps for p in frames]),
        times=np.concatenate([p.times for p in frames]),
        offsets=np.cumsum([0] + [p.n_rows for p in frames]),
        series=[SeriesInfo(f"S{i}") for i in range(3)],
        stamp="open",
    )
    train, val, test = splits(panel, (0.6, 0.2, 0.2))
    last_train = panel.times[all_starts(train) + LENGTH - 1].max()
    val_lookahead = panel.times[all_starts(val) + L]
    last_val = panel.times[all_starts(val) + LENGTH - 1].max()
    assert last_train < val_lookahead.min()
    assert last_val < panel.times[all_starts(test) + L].min()
    assert panel.times[all_starts(val)].min() <= last_train  # a validation lookback may reach back into training


def test_a_window_starts_at_every_allowed_row_and_nowhere_else():
    panel = make_panel(2, 100)
    train, val, _ = splits(panel, (0.8, 0.2, 0.0))
    assert all_starts(train).tolist() == [*range(0, 80 - LENGTH + 1), *range(100, 180 - LENGTH + 1)]
    assert all_starts(val).tolist() == [*range(80 - L, 100 - LENGTH + 1), *range(180 - L, 200 - LENGTH + 1)]


def test_windows_never_straddle_a_break_and_start_only_where_origin_allows():
    whole = make_panel(2, 100)
    origin = np.ones(200, bool)
    origin[30:40] = False
    panel = Panel.build(
        features=whole.features,
        stamps=whole.stamps,
        times=whole.times,
        offsets=whole.offsets,
        series=whole.series,
        stamp="open",
        origin=origin,
        breaks=np.array([50, 150]),
    )
    starts = all_starts(splits(panel, (0.8, 0.2, 0.0)).train)
    for begin in (50, 150):
        assert not ((starts < begin) & (starts + LENGTH > begin)).any()
    last_lookback = starts + L - 1
    assert origin[last_lookback].all()
    expected = [s for a, b in ((0, 50), (50, 80), (100, 150), (150, 180)) for s in range(a, b - LENGTH + 1) if origin[s + L - 1]]
    assert starts.tolist() == expected


def test_gathered_bars_are_the_panels_rows_normalised_by_the_lookback_alone():
    panel = make_panel(2, 80)
    train = splits(panel, (0.7, 0.3, 0.0)).train
    index = np.array([0, 7, len(train) - 1])
    batch = train.gather(index)
    for b, start in enumerate(train.start_rows(index)):
        raw = panel.features[start : start + LENGTH].astype(np.float64)
        expected = np.clip((raw - raw[:L].mean(0)) / (raw[:L].std(0) + 1e-5), -5, 5)
        np.testing.assert_allclose(batch["x"][b].numpy(), expected, atol=2e-4)
        np.testing.assert_array_equal(batch["stamps"][b].numpy(), panel.stamps[start : start + LENGTH])
    unclipped = batch["x"].abs() < 5
    raw = torch.stack([torch.from_numpy(panel.features[s : s + LENGTH].copy()) for s in train.start_rows(index)])
    torch.testing.assert_close((batch["x"] * batch["scale"] + batch["loc"])[unclipped], raw[unclipped], rtol=1e-4, atol=1e-2)


def test_changing_the_future_of_a_window_changes_nothing_in_its_normalised_lookback():
    """Fault 5 of the public code: it normalises with the whole window, future included."""
    frame = make_frame(LENGTH)
    changed = frame.copy()
    changed.loc[L:, list(KRONOS_NAMES)] *= 3.0
    batches = []
    for bars in (frame, changed):
        base = make_panel(1, LENGTH)
        panel = Panel.build(
            features=bars[list(KRONOS_NAMES)].to_numpy(np.float32),
            stamps=base.stamps,
            times=base.times,
            offsets=base.offsets,
            series=base.series,
            stamp="open",
        )
        batches.append(make_splits(panel, L, H, (1.0, 0.0, 0.0), say=quiet).train.gather(np.array([0])))
    assert torch.equal(batches[0]["x"][:, :L], batches[1]["x"][:, :L])
    assert torch.equal(batches[0]["loc"], batches[1]["loc"])
    assert not torch.equal(batches[0]["x"][:, L:], batches[1]["x"][:, L:])


def test_a_constant_column_of_huge_numbers_normalises_to_exactly_zero():
    base = make_panel(1, 60)
    features = base.features.copy()
    features[:, 4] = 1_234_567_936.0
    panel = Panel.build(features=features, stamps=base.stamps, times=base.times, offsets=base.offsets, series=base.series, stamp="open")
    assert (splits(panel, (0.5, 0.5, 0.0)).train.gather(np.arange(5))["x"][..., 4] == 0).all()


def test_an_epoch_holds_every_window_exactly_once_whatever_the_number_of_ranks():
    """Fault 4 of the public code: 2 loader workers give every sample twice."""
    train = splits(make_panel(3, 90), (0.8, 0.2, 0.0)).train
    n = len(train)
    for epoch in (0, 1):
        order = epoch_order(train, n, epoch, seed=5, first=0, last=n)
        assert sorted(order.tolist()) == list(range(n))
    assert epoch_order(train, n, 0, 5, 0, n).tolist() != epoch_order(train, n, 1, 5, 0, n).tolist()
    assert epoch_order(train, n, 0, 5, 10, 20).tolist() == epoch_order(train, n, 0, 5, 0, n)[10:20].tolist()


def test_short_epochs_go_on_where_the_last_one_ended_until_all_windows_were_seen():
    train = splits(make_panel(2, 70), (0.8, 0.2, 0.0)).train
    n, per_epoch = len(train), 13
    seen = np.concatenate([epoch_order(train, per_epoch, e, 3, 0, per_epoch) for e in range(-(-n // per_epoch))])
    assert set(seen[:n].tolist()) == set(range(n))


def test_the_validation_subset_is_the_same_for_the_same_seed_and_spread_over_all():
    val = splits(make_panel(3, 200), (0.5, 0.5, 0.0)).val
    a, b = sample_subset(val, 40, seed=1), sample_subset(val, 40, seed=1)
    assert torch.equal(a.gather(np.arange(40))["x"], b.gather(np.arange(40))["x"]) and a.facts == b.facts
    assert len(set(a.chosen.tolist())) == 40 and a.chosen.max() - a.chosen.min() > len(val) * 0.7
    assert sample_subset(val, 0, 1) is val and sample_subset(val, 10**6, 1) is val


def test_an_empty_split_is_an_error_that_names_ratio_and_need():
    """Fault 8 of the public code: an empty validation set gives loss 0, which is then best for ever."""
    with pytest.raises(InputError, match=r"val split has no window.*val_ratio 0\.02.*needs 5 rows"):
        splits(make_panel(2, 100), (0.98, 0.02, 0.0))
    assert len(splits(make_panel(2, 100), (0.8, 0.2, 0.0)).test) == 0  # a ratio of 0 asks for none


def test_per_symbol_cuts_each_series_by_its_own_length_and_warns():
    said = []
    panel = make_panel(2, [60, 200])
    train, val, _ = make_splits(panel, L, H, (0.5, 0.5, 0.0), split="per_symbol", say=said.append)
    assert all_starts(train).tolist() == [*range(0, 30 - LENGTH + 1), *range(60, 160 - LENGTH + 1)]
    assert "later than" in said[0] and len(val) > 0


def test_messages_name_symbol_and_time_span():
    panel = make_panel(2, 60)
    train = splits(panel, (0.7, 0.3, 0.0)).train
    assert train.describe(np.array([0])) == ["S00 2020-01-01T00:00:00..2020-01-01T16:00:00"]
    with pytest.raises(IndexError, match="outside 0"):
        train.gather(np.array([len(train)]))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.77, 1.0])
def test_the_cut_time_is_the_smallest_with_that_share_of_rows_before_it(share):
    rng = np.random.default_rng(0)
    times = np.sort(rng.integers(10**18, 10**18 + 10**15, 997))
    wanted = int(np.floor(997 * share + 1e-9))
    cut = time_at_share(times, share)
    assert (times < cut).sum() >= wanted and (times < cut - 1).sum() < max(1, wanted)


def test_a_stride_takes_every_kth_start_of_each_stretch():
    train = splits(make_panel(1, 100), (0.8, 0.2, 0.0), stride=5).train
    assert all_starts(train).tolist() == list(range(0, 80 - LENGTH + 1, 5))


# ---- series of unequal length


def shares(source, panel):
    """How often an epoch of all places draws each series, and the windows drawn."""
    index = epoch_order(source, len(source), 0, 3, 0, len(source))
    rows = source.source.start_rows(source.windows_at(index))
    return np.bincount(series_of(panel, rows), minlength=panel.n_series) / len(index), rows


@pytest.mark.parametrize(("how", "expected"), [("symbols", [1, 1, 1]), ("sqrt", [9**0.5, 49**0.5, 225**0.5])])
def test_series_are_drawn_as_often_as_asked_for_and_every_window_still_comes_up(how, expected):
    panel = make_panel(3, [LENGTH + 8, LENGTH + 48, LENGTH + 224])
    (train, *_), (plain, *_) = splits(panel, (1, 0, 0), sampling=how), splits(panel, (1, 0, 0))
    drawn, rows = shares(train, panel)
    np.testing.assert_allclose(drawn, np.array(expected) / sum(expected), atol=0.01)
    assert set(rows.tolist()) == set(all_starts(plain).tolist())
    counts = np.unique(rows[series_of(panel, rows) == 0], return_counts=True)[1]
    assert counts.max() - counts.min() <= 1, "within a series every window is as likely as the next"


def test_a_drawn_window_is_the_window_it_says_it_is():
    panel = make_panel(2, [LENGTH + 3, LENGTH + 30])
    (train, *_) = splits(panel, (1, 0, 0), sampling="symbols")
    index = np.arange(len(train))
    batch, real = train.gather(index), train.source.gather(train.windows_at(index))
    assert torch.equal(batch["x"], real["x"]) and torch.equal(train.stamps(index), real["stamps"])
    assert train.facts != train.source.facts, "a run resumed with another sampling must notice"
