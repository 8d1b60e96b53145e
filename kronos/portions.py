"""Which series and samples are computed together: as many as a budget of tokens allows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby


@dataclass(frozen=True)
class Portion:
    """What is computed together: series (by number, in groups of one length) and their samples `first` to `last` - 1."""

    groups: list[list[int]]
    first: int
    last: int

    @property
    def members(self) -> list[int]:
        """All series, in the order of the groups."""
        return [i for group in self.groups for i in group]


def portions(lengths: Sequence[int], horizon: int, samples: int, budget: int, max_context: int | None) -> Iterator[list[Portion]]:
    """Every series and sample once, as lists of portions that share their series.

    lengths: prefix tokens of each series. budget: tokens of prefixes and samples together; a series alone may exceed it by its prefix and
    one sample. How a series' samples are cut up depends on nothing but its own length, so that the same products take the same rows
    whatever else is computed. max_context: series that outgrow it share a portion with none of another length (None: nothing slides).
    """

    def kind(i: int) -> tuple[int, int]:
        slides = max_context is not None and lengths[i] + horizon > max_context
        return _samples_at_once(lengths[i], horizon, samples, budget), lengths[i] if slides else 0

    for (together, _), alike in groupby(sorted(range(len(lengths)), key=lambda i: (*kind(i), lengths[i])), key=kind):
        for members in _filled(list(alike), lengths, together * horizon, budget):
            groups = [list(group) for _, group in groupby(members, key=lambda i: lengths[i])]
            yield [Portion(groups, first, min(first + together, samples)) for first in range(0, samples, together)]


def _samples_at_once(length: int, horizon: int, samples: int, budget: int) -> int:
    return max(1, min(samples, (budget - length) // horizon))


def _filled(members: list[int], lengths: Sequence[int], own: int, budget: int) -> Iterator[list[int]]:
    """`members` cut so that each part's prefixes and `own` tokens per series fit into the budget."""
    part: list[int] = []
    used = 0
    for i in members:
        if part and used + lengths[i] + own > budget:
            yield part
            part, used = [], 0
        part.append(i)
        used += lengths[i] + own
    if part:
        yield part
