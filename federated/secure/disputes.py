"""Who leaves a round and who only parts, when some clients do not take the shares of others.

Of two such clients one lies: the one who dealt false shares, or the one who calls sound ones false. Nobody else can tell which, as what was
sealed stays sealed. So they part: neither masks with the other nor holds its shares. A liar gains little by it, for honest clients never
part from each other, and each loses one holder to a liar; but whoever is left with so few holders that its own absence later would leave
fewer than the threshold is lost now, those with most disputes first, while no mask of theirs is in any vector.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping


def parted(
    sharing: Mapping[int, Collection[int]], disputes: Collection[tuple[int, int]], threshold: int
) -> tuple[dict[int, set[int]], dict[int, list[int]]]:
    """(client -> those it still shares with, client that is lost -> those it was in dispute with).

    sharing: client -> clients, all of them keys, in both directions. disputes: (who finds shares false, whose).
    """
    against: dict[int, set[int]] = {node: set() for node in sharing}
    for accuser, dealer in disputes:
        against[accuser].add(dealer)
        against[dealer].add(accuser)
    left = {node: set(peers) - against[node] for node, peers in sharing.items()}
    accused = {dealer for _, dealer in disputes}
    lost: dict[int, list[int]] = {}
    while short := [node for node in left if against[node] and len(left[node]) < threshold]:
        worst = max(short, key=lambda node: (len(against[node]), node in accused, -node))
        lost[worst] = sorted(against.pop(worst))
        for peers in (*against.values(), *left.values()):
            peers.discard(worst)
        del left[worst]
    return left, lost
