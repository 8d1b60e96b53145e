"""Splits of windows for the Temporal Fusion Transformer: where they end, what training alone decides, and what is refused."""

from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
from tft_world import AHEAD, HOUR, LENGTH, MANIFEST, TARGETS, E, changed, everything, period_of, windows, world

from kronos.errors import InputError
from tft.scales import Scales
from tft.target_panel import close_times
from tft.vocabulary import Vocabulary
from tft.windows import SplitRule


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
