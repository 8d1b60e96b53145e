"""A short stay, and that a leak would be seen."""

import pytest

from tests.drills import common
from tests.drills.common import Failed
from tests.drills.soak import Sample, check, stay


@pytest.mark.parametrize(("kind", "loops"), [pytest.param("commands", 5, marks=pytest.mark.slow), ("forecasts", 20)])
def test_a_loop_of_training_evaluation_and_forecasts_grows_nothing(kind, loops, tmp_path):
    common.import_once()
    check(stay(kind, tmp_path, loops=loops))


def samples(**grows) -> list[Sample]:
    flat = dict(rss_mib=500.0, own_mib=400.0, handles=10, threads=3, files=40)
    return [Sample(loop, **{name: value + loop * grows.get(name, 0) for name, value in flat.items()}) for loop in range(40)]


def test_what_grows_is_seen():
    assert "resident 500.0 -> 500.0 MiB (+0.00%; highest 500.0, +0.00%), of no file 400.0 -> 400.0" in check(samples())
    for memory in ("rss_mib", "own_mib"):
        with pytest.raises(Failed, match=r"memory grew: 40 loops, .* \(\+[45]"):
            check(samples(**{memory: 1.0}))
    for name in ("handles", "threads", "files"):
        with pytest.raises(Failed, match=f"{name}: .* became"):
            check(samples(**{name: 1}))
