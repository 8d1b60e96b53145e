import pyarrow
import pytest
from kaggle_bars import make_bars, make_folder

from finetune.data import kaggle_csv
from finetune.data.kaggle_panel import KaggleSettings, prepare
from kronos.errors import InputError, MissingFileError


def line(number: int, change):
    """Change one line of the text (the header is line 1)."""

    def changed(text: str) -> str:
        lines = text.split("\n")
        lines[number - 1] = change(lines[number - 1])
        return "\n".join(lines)

    return changed


BAD = {
    "columns missing": (
        lambda t: t.replace("Open", "Opn").replace("Volume", "Units"),
        r"no column 'Open', 'Volume' among those found: 'Ticker', 'Date', 'Opn', .*'Opn' may be Open",
    ),
    "no splits": (lambda t: t.replace("Stock Splits", "S"), r"no column 'Stock Splits' among .*; rename .*: --splits keep$"),
    "a column twice": (lambda t: t.replace("Dividends", "Open", 1), r"column 'Open' is there 2 times"),
    "UTF-16": (lambda t: t.encode("utf-16"), r"is not UTF-8 text; convert the file, e.g. iconv -f UTF-16 -t UTF-8 train.csv"),
    "GBK in the header": (lambda t: t.replace("Dividends", "分红").encode("gbk"), r"train.csv, row 1: is not UTF-8 text"),
    "GBK in a row": (lambda t: line(7, lambda s: "中" + s)(t).encode("gbk"), r"row 7, column 'Ticker': is not UTF-8 text"),
    "a zip": (lambda t: b"PK\x03\x04" + t.encode(), r"is a zip archive; unpack it first"),
    "two ways of dates": (
        line(9, lambda s: s.replace(" 00:00:00-05:00", "")),
        r"dates are written in 2 ways: '2001-03-26 00:00:00-05:00' \(first in row 2\), '20.*' \(first in row 9\)",
    ),
    "not a date": (line(9, lambda s: s.replace("-03-", "-13-")), r"row 9, column 'Date': '2001-13-.*' is not a time"),
    "not a number": (line(9, lambda s: s.replace(",0.0,0.0", ",0.0,two")), r"row 9, column 'Stock Splits': 'two' is not a number"),
    "too many fields": (line(11, lambda s: s + ",1"), r"row 11: has 10 fields where the header names 9"),
    "cut short": (
        lambda t: t[:-25],
        r"row 61 \(the last\): is cut short, \d of 9 fields: 'T1,.*'; fetch the file again, or .*--skip-truncated",
    ),
    "empty": (lambda t: "", r"train.csv: the file is empty"),
    "header only": (lambda t: t.split("\n")[0] + "\n", r"train.csv: holds a header but no rows"),
    "all tickers short": (lambda t: "\n".join(t.split("\n")[:11]) + "\n", r"no ticker has the 10 rows .* \(the longest, 'T0', has 5\)"),
    "hours, not days": (
        lambda t: t + "".join(t.split("\n", 1)[1].replace("00:00:00", f"{hour:02d}:00:00") for hour in range(1, 4)),
        r"repeat the date of another row of their ticker; these are not daily bars",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_message_and_leaves_nothing_behind(tmp_path, name):
    change, message = BAD[name]
    make_folder(tmp_path, make_bars(2, 30))
    text = change((tmp_path / "train.csv").read_text())
    (tmp_path / "train.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    before = {file: file.read_bytes() for file in (tmp_path / "data").rglob("*") if file.is_file()}
    for out in (tmp_path / "new" / "data", tmp_path / "data"):
        with pytest.raises(InputError, match=message):
            prepare(tmp_path / "train.csv", tmp_path / "test.csv", out, KaggleSettings(8), say=lambda text: None)
    assert not (tmp_path / "new").exists()
    assert {file: file.read_bytes() for file in (tmp_path / "data").rglob("*") if file.is_file()} == before, "what was there stays"


@pytest.mark.parametrize("name", ["GBK in a row", "not a number", "too many fields"])
def test_the_row_of_what_is_wrong_is_found_however_late_it_comes(tmp_path, monkeypatch, name):
    monkeypatch.setattr(kaggle_csv, "BLOCK_BYTES", 500)
    threads = pyarrow.cpu_count()
    pyarrow.set_cpu_count(2)  # with several threads Arrow does not know the row
    try:
        test_bad_input_is_one_message_and_leaves_nothing_behind(tmp_path, name)
    finally:
        pyarrow.set_cpu_count(threads)


def test_a_last_line_cut_short_is_dropped_loudly_when_asked_to(tmp_path):
    make_folder(tmp_path, make_bars(2, 30))
    path = tmp_path / "train.csv"
    path.write_bytes(path.read_bytes()[:-25])
    said = []
    report = prepare(path, tmp_path / "test.csv", tmp_path / "data", KaggleSettings(8), skip_truncated=True, say=said.append)
    assert report["rows"]["read"] == 59 and any("row 61 (the last): is cut short" in note and "dropped" in note for note in said)
    assert report["notes"] == [note for note in said if "cut short" in note]


def test_a_missing_file_and_a_folder_of_somebody_else_are_named(tmp_path):
    make_folder(tmp_path, make_bars(2, 30))
    with pytest.raises(MissingFileError, match=r"nix\.csv: there is no such file"):
        prepare(tmp_path / "nix.csv", tmp_path / "test.csv", tmp_path / "out")
    (tmp_path / "mine" / "panel").mkdir(parents=True)
    (tmp_path / "mine" / "panel" / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match="exists and is not a panel"):
        prepare(tmp_path / "train.csv", tmp_path / "test.csv", tmp_path / "mine", KaggleSettings(8), say=lambda text: None)
    assert (tmp_path / "mine" / "panel" / "thesis.txt").read_text() == "precious"
