"""Who gets which bars."""

import numpy as np
import pytest
from bars import make_panel

from federated.partitions import Partition, Stretch, cut, only, partition
from finetune.data.panel import Panel, SeriesInfo
from finetune.engine.splits import windows_of
from kronos.errors import InputError


def panel(lengths=(300, 200, 100, 50)) -> Panel:
    """BTC and ETH at 1h and 4h, on two exchanges."""
    plain = make_panel(len(lengths), list(lengths))
    names = [SeriesInfo(symbol, period, market) for symbol, market in (("BTC", "NY"), ("ETH", "HK")) for period in ("1h", "4h")]
    arrays = {name: getattr(plain, name) for name in ("features", "stamps", "times", "offsets")}
    return Panel.build(**arrays, series=names[: len(lengths)], breaks=np.array([40]))


def rows(parts) -> list[int]:
    return sorted(row for part in parts for piece in part.stretches for row in range(piece.first, piece.last))


@pytest.mark.parametrize("how", ["symbol-period", "symbol", "exchange", "dirichlet"])
@pytest.mark.parametrize("clients", [0, 1, 3, 7])
def test_every_row_belongs_to_one_client_and_the_same_call_gives_the_same_partitions(how, clients):
    bars = panel()
    parts = partition(bars, how, clients, seed=3)
    assert rows(parts) == list(range(bars.n_rows))
    assert parts == partition(bars, how, clients, seed=3)
    assert len(parts) == (clients or {"symbol": 2, "exchange": 2}.get(how, 4))


def test_groups_are_whole_when_there_are_as_many_clients():
    names = [part.name for part in partition(panel(), "symbol-period", 0)]
    assert names == ["BTC 1h", "BTC 4h", "ETH 1h", "ETH 4h"]
    assert [part.name for part in partition(panel(), "exchange", 2)] == ["HK", "NY"]


def test_more_clients_than_groups_cut_the_longest_in_time_and_fewer_share_by_rows():
    more = partition(panel(), "symbol-period", 6)
    assert [part.name for part in more][:4] == ["BTC 1h 1/2", "BTC 1h 2/2", "BTC 4h 1/2", "BTC 4h 2/2"]
    assert more[0].stretches == (Stretch(0, 0, 150),) and more[1].stretches == (Stretch(0, 150, 300),)
    fewer = partition(panel(), "symbol-period", 2)
    assert sorted(part.rows for part in fewer) == [300, 350]


def test_small_alpha_gives_a_series_to_few_clients_and_a_large_one_to_all():
    def largest(alpha):
        parts = partition(make_panel(6, 500), "dirichlet", 5, alpha=alpha, seed=1)
        shares = [[sum(len(p) for p in part.stretches if p.series == s) for part in parts] for s in range(6)]
        return np.mean([max(share) / 500 for share in shares])

    assert largest(0.05) > 0.8 and largest(1000.0) < 0.25


@pytest.mark.parametrize("clients, run, stride", [(1, 1, 1), (4, 1, 1), (7, 3, 3)])
def test_iid_deals_out_all_windows_that_one_trainer_has_each_to_one_client(clients, run, stride):
    bars = panel()
    how = dict(lookback=10, horizon=3, extra_rows=1, stride=stride)
    whole = windows_of(bars, "all", **how)
    parts = partition(bars, "iid", clients, seed=3, run=run)
    assert parts == partition(bars, "iid", clients, seed=3, run=run) and len(parts) == clients
    shares = [windows_of(cut(bars, part), "own", **how) for part in parts]
    dealt = np.concatenate([share.start_rows(np.arange(len(share))) for share in shares])
    if stride == 1:
        assert sorted(dealt) == whole.start_rows(np.arange(len(whole))).tolist()
    assert abs(len(dealt) - len(whole)) <= 2 * len(bars.series) * stride and len(set(dealt)) == len(dealt)
    assert max(map(len, shares)) - min(map(len, shares)) <= 0.2 * len(whole)


def test_iid_gives_everybody_every_series_at_all_times():
    bars = make_panel(2, 400)
    for part in partition(bars, "iid", 4, seed=0):
        own = cut(bars, part)
        assert own.n_series == 2 and own.origin.sum() == 200
        assert own.times[own.origin].min() < np.quantile(bars.times, 0.2) and own.times[own.origin].max() > np.quantile(bars.times, 0.8)


def test_a_client_has_its_own_rows_only_and_no_window_crosses_what_was_left_out():
    bars = panel()
    part = Partition("own", (Stretch(0, 0, 60), Stretch(0, 100, 180), Stretch(2, 510, 560)))
    own = cut(bars, part)
    assert own.n_rows == part.rows
    assert set(own.features[:, 3].tolist()) == set(bars.features[rows([part]), 3].tolist())
    hour = 3_600_000_000_000
    inside = np.setdiff1d(np.flatnonzero(np.diff(own.times) != hour) + 1, own.offsets)
    assert len(inside)
    assert set(inside) <= set(own.breaks.tolist())


def test_breaks_of_the_bars_stay_where_they_were():
    own = cut(panel(), partition(panel(), "symbol-period", 0)[0])
    assert own.breaks.tolist() == [40] and own.series[0].symbol == "BTC"


def test_symbols_and_periods_choose_series_and_unknown_ones_are_told():
    assert [info.symbol for info in only(panel(), ["ETH"], ["4h"]).series] == ["ETH"]
    with pytest.raises(InputError, match="symbols=DOGE: the bars have none of them, only BTC, ETH"):
        only(panel(), ["DOGE"], [])


def test_the_period_in_a_files_name_is_no_part_of_the_symbol():
    plain = make_panel(3, 50)
    arrays = {name: getattr(plain, name) for name in ("features", "stamps", "times", "offsets")}
    files = Panel.build(**arrays, series=[SeriesInfo("BTC_1h", "1h"), SeriesInfo("BTC_4h", "4h"), SeriesInfo("ETH_1h", "1h")])
    assert [part.name for part in partition(files, "symbol", 0)] == ["BTC", "ETH"]
    assert only(files, ["BTC"], []).n_series == 2


def test_bars_without_an_exchange_cannot_be_parted_by_it():
    with pytest.raises(InputError, match="partitions=exchange: the bars of 'S00' name no exchange"):
        partition(make_panel(2, 50), "exchange", 0)
