import json

import numpy as np
import pytest
from kaggle_bars import PRICES, make_bars, make_folder, rows_of

from finetune.data.kaggle_splits import SplitEvents, adjust, find_events, judge
from finetune.data.panel import Panel
from kronos.errors import InputError

RATIOS = {"T0": 4.0, "T1": 0.1, "T2": 2.0}


def split(bars, ticker, place, ratio, *, jump):
    """A split on the ticker's bar number `place`; jump: older prices are ratio times as high and volumes smaller, as they were traded."""
    rows = rows_of(bars, ticker)
    bars.loc[rows[place], "Stock Splits"] = ratio
    if jump:
        bars["Volume"] = bars["Volume"].astype(float)
        bars.loc[rows[:place], PRICES] *= ratio
        bars.loc[rows[:place], "Volume"] /= ratio


def with_splits(jumping=("T0", "T1", "T2")):
    bars = make_bars(4, 60)
    for name, ratio in RATIOS.items():
        split(bars, name, 30, ratio, jump=name in jumping)
    return bars


def made(folder, bars, **settings):
    folder.mkdir(exist_ok=True)
    data = make_folder(folder, bars, **settings)
    return Panel.open(data / "panel"), json.loads((data / "report.json").read_text())["splits"]


def same(one, other):
    return np.allclose(one.features, other.features, rtol=2e-6, atol=0)


def test_an_adjusted_file_is_recognised_and_left_as_it_is(tmp_path):
    bars = make_bars(4, 60)
    plain, _ = made(tmp_path / "plain", bars)
    panel, told = made(tmp_path / "splits", with_splits(jumping=()))
    assert told["verdict"] == "adjusted" and told["closes do not jump"] == 3 and told["closes jump by 1/ratio"] == told["adjusted"] == 0
    assert panel.fingerprint == plain.fingerprint, "not a bit is changed"


def test_an_unadjusted_file_is_adjusted_backwards_in_time(tmp_path):
    plain, _ = made(tmp_path / "plain", make_bars(4, 60))
    panel, told = made(tmp_path / "splits", with_splits())
    assert told["verdict"] == "not adjusted" and told["closes jump by 1/ratio"] == told["adjusted"] == 3
    assert same(panel, plain), "prices, volumes and amounts are those of a file that was adjusted"
    first = panel.offsets[0]
    assert np.array_equal(panel.features[first + 30 : first + 60], plain.features[first + 30 : first + 60]), "newest bars keep their prices"


def test_several_splits_of_one_ticker_multiply(tmp_path):
    plain, _ = made(tmp_path / "plain", make_bars(2, 60))
    bars = make_bars(2, 60)
    split(bars, "T1", 40, 3.0, jump=True)
    split(bars, "T1", 20, 2.0, jump=True)
    panel, told = made(tmp_path / "splits", bars)
    assert told["adjusted"] == 2 and same(panel, plain)


def test_a_split_too_small_to_tell_follows_its_file(tmp_path):
    plain, _ = made(tmp_path / "plain", make_bars(4, 60))
    bars = with_splits()
    split(bars, "T3", 30, 1.1, jump=True)
    panel, told = made(tmp_path / "raw", bars)
    assert told["too small, or too far apart, to tell"] == 1 and told["adjusted"] == 4 and same(panel, plain)
    bars = with_splits(jumping=())
    split(bars, "T3", 30, 1.1, jump=False)
    assert made(tmp_path / "adjusted", bars)[0].fingerprint == plain.fingerprint


def test_in_a_mixed_file_the_majority_decides_and_those_that_disagree_are_left_and_named(tmp_path):
    plain, _ = made(tmp_path / "plain", make_bars(4, 60))
    panel, told = made(tmp_path / "mostly raw", with_splits(jumping=("T0", "T1")))
    assert (
        told["verdict"] == "not adjusted" and told["adjusted"] == 2 and told["for example"] == ["T2"] and told["tickers that disagree"] == 1
    )
    assert same(panel, plain), "T2 was adjusted already: no jump is made in it"
    left, told = made(tmp_path / "mostly adjusted", with_splits(jumping=("T0",)))
    assert told["verdict"] == "adjusted" and told["adjusted"] == 0 and told["for example"] == ["T0"]
    assert left.features[0, 3] == pytest.approx(4 * plain.features[0, 3], rel=1e-6), "T0 keeps the jump it came with"


def test_a_file_without_a_telling_split_is_left_and_said_to_be_unknown(tmp_path):
    bars = make_bars(2, 60)
    split(bars, "T0", 30, 1.1, jump=False)
    plain, _ = made(tmp_path / "plain", make_bars(2, 60))
    panel, told = made(tmp_path / "one", bars)
    assert told["verdict"] == "unknown" and panel.fingerprint == plain.fingerprint


def test_the_setting_wins_over_what_is_seen(tmp_path):
    raw, plain = with_splits(), made(tmp_path / "plain", make_bars(4, 60))[0]
    kept, told = made(tmp_path / "keep", raw, splits="keep")
    assert told["verdict"].startswith("left as it is") and not same(kept, plain)
    assert same(made(tmp_path / "adjust", raw, splits="adjust")[0], plain)
    without = raw.drop(columns="Stock Splits")
    assert made(tmp_path / "without", without, splits="keep")[0].fingerprint == kept.fingerprint, "keep needs no column of splits"
    with pytest.raises(InputError, match="--splits: 'maybe' is not one of auto, adjust, keep"):
        made(tmp_path / "maybe", raw, splits="maybe")


@pytest.mark.parametrize("fault", ["empty", "dropped"])
def test_a_split_on_a_day_without_a_usable_bar_counts_from_the_next_one(tmp_path, fault):
    value, cells = (np.nan, [*PRICES, "Volume"]) if fault == "empty" else (0.0, PRICES)
    bars, plain = with_splits(), make_bars(4, 60)
    for frame in (bars, plain):
        frame.loc[rows_of(frame, "T0")[30], cells] = value
    panel, told = made(tmp_path / "splits", bars)
    assert told["adjusted"] == 3 and same(panel, made(tmp_path / "plain", plain)[0]), "a filled bar is an old bar, with old shares"


def test_events_name_the_first_real_bar_and_what_its_close_did():
    codes, days = np.array([0, 0, 0, 0, 1, 1, 1]), np.array([0, 1, 2, 3, 0, 1, 50])
    closes = np.array([10.0, 10.0, 5.0, 5.1, 8.0, 8.0, 4.0])
    ratios = np.array([2.0, 0.0, 2.0, np.nan, 2.0, 3.0, 2.0])
    events = find_events(codes, days, closes, np.ones(7, bool), ratios)
    assert events.rows.tolist() == [2, 5, 6], "a split on a ticker's first bar changes nothing"
    assert events.jumped.tolist() == [1, 0, -1], "50 days apart tells nothing"
    late = find_events(codes, days, closes, np.array([1, 1, 0, 1, 1, 1, 0], bool), ratios)
    assert late.rows.tolist() == [3, 5], "moved to the next real bar; after a ticker's last bar it is left out"


def test_a_tie_counts_as_adjusted():
    events = SplitEvents(np.arange(2), np.array([2.0, 2.0]), np.array([0, 1]), np.array([1, 0], np.int8))
    verdict = judge(events)
    assert verdict.kind == "adjusted" and not verdict.applied.any() and verdict.dissent == (0,)


def test_adjusting_keeps_price_times_volume():
    features = np.full((6, 6), 6.0, np.float32)
    adjust(features, np.array([1]), np.array([4]), np.array([3.0]))
    assert features[:, 3].tolist() == [6, 2, 2, 2, 6, 6] and features[:, 4].tolist() == [6, 18, 18, 18, 6, 6]
    assert (features[:, 5] == 6).all()
