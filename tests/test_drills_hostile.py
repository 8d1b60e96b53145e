"""A short round of the drill on hostile input, and each mend that it led to."""

import gzip
import json
import os
import struct
import zipfile

import numpy as np
import pytest
import torch

from finetune.data.panel import Panel, SeriesInfo
from finetune.engine.curves import new_figure, save_figure
from finetune.engine.files import read_json
from kronos.errors import InputError
from kronos.weights import read_plain
from tests.bars import make_panel
from tests.drills import attacks, common, hostile
from tests.test_drills_malformed import drill
from tft.safe_pickle import safe_load


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    common.import_once()
    return hostile.kinds(tmp_path_factory.mktemp("hostile"))


@pytest.mark.parametrize("kind", hostile.KINDS[:-1])
def test_hostile_input_is_refused_or_harmless(kinds, kind, tmp_path):
    for number in range(max(2, len(attacks.ATTACKS.get(kind, ())))):
        seed = number * len(hostile.KINDS) + hostile.KINDS.index(kind)
        (tmp_path / str(seed)).mkdir()
        kinds[kind](seed, tmp_path / str(seed))


@pytest.mark.slow
def test_hostile_names_make_no_file_elsewhere():
    drill("hostile", "--kind", "names", "--rounds", "3", "--seed", "4")


@pytest.mark.parametrize("number", range(len(attacks._PICKLES)))
def test_no_pickle_of_the_list_loads(number, tmp_path):
    (tmp_path / "t.pkl").write_bytes(attacks._PICKLES[number]())
    with pytest.raises(InputError):
        safe_load(tmp_path / "t.pkl")


def test_a_symbol_may_not_steer_a_terminal():
    panel = make_panel(1, 20)
    with pytest.raises(InputError, match=r"series 'A\\x1b\[2J': its name"):
        Panel.build(**panel._arrays(), series=[SeriesInfo("A\x1b[2J")])


def test_a_symbol_that_looks_like_a_formula_is_drawn_as_it_is(tmp_path):
    figure = new_figure(200, 100)
    axes = figure.add_subplot(title="$x^$")
    axes.barh(["$\\frac{"], [1.0])
    save_figure(figure, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 100


@pytest.mark.filterwarnings("error")
def test_a_chinese_name_is_drawn_or_told_in_one_line_and_no_other_letter_is_lost(tmp_path, capsys):
    figure = new_figure(200, 100)
    axes = figure.add_subplot(title="中国电影 × 90 → 10", xlabel="\U0010fffd")
    save_figure(figure, tmp_path / "a.png")
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "no font here has" in told and axes.get_xlabel() == "?"
    drawn = axes.get_title()
    assert drawn.endswith(" × 90 → 10") and (drawn.startswith("中国电影") != ("中国电影" in told))


def test_a_state_that_is_packed_is_not_unpacked(tmp_path):
    torch.save({"a": torch.zeros(4)}, tmp_path / "plain.pt")
    assert read_plain(tmp_path / "plain.pt")["a"].shape == (4,)
    with zipfile.ZipFile(tmp_path / "plain.pt") as old, zipfile.ZipFile(tmp_path / "packed.pt", "w", zipfile.ZIP_DEFLATED) as new:
        for info in old.infolist():
            new.writestr(info.filename, old.read(info))
    with pytest.raises(InputError, match=r"is compressed, which torch\.save never does"):
        read_plain(tmp_path / "packed.pt")


def test_json_that_is_no_object_is_damaged(tmp_path):
    for text in ("[]", "5", "[" * 100_000, '{"a": NaN'):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(InputError, match="is damaged"):
            read_json(tmp_path / "a.json")


def test_an_array_that_claims_more_than_its_file_holds_is_not_asked_for(tmp_path):
    folder = make_panel(1, 20).save(tmp_path / "p")
    meta = json.loads((folder / "panel.json").read_text())
    meta["shapes"]["offsets"] = [10**12]
    (folder / "panel.json").write_text(json.dumps(meta))
    with open(folder / "offsets.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<i8", "fortran_order": False, "shape": (10**12,)})
        file.write(struct.pack("<2q", 0, 20))
    with pytest.raises(InputError, match=r"offsets.npy: damaged .*its size does not fit \[1000000000000\]"):
        Panel.open(folder)


def test_bars_that_pack_well_are_still_unpacked(tmp_path):
    rows = b"".join(b"2024-01-01 00:%02d:%02d,1,1,1,1\n" % (i // 60, i % 60) for i in range(3600))
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"timestamps,open,high,low,close\n" + rows))
    read = attacks._bars(tmp_path / "a.csv.gz")
    assert read().n_rows == 3600


def test_a_pipe_in_place_of_bars_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.csv")
    with pytest.raises(InputError, match="is a folder, a device or a pipe"):
        attacks._bars(tmp_path / "a.csv")()
