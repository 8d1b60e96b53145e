import json
import multiprocessing
import os
import shutil
from pathlib import Path

import numpy as np
import psutil
import pytest
from bars import make_panel

from finetune.data import panel_store
from finetune.data.panel import KRONOS_COLUMNS, Column, Panel, SeriesInfo
from kronos.errors import InputError, MissingFileError

ARRAYS = ("features", "stamps", "times", "origin", "offsets", "breaks")


def parts(panel: Panel) -> dict:
    names = (*ARRAYS, "columns", "series", "targets", "target_names", "stamp", "timezone")
    return {name: getattr(panel, name) for name in names}


def rebuilt(panel: Panel, **changes) -> Panel:
    return Panel.build(**{**parts(panel), **changes})


def rich_panel() -> Panel:
    """Everything a panel can hold: targets with NaN, breaks, limited origins, all kinds of column."""
    panel = make_panel(3, [40, 50, 60], stamp="close")
    rng = np.random.default_rng(1)
    targets = rng.normal(size=(150, 2)).astype(np.float32)
    targets[::7] = np.nan
    columns = (*KRONOS_COLUMNS[:4], Column("holiday", "known"), Column("sector", "categorical"))
    series = [SeriesInfo("甲", "1h", "XSHG", "XSHG"), SeriesInfo("a/b", "1h"), SeriesInfo("c", "1h")]
    breaks = np.array([10, 55, 120])
    return rebuilt(
        panel,
        targets=targets,
        target_names=("up", "size"),
        columns=columns,
        series=series,
        breaks=breaks,
        origin=rng.random(150) < 0.5,
        timezone="Asia/Shanghai",
    )


def assert_same(one: Panel, other: Panel) -> None:
    for name in (*ARRAYS, "targets"):
        a, b = getattr(one, name), getattr(other, name)
        assert (a is None) == (b is None)
        assert a is None or (a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()), name
    for name in ("columns", "series", "target_names", "stamp", "timezone", "fingerprint"):
        assert getattr(one, name) == getattr(other, name), name


@pytest.mark.parametrize("make", [make_panel, rich_panel])
def test_a_saved_panel_comes_back_bit_for_bit(make, tmp_path):
    panel = make()
    panel.save(tmp_path / "p")
    again = Panel.open(tmp_path / "p")
    assert_same(panel, again)
    again.verify()
    assert sorted(os.listdir(tmp_path)) == ["p"]


def test_opened_arrays_are_memory_mapped_and_read_only(tmp_path):
    make_panel().save(tmp_path / "p")
    panel = Panel.open(tmp_path / "p")
    for name in ("features", "stamps", "times", "origin"):
        array = getattr(panel, name)
        assert isinstance(array, np.memmap)
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_a_built_panel_cannot_be_changed_behind_its_fingerprint():
    with pytest.raises(ValueError, match="read-only"):
        make_panel().features[0, 0] = 1


def open_and_weigh(folder: str, answers) -> None:
    before = psutil.Process().memory_full_info().uss
    panel = Panel.open(folder)
    answers.put((psutil.Process().memory_full_info().uss - before, panel.n_rows))


def test_opening_a_large_panel_costs_next_to_no_private_memory(tmp_path):
    n = 2_000_000
    stamps = np.tile(np.array([0, 0, 0, 1, 1], np.uint8), (n, 1))
    Panel.build(
        features=np.ones((n, 6), np.float32), stamps=stamps, times=np.arange(n), offsets=np.array([0, n]), series=[SeriesInfo("x")]
    ).save(tmp_path / "p")
    context = multiprocessing.get_context("spawn")  # a fresh process: this one has the arrays in memory
    answers = context.Queue()
    worker = context.Process(target=open_and_weigh, args=(str(tmp_path / "p"), answers))
    worker.start()
    added, rows = answers.get(timeout=60)
    worker.join()
    assert rows == n and added < 10 * 2**20  # the arrays are 76 MB


def test_the_fingerprint_knows_every_value_and_every_label():
    panel = rich_panel()
    panel = rebuilt(panel, times=np.arange(150))
    features, targets, times = panel.features.copy(), panel.targets.copy(), panel.times.copy()
    features[77, 3] += 1e-3
    targets[1, 0] += 1
    times[-1] += 1
    others = [
        rebuilt(panel, features=features),
        rebuilt(panel, targets=targets),
        rebuilt(panel, times=times),
        rebuilt(panel, origin=~panel.origin),
        rebuilt(panel, breaks=panel.breaks[:-1]),
        rebuilt(panel, offsets=np.array([0, 40, 91, 150])),
        rebuilt(panel, stamp="open"),
        rebuilt(panel, timezone="UTC"),
        rebuilt(panel, series=[*panel.series[:2], SeriesInfo("d", "1h")]),
        rebuilt(panel, columns=(*panel.columns[:5], Column("sector", "past"))),
    ]
    assert len({panel.fingerprint, *(other.fingerprint for other in others)}) == 11
    assert rebuilt(panel).fingerprint == panel.fingerprint


def test_the_fingerprint_does_not_depend_on_the_size_of_the_pieces_it_is_read_in(monkeypatch):
    whole = rich_panel().fingerprint
    monkeypatch.setattr("finetune.data.panel._CHUNK_ROWS", 7)
    assert rich_panel().fingerprint == whole


@pytest.mark.parametrize("pieces", [1 << 20, 10])
def test_times_that_do_not_increase_inside_a_series_are_refused_with_the_place(monkeypatch, pieces):
    monkeypatch.setattr("finetune.data.panel._CHUNK_ROWS", pieces)
    panel = make_panel(2, [20, 30])  # the second series starts before the first ends: that is allowed
    for row in (30, 29):  # on the edge of a piece of ten, and inside one
        times = panel.times.copy()
        times[row] = times[row - 1]
        with pytest.raises(InputError, match=rf"series 'S01', row {row - 20} of it .* increase inside a series"):
            rebuilt(panel, times=times)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e39])
def test_features_that_are_not_finite_in_float32_are_refused_with_the_place(value):
    panel = make_panel(2, 20)
    features = panel.features.astype(np.float64)
    features[25, 4] = value
    with pytest.raises(InputError, match=r"series 'S01', row 5 of it .*column 'volume' is (nan|inf)"):
        rebuilt(panel, features=features)


def test_two_series_of_one_name_are_refused_but_two_periods_of_one_symbol_are_not():
    panel = make_panel(2, 20)
    with pytest.raises(InputError, match="two series are both named 'BTC'"):
        rebuilt(panel, series=[SeriesInfo("BTC"), SeriesInfo("BTC")])
    rebuilt(panel, series=[SeriesInfo("BTC", "1h"), SeriesInfo("BTC", "4h")])


@pytest.mark.parametrize(
    "changes",
    [
        {"offsets": np.array([0, 20, 39])},
        {"offsets": np.array([0, 40, 40])},
        {"offsets": np.array([0, 40])},
        {"breaks": np.array([5, 3])},
        {"breaks": np.array([40])},
        {"stamps": np.zeros((40, 5), np.uint8)},
        {"features": np.ones((40, 5), np.float32)},
        {"origin": np.ones(39, bool)},
        {"target_names": ("up",)},
        {"stamp": "middle"},
        {"columns": (*KRONOS_COLUMNS[:5], Column("amount", "future"))},
    ],
)
def test_arrays_that_do_not_fit_each_other_are_refused(changes):
    with pytest.raises(ValueError, match="do not fit") as error:
        rebuilt(make_panel(2, 20), **changes)
    assert not isinstance(error.value, InputError)  # a fault of the calling code, not of a user


def test_saving_replaces_a_panel_but_nothing_else(tmp_path):
    first, second = make_panel(seed=1), make_panel(seed=2)
    target = tmp_path / "p"
    first.save(target)
    opened = Panel.open(target)
    second.save(target)
    assert_same(Panel.open(target), second)
    assert opened.features.tobytes() == first.features.tobytes()  # whoever had it open still reads the old one
    opened.save(target)
    assert_same(Panel.open(target), first)
    other = tmp_path / "other"
    other.mkdir()
    first.save(other)  # empty: free to use
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    for occupied in (tmp_path / "mine", tmp_path / "mine" / "thesis.txt"):
        with pytest.raises(InputError, match="not a panel, so it is not overwritten"):
            first.save(occupied)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"
    assert sorted(os.listdir(tmp_path)) == ["mine", "other", "p"]


@pytest.mark.parametrize("failing", ["_write_files", "_swap"])
def test_when_the_disk_is_full_the_former_panel_survives_and_nothing_is_left_behind(tmp_path, monkeypatch, failing):
    first = make_panel(seed=1)
    first.save(tmp_path / "p")
    whole = getattr(panel_store, failing)

    def full(*args):
        if failing == "_write_files":
            whole(*args)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(panel_store, failing, full)
    with pytest.raises(InputError, match=r"cannot write the panel .*/p: the disk is full"):
        make_panel(seed=2).save(tmp_path / "p")
    assert_same(Panel.open(tmp_path / "p"), first)
    assert os.listdir(tmp_path) == ["p"]


def test_when_the_last_rename_fails_the_former_panel_comes_back(tmp_path, monkeypatch):
    first = make_panel(seed=1)
    first.save(tmp_path / "p")
    rename = os.rename

    def refuse(source, target):
        if ".new-" in Path(source).name:
            raise PermissionError(13, "Permission denied", str(target))
        rename(source, target)

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(InputError, match="permission denied"):
        make_panel(seed=2).save(tmp_path / "p")
    assert_same(Panel.open(tmp_path / "p"), first)
    assert os.listdir(tmp_path) == ["p"]


def test_a_missing_or_foreign_folder_is_named(tmp_path):
    with pytest.raises(MissingFileError, match="no such panel folder"):
        Panel.open(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"not a panel folder \(no panel.json in it\)"):
        Panel.open(tmp_path)
    (tmp_path / "panel.json").write_text('{"format": "something else"}')
    with pytest.raises(InputError, match=r"panel.json: not the metadata of a panel"):
        Panel.open(tmp_path)


def test_another_version_is_refused(tmp_path):
    make_panel().save(tmp_path / "p")
    meta = json.loads((tmp_path / "p" / "panel.json").read_text())
    (tmp_path / "p" / "panel.json").write_text(json.dumps({**meta, "version": 99}))
    with pytest.raises(InputError, match=r"panel.json: panel version 99, this program reads version 1"):
        Panel.open(tmp_path / "p")


@pytest.mark.parametrize("name", ARRAYS)
def test_missing_truncated_padded_or_foreign_arrays_are_named(tmp_path, name):
    rebuilt(make_panel(), breaks=np.array([3, 9])).save(tmp_path / "p")
    file = tmp_path / "p" / f"{name}.npy"
    good = file.read_bytes()
    for bad in (b"", good[:40], good[:-1], good + b"more bytes" * 1000, b"PK\x03\x04" + good, b"x" * len(good)):
        file.write_bytes(bad)
        with pytest.raises(InputError, match=f"{name}.npy: damaged or not a panel"):
            Panel.open(tmp_path / "p")
    np.save(file, np.zeros(3, np.float64))
    with pytest.raises(InputError, match=f"{name}.npy: damaged or not a panel .*float64|<f8"):
        Panel.open(tmp_path / "p")
    file.unlink()
    with pytest.raises(InputError, match=f"{name}.npy: damaged .*missing"):
        Panel.open(tmp_path / "p")


class Bomb:
    def __reduce__(self):
        return os.mkdir, (str(Path(__file__).parent / "exploded"),)


@pytest.mark.parametrize("name", ["features", "offsets"])
def test_a_pickled_array_is_refused_and_not_executed(tmp_path, name):
    make_panel().save(tmp_path / "p")
    np.save(tmp_path / "p" / f"{name}.npy", np.array([Bomb()], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match=f"{name}.npy: damaged"):
        Panel.open(tmp_path / "p")
    assert not (Path(__file__).parent / "exploded").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"offsets": [0, 10, 5, 600]},
        {"breaks": [700]},
        {"series": [["only one", "", "", ""]]},
        {"series": [[1, 2, 3, 4]] * 3},
        {"columns": 7},
        {"stamp": None},
        {"fingerprint": "../x"},
        {"shapes": {}},
    ],
)
def test_damaged_metadata_is_refused(tmp_path, changes):
    make_panel().save(tmp_path / "p")
    for name in ("offsets", "breaks"):
        if name in changes:
            np.save(tmp_path / "p" / f"{name}.npy", np.array(changes.pop(name), np.int64))
    file = tmp_path / "p" / "panel.json"
    meta = json.loads(file.read_text())
    meta["shapes"]["breaks"] = list(np.load(tmp_path / "p" / "breaks.npy").shape)
    file.write_text(json.dumps({**meta, **changes}))
    with pytest.raises(InputError, match=r"panel.json: damaged|not a panel"):
        Panel.open(tmp_path / "p")


def test_random_damage_is_an_input_error_or_found_by_verify(tmp_path):
    rich_panel().save(tmp_path / "whole")
    rng = np.random.default_rng(0)
    for _ in range(150):
        shutil.rmtree(tmp_path / "p", ignore_errors=True)
        shutil.copytree(tmp_path / "whole", tmp_path / "p")
        file = rng.choice(sorted((tmp_path / "p").iterdir()))
        data = bytearray(file.read_bytes())
        place = int(rng.integers(min(len(data), 200)))
        if rng.random() < 0.5:
            data[place] ^= 1 << int(rng.integers(8))
        else:
            del data[place:]
        file.write_bytes(data)
        with pytest.raises(InputError):
            Panel.open(tmp_path / "p").verify()
