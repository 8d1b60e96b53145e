"""Who gets which bars. A partition is a list of stretches of rows, a function of the panel's series and the seed alone, so that every
client finds its own without being told, and holds nothing else (but for "iid").

    symbol-period, symbol, exchange   a group each; more clients than groups: the longest are cut in time; fewer: dealt out by rows
    dirichlet   each series is cut in time into shares drawn from Dirichlet(α) (Hsu et al. 2019, arXiv 1909.06335): non-IID on purpose
    iid         all bars are everybody's, and the windows are dealt out at random, each to one client: for comparing with one trainer only
    node        all that the node's own data-path holds
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from finetune.data.panel import Panel, SeriesInfo
from kronos.errors import InputError


@dataclass(frozen=True, order=True)
class Stretch:
    """Rows first..last-1 of the panel, all of one series."""

    series: int
    first: int
    last: int

    def __len__(self) -> int:
        return self.last - self.first


@dataclass(frozen=True)
class Deal:
    """Which windows are one client's where all have the same bars: share number `client` of `clients`.

    run: rows in a row whose windows stay together, so that a stride, or blocks of windows, leave as many of them as one trainer has.
    """

    client: int
    clients: int
    seed: int
    run: int = 1

    def origins(self, panel: Panel) -> np.ndarray:
        """[N] bool: rows at which a window of this client's may have its origin."""
        own = np.zeros(panel.n_rows, bool)
        for s, (first, end) in enumerate(zip(panel.offsets[:-1].tolist(), panel.offsets[1:].tolist(), strict=True)):
            runs = -(-(end - first) // self.run)
            mine = np.random.default_rng([self.seed, s]).permutation(runs) % self.clients == self.client
            own[first:end] = np.repeat(mine, self.run)[: end - first]
        return own


@dataclass(frozen=True)
class Partition:
    """What one client owns: stretches in the panel's order. name: for tables. deal: which of their windows; None: all."""

    name: str
    stretches: tuple[Stretch, ...]
    deal: Deal | None = None

    @property
    def rows(self) -> int:
        return sum(map(len, self.stretches))


def partition(panel: Panel, how: str, clients: int, *, alpha: float = 0.5, seed: int = 0, run: int = 1) -> list[Partition]:
    """The partitions of a panel, one per client, in an order that only its series decide.

    clients: how many; 0: as many as there are groups. alpha: of "dirichlet". run: of "iid", see `Deal`. Raises InputError if the bars do
    not say what groups them.
    """
    whole = [Stretch(s, int(a), int(b)) for s, (a, b) in enumerate(zip(panel.offsets[:-1], panel.offsets[1:], strict=True))]
    if how == "node":
        return [Partition("its own bars", tuple(whole))]
    if how == "iid":
        count = clients or 1
        return [Partition(f"1/{count} of all windows", tuple(whole), Deal(k, count, seed, run)) for k in range(count)]
    if how == "dirichlet":
        shares = _dirichlet(whole, clients or len(whole), alpha, seed)
        return [Partition(_described(panel, share), tuple(sorted(share))) for share in shares]
    groups: dict[str, list[Stretch]] = defaultdict(list)
    for stretch, info in zip(whole, panel.series, strict=True):
        groups[_group(info, how)].append(stretch)
    parts = [Partition(name, tuple(stretches)) for name, stretches in sorted(groups.items())]
    if clients > len(parts):
        return _cut_further(parts, clients)
    return _dealt(parts, clients) if 0 < clients < len(parts) else parts


def cut(panel: Panel, part: Partition) -> Panel:
    """The client's own panel: its rows and no others. Rows where it skips some begin a new stretch, which no window crosses."""
    rows = np.concatenate([np.arange(piece.first, piece.last) for piece in part.stretches])
    of_series: dict[int, int] = defaultdict(int)
    for piece in part.stretches:
        of_series[piece.series] += len(piece)
    own = list(of_series)
    offsets = np.concatenate([[0], np.cumsum([of_series[s] for s in own])])
    jumps = 1 + np.flatnonzero(np.diff(rows) != 1)
    former = np.flatnonzero(np.isin(rows, panel.breaks))
    breaks = np.setdiff1d(np.union1d(jumps, former), offsets)
    return Panel.build(
        features=panel.features[rows],
        stamps=panel.stamps[rows],
        times=panel.times[rows],
        origin=panel.origin[rows] & part.deal.origins(panel)[rows] if part.deal else panel.origin[rows],
        offsets=offsets,
        breaks=breaks,
        series=[panel.series[s] for s in own],
        columns=panel.columns,
        targets=None if panel.targets is None else panel.targets[rows],
        target_names=panel.target_names,
        stamp=panel.stamp,
        timezone=panel.timezone,
    )


def only(panel: Panel, symbols: Sequence[str], periods: Sequence[str]) -> Panel:
    """The series of these symbols and periods (empty: of any). Raises InputError naming what there is if none is left."""
    for wanted, have, what in (
        (symbols, {symbol_of(i) for i in panel.series}, "symbols"),
        (periods, {i.period for i in panel.series}, "periods"),
    ):
        if wanted and not set(wanted) & have:
            raise InputError(f"{what}={','.join(wanted)}: the bars have none of them, only {', '.join(sorted(have))}")
    keep = [
        s for s, info in enumerate(panel.series) if (not symbols or symbol_of(info) in symbols) and (not periods or info.period in periods)
    ]
    if not keep:
        raise InputError(f"symbols={','.join(symbols)} with periods={','.join(periods)}: the bars have no such series")
    if len(keep) == panel.n_series:
        return panel
    return cut(panel, Partition("", tuple(Stretch(s, int(panel.offsets[s]), int(panel.offsets[s + 1])) for s in keep)))


def symbol_of(info: SeriesInfo) -> str:
    """The symbol; of a file named BTCUSDT_1h.csv with hourly bars, BTCUSDT."""
    return info.symbol.removesuffix(f"_{info.period}")


def _group(info: SeriesInfo, how: str) -> str:
    if how == "symbol-period":
        return _named(info)
    if how == "symbol":
        return symbol_of(info)
    exchange = info.market or (info.symbol.split(":")[0] if ":" in info.symbol else "") or info.calendar
    if not exchange:
        raise InputError(
            f"partitions=exchange: the bars of {info.symbol!r} name no exchange (a panel's market, a symbol such as NASDAQ:AAPL, or a "
            "calendar); give one, or use partitions=symbol"
        )
    return exchange


def _dealt(parts: list[Partition], clients: int) -> list[Partition]:
    """Fewer clients than groups: the largest group first, each to the client that has the fewest rows."""
    piles: list[list[Partition]] = [[] for _ in range(clients)]
    for part in sorted(parts, key=lambda p: (-p.rows, p.name)):
        min(piles, key=lambda pile: sum(p.rows for p in pile)).append(part)
    return [
        Partition(" + ".join(sorted(p.name for p in pile)), tuple(sorted(piece for p in pile for piece in p.stretches))) for pile in piles
    ]


def _cut_further(parts: list[Partition], clients: int) -> list[Partition]:
    """More clients than groups: each group is cut in time into as equal pieces as can be, the longest group into the most."""
    pieces = dict.fromkeys(range(len(parts)), 1)
    for _ in range(clients - len(parts)):
        pieces[max(pieces, key=lambda g: (parts[g].rows / pieces[g], -g))] += 1
    made = []
    for g, part in enumerate(parts):
        for k in range(pieces[g]):
            own = tuple(_share(piece, k / pieces[g], (k + 1) / pieces[g]) for piece in part.stretches)
            made.append(Partition(f"{part.name} {k + 1}/{pieces[g]}" if pieces[g] > 1 else part.name, tuple(p for p in own if len(p))))
    return made


def _share(piece: Stretch, begin: float, end: float) -> Stretch:
    return replace(piece, first=piece.first + round(len(piece) * begin), last=piece.first + round(len(piece) * end))


def _dirichlet(whole: list[Stretch], clients: int, alpha: float, seed: int) -> list[list[Stretch]]:
    shares: list[list[Stretch]] = [[] for _ in range(clients)]
    for piece in whole:
        rng = np.random.default_rng([seed, piece.series])
        edges = np.concatenate([[0.0], np.cumsum(rng.dirichlet([alpha] * clients))])
        for place, client in enumerate(rng.permutation(clients)):
            own = _share(piece, min(1.0, edges[place]), min(1.0, edges[place + 1]))
            if len(own):
                shares[client].append(own)
    return shares


def _named(info: SeriesInfo) -> str:
    return f"{symbol_of(info)} {info.period}".strip()


def _described(panel: Panel, share: Sequence[Stretch]) -> str:
    rows: dict[str, int] = defaultdict(int)
    for piece in share:
        info = panel.series[piece.series]
        rows[_named(info)] += len(piece)
    largest = sorted(rows.items(), key=lambda item: -item[1])
    total = max(1, sum(rows.values()))
    shown = ", ".join(f"{name} {100 * count / total:.0f} %" for name, count in largest[:3])
    return (shown or "no bars") + (f" and {len(largest) - 3} more" if len(largest) > 3 else "")
