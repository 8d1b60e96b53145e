import gzip
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest
from kaggle_bars import PRICES, make_bars, make_folder, rows_of, write_train

from benchmarks import kaggle_data
from finetune.data import Policy, build_panel, kaggle_csv, kaggle_panel, kaggle_spill
from finetune.data.kaggle_panel import KaggleSettings, prepare
from finetune.data.panel import Panel
from finetune.data.panel_writer import PanelWriter
from finetune.engine.errors import Interrupted
from kronos.errors import InputError

COMMAND = Path(__file__).resolve().parents[1] / "finetune_csv" / "kaggle_data_preprocess.py"


def panel_of(folder: Path) -> Panel:
    return Panel.open(folder / "panel")


def report_of(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text())


def reference(bars: pd.DataFrame, **policy) -> Panel:
    """The same bars through the CSV pipeline: one frame per ticker, in alphabetical order."""
    frames = {}
    for name, frame in bars.groupby("Ticker"):
        columns = {column.lower(): frame[column].to_numpy(float) for column in (*PRICES, "Volume")}
        frames[name] = pd.DataFrame({"timestamps": pd.to_datetime(frame["Date"].str[:10]).to_numpy(), **columns})
    return build_panel(frames, timezone="America/New_York", stamp="open", policy=Policy(**policy))


def spoiled() -> pd.DataFrame:
    """Four tickers of 60 bars with one fault of each kind."""
    bars = make_bars(4, 60)
    t0, t1, t2, t3 = (rows_of(bars, f"T{i}") for i in range(4))
    bars.loc[t0[20], "Open"] = 0.0
    bars.loc[t1[25], ["High", "Low"]] = bars.loc[t1[25], ["Low", "High"]].to_numpy()
    bars.loc[t2[30:33], PRICES] = np.nan
    bars.loc[t2[40:47], PRICES] = np.nan
    bars.loc[t3[0], "Close"] = np.nan
    bars.loc[t3[50], "Close"] = bars.loc[t3[50], "High"] * 1.5
    bars.loc[t3[51], "Volume"] = 0
    return bars


@pytest.mark.parametrize("make", [lambda: make_bars(5, [60, 31, 12, 45, 60]), spoiled], ids=["clean", "with faults"])
def test_bars_are_those_of_the_csv_pipeline_bit_for_bit(tmp_path, make):
    bars = make()
    ours, theirs = panel_of(make_folder(tmp_path, bars)), reference(bars, missing="ffill", max_ffill=5)
    for name in ("features", "stamps", "times", "origin", "offsets", "breaks"):
        assert np.array_equal(getattr(ours, name), getattr(theirs, name)), name
    assert [info.symbol for info in ours.series] == [info.symbol for info in theirs.series]
    assert {info.period for info in ours.series} == {"1d"} and ours.timezone == "America/New_York" and ours.stamp == "open"
    assert ours.fingerprint == theirs.fingerprint, "one format, one fingerprint"


def test_the_order_of_the_file_does_not_matter(tmp_path):
    bars = spoiled()
    orders = {"date": bars, "ticker": bars.sort_values("Ticker", kind="stable"), "none": bars.sample(frac=1, random_state=1)}
    prints = set()
    for name, frame in orders.items():
        (tmp_path / name).mkdir()
        prints.add(panel_of(make_folder(tmp_path / name, frame)).fingerprint)
    assert len(prints) == 1


def test_neither_the_size_of_blocks_nor_the_number_of_buckets_changes_anything(tmp_path, monkeypatch):
    bars = spoiled()
    whole = panel_of(make_folder(tmp_path, bars)).fingerprint
    monkeypatch.setattr(kaggle_csv, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(kaggle_spill, "_BUCKET_BYTES", 5000)
    monkeypatch.setattr(kaggle_panel, "_ROWS_AT_ONCE", 70)
    (tmp_path / "pieces").mkdir()
    assert panel_of(make_folder(tmp_path / "pieces", bars)).fingerprint == whole


def test_no_bar_depends_on_a_later_one(tmp_path):
    bars = spoiled()
    later = bars["Date"].str[:10] >= "2001-05-21"
    changed = bars.copy()
    changed.loc[later, PRICES] *= 3
    for name, frame in {"whole": bars, "cut": bars[~later], "changed": changed}.items():
        (tmp_path / name).mkdir()
        make_folder(tmp_path / name, frame)
    whole = panel_of(tmp_path / "whole" / "data")
    cut_ns = pd.Timestamp("2001-05-21", tz="America/New_York").value
    for other in (panel_of(tmp_path / name / "data") for name in ("cut", "changed")):
        assert np.array_equal(whole.features[whole.times < cut_ns], other.features[other.times < cut_ns])


def test_the_wall_clock_date_counts_whatever_its_offset(tmp_path):
    bars = make_bars(1, 20, start="2001-03-26")
    assert {text[-6:] for text in bars["Date"]} == {"-05:00", "-04:00"}, "the clock changes on 1 April"
    panel = panel_of(make_folder(tmp_path, bars))
    days = pd.bdate_range("2001-03-26", periods=20)
    assert panel.stamps.tolist() == [[0, 0, day.weekday(), day.day, day.month] for day in days]
    assert np.array_equal(panel.times, days.tz_localize("America/New_York").as_unit("ns").asi8)
    bars["Date"] = bars["Date"].str[:10]
    (tmp_path / "plain").mkdir()
    assert panel_of(make_folder(tmp_path / "plain", bars)).fingerprint == panel.fingerprint, "a plain date is the same day"


def test_empty_bars_take_the_one_before_for_at_most_max_ffill_bars(tmp_path):
    bars = make_bars(1, 60)
    rows = rows_of(bars, "T0")
    bars.loc[rows[0], "Close"] = np.nan
    bars.loc[rows[20:22], PRICES] = np.nan
    bars.loc[rows[40:43], PRICES] = np.nan
    panel, report = panel_of(make_folder(tmp_path, bars, max_ffill=2)), report_of(tmp_path / "data")
    assert panel.n_rows == 60 - 1 - 3 and panel.breaks.tolist() == [39]
    assert np.array_equal(panel.features[19:21, :4], np.repeat(panel.features[18:19, :4], 2, axis=0)), "filled from before, not from behind"
    assert np.allclose(panel.features[:, 5], panel.features[:, 4] * panel.features[:, :4].mean(axis=1)), "amounts of filled bars too"
    assert report["rows"]["filled forward"] == 2
    assert report["rows"]["dropped"] == {"nothing before to fill from": 1, "gap longer than max_ffill 2": 3}


def test_of_two_bars_for_one_day_the_first_is_kept_and_no_gap_is_left(tmp_path):
    bars = make_bars(2, 30)
    rows = rows_of(bars, "T1")
    again = bars.loc[[rows[10], rows[20]]].copy()
    again.iloc[1, again.columns.get_loc("Close")] *= 1.001
    whole = panel_of(make_folder(tmp_path, bars))
    (tmp_path / "again").mkdir()
    panel = panel_of(make_folder(tmp_path / "again", pd.concat([bars, again])))
    assert panel.fingerprint == whole.fingerprint and not len(panel.breaks)
    dropped = report_of(tmp_path / "again" / "data")["rows"]["dropped"]
    assert dropped == {"date there twice with the same values": 1, "date there twice with other values (the first is kept)": 1}


def test_what_never_happened_is_not_listed(tmp_path):
    bars = make_bars(2, 30)
    out = make_folder(tmp_path, pd.concat([bars, bars.iloc[[10]]]))
    assert report_of(out)["rows"]["dropped"] == {"date there twice with the same values": 1}
    assert "with other values" not in (out / "report.md").read_text()


def test_every_row_read_is_kept_or_dropped_for_a_reason(tmp_path):
    bars = pd.concat([spoiled(), make_bars(["SHORT"], 9, start="2001-04-02")])
    bars.iloc[5, 0], bars.iloc[6, 1] = "", ""
    report = report_of(make_folder(tmp_path, bars, test=[("T0", "2001-06-01")]))
    rows = report["rows"]
    assert rows["read"] == len(bars) == rows["kept"] + sum(rows["dropped"].values())
    assert rows["dropped"] == {
        "ticker missing": 1,
        "date missing": 1,
        "price <= 0": 1,
        "high < low": 1,
        "open or close outside low to high": 1,
        "gap longer than max_ffill 5": 7,
        "nothing before to fill from": 1,
        "ticker shorter than 10": 9,
    }
    assert report["tickers"]["found"] == 5 and report["tickers"]["left out, longest first"] == {"SHORT": 9}
    assert "price <= 0 1" in (tmp_path / "data" / "report.md").read_text()


def test_real_tickers_that_look_like_empty_cells_are_kept(tmp_path):
    panel = panel_of(make_folder(tmp_path, make_bars(["NA", "NAN", "NULL", "TRUE", "BRK-B"], 30)))
    assert [info.symbol for info in panel.series] == ["BRK-B", "NA", "NAN", "NULL", "TRUE"]


def test_ids_of_the_test_file_name_a_ticker_alone_or_with_a_date(tmp_path):
    asked = [("T0", "2001-06-01"), ("T1_2001-06-04", "2001-06-04"), ("A_2", "2001-06-01"), ("T1_17", "2001-06-05"), ("GONE", "2001-06-01")]
    said = []
    folder = make_folder(
        tmp_path, make_bars(["T0", "T1", "A_2", "TINY", "A"], [30, 30, 30, 5, 30]), test=[*asked, ("TINY", "2001-06-01")], say=said.append
    )
    rows = pyarrow.parquet.read_table(folder / "test.parquet").to_pandas()
    assert rows["ID"].tolist() == [text for text, _ in asked] + ["TINY"]
    assert rows["symbol"].tolist() == ["T0", "T1", "A_2", "T1", "GONE", "TINY"]
    assert rows["date"].dt.strftime("%F").tolist()[:4] == [date for _, date in asked[:4]]
    assert any("warning: tickers of test.csv not in train.csv: 1 (1 rows): GONE" in text for text in said)
    assert any("left out of the panel: 1 (1 rows): TINY" in text for text in said)


def test_a_test_file_without_a_date_column_may_have_dates_in_its_ids(tmp_path):
    write_train(tmp_path / "train.csv", make_bars(1, 30))
    (tmp_path / "test.csv").write_text("ID\nT0_2001-05-07\nT0_2001-05-08\n")
    prepare(tmp_path / "train.csv", tmp_path / "test.csv", tmp_path / "data", KaggleSettings(8), say=lambda text: None)
    rows = pyarrow.parquet.read_table(tmp_path / "data" / "test.parquet").to_pandas()
    assert rows["symbol"].tolist() == ["T0", "T0"] and rows["date"].dt.day.tolist() == [7, 8]
    (tmp_path / "test.csv").write_text("ID\nT0_2001-05-07\nT0\n")
    with pytest.raises(InputError, match=r"test.csv, row 3, column 'ID': there is no Date column, and 'T0' does not end in a date"):
        prepare(tmp_path / "train.csv", tmp_path / "test.csv", tmp_path / "data", KaggleSettings(8))


@pytest.mark.parametrize(
    "change", [lambda text: text.replace(",", ";"), lambda text: text.replace(",", "\t"), lambda text: "\ufeff" + text]
)
def test_other_separators_and_a_byte_order_mark_are_read(tmp_path, change):
    bars = make_bars(2, 30)
    whole = panel_of(make_folder(tmp_path, bars)).fingerprint
    text = (tmp_path / "train.csv").read_text()
    (tmp_path / "train.csv").write_bytes(change(text).encode())
    prepare(tmp_path / "train.csv", tmp_path / "test.csv", tmp_path / "data", KaggleSettings(8), say=lambda text: None)
    assert panel_of(tmp_path / "data").fingerprint == whole


def test_a_gzipped_file_is_read_and_a_damaged_one_refused(tmp_path):
    whole = panel_of(make_folder(tmp_path, make_bars(2, 800))).fingerprint
    packed = tmp_path / "train.csv.gz"
    packed.write_bytes(gzip.compress((tmp_path / "train.csv").read_bytes()))
    prepare(packed, tmp_path / "test.csv", tmp_path / "packed", KaggleSettings(8), say=lambda text: None)
    assert panel_of(tmp_path / "packed").fingerprint == whole
    whole_bytes = packed.read_bytes()
    for left in (len(whole_bytes) - 2000, 2000):  # seen while the rows are read, and in the head
        packed.write_bytes(whole_bytes[:left])
        with pytest.raises(InputError, match=r"train\.csv\.gz: .*damaged.*fetch"):
            prepare(packed, tmp_path / "test.csv", tmp_path / "packed", KaggleSettings(8), say=lambda text: None)


def test_a_panel_written_in_pieces_is_checked_as_one_that_is_built(tmp_path):
    good = panel_of(make_folder(tmp_path, make_bars(2, 30)))
    for value, message in ((np.inf, "features must be finite"), (None, "times must increase")):
        features, times = good.features.copy(), good.times.copy()
        if value is None:
            times[40] = times[39]
        else:
            features[40, 0] = value
        with (
            pytest.raises(InputError, match=rf"series 'T1', row 10 of it .*{message}"),
            PanelWriter(tmp_path / "p", series=good.series, offsets=good.offsets, breaks=good.breaks) as writer,
        ):
            for piece in (slice(0, 7), slice(7, 60)):
                writer.append(features[piece], np.array(good.stamps[piece]), times[piece])
            writer.finish()
        assert not list(tmp_path.glob("*p.*")) and not (tmp_path / "p").exists()


def test_a_finished_folder_is_known_again_and_only_a_change_makes_it_anew(tmp_path):
    said = []
    folder = make_folder(tmp_path, make_bars(2, 30))
    files = tmp_path / "train.csv", tmp_path / "test.csv", folder

    def made_again(**how) -> bool:
        said.clear()
        settings = KaggleSettings(8, max_ffill=how.pop("max_ffill", 5))
        assert prepare(*files, settings, say=said.append, **how)["panel"]["fingerprint"] == panel_of(folder).fingerprint
        return not any("already there, made from the same files" in text for text in said)

    assert not made_again()
    assert made_again(force=True)
    assert made_again(max_ffill=3) and made_again() and not made_again()
    os.utime(files[0], ns=(0, 0))
    assert made_again() and not made_again(), "written again: only reading all of it could tell that it is the same"
    text = files[0].read_text()
    files[0].write_text(text.replace(",0.0\n", ",1.0\n", 1))
    assert made_again() and not made_again()
    (folder / "manifest.json").unlink()
    assert made_again(), "without its manifest the folder was not finished"
    (folder / "panel" / "features.npy").write_bytes(b"")
    assert made_again(), "a damaged panel is made again"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("where", ["reading", "cleaning", "writing"])
def test_a_signal_stops_it_at_once_and_nothing_is_left(tmp_path, monkeypatch, number, where):
    place = {"reading": (kaggle_spill.Spill, "add"), "cleaning": (kaggle_spill.Spill, "take"), "writing": (kaggle_spill.RowFile, "read")}[
        where
    ]
    original = getattr(*place)

    def interrupted(*args):
        signal.raise_signal(number)
        return original(*args)

    monkeypatch.setattr(*place, interrupted)
    with pytest.raises(Interrupted, match=f"stopped by {signal.Signals(number).name}: .*run the same command to start over"):
        make_folder(tmp_path, make_bars(2, 30))
    assert sorted(os.listdir(tmp_path)) == ["test.csv", "train.csv"]


KILL = """
import os, signal
from finetune.data import kaggle_panel
from kaggle_bars import make_bars, make_folder
from pathlib import Path
real = kaggle_panel.PanelWriter.append
def die(*args):
    real(*args)
    os.kill(os.getpid(), signal.SIGKILL)
kaggle_panel.PanelWriter.append = die
make_folder(Path("."), make_bars(2, 30))
"""


def test_after_kill_9_the_next_run_starts_over_and_removes_what_was_left(tmp_path):
    tests = Path(__file__).resolve().parent
    killed = subprocess.run([sys.executable, "-c", KILL], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tests)}, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    left = os.listdir(tmp_path / "data")
    assert ".kaggle_work" in left and "panel" not in left and "manifest.json" not in left, "hidden, and no half panel"
    folder = make_folder(tmp_path, make_bars(2, 30))
    assert sorted(os.listdir(folder)) == ["manifest.json", "panel", "report.json", "report.md", "test.parquet"]
    panel_of(folder).verify()


def test_a_full_disk_is_one_message_and_leaves_nothing(tmp_path):
    make_folder(tmp_path, make_bars(20, 300))
    limited = "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); "
    limited += "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    arguments = [str(COMMAND), "--train", "train.csv", "--test", "test.csv", "--out", "full", "--lookback", "8"]
    done = subprocess.run([sys.executable, "-c", limited, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stderr.startswith("error: cannot spill bars to full/.kaggle_work/spill: the file would be larger")
    assert done.stderr.count("\n") == 1 and not (tmp_path / "full").exists()


def test_the_command_says_how_fast_it_was_and_what_comes_next(tmp_path):
    make_folder(tmp_path, make_bars(3, 30))
    command = [sys.executable, str(COMMAND), "--train", "train.csv", "--test", "test.csv", "--out", "out", "--lookback", "8"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "90 read, 90 kept, 0 dropped (none)" in done.stdout and "rows/s, peak" in done.stdout
    assert "next: python finetune_csv/kaggle_validate.py --data out" in done.stdout
    assert panel_of(tmp_path / "out").fingerprint == panel_of(tmp_path / "data").fingerprint


def test_only_one_run_works_in_a_folder(tmp_path):
    from finetune.data.kaggle_work import workplace

    with workplace(tmp_path / "data"), pytest.raises(InputError, match="another run is preprocessing into this folder"):
        make_folder(tmp_path, make_bars(2, 30))


def test_progress_tells_rows_speed_and_time_left(tmp_path, monkeypatch):
    from finetune.data import kaggle_work

    monkeypatch.setattr(kaggle_work, "_EVERY_S", 0.0)
    said = []
    make_folder(tmp_path, make_bars(2, 60), say=said.append)
    assert any(text.startswith("reading: 120 rows (100%)") and "rows/s, about 0 s left" in text for text in said)


def test_the_benchmark_at_200_000_rows_measures_both_sizes(capsys):
    report = kaggle_data.main(["--tickers", "50", "--rows", "200000", "--splits", "raw"])
    assert [row.measure.split(",")[0] for row in report.rows] == ["preprocessing 0.2 million rows"] * 2 + ["ten times the rows"] * 2
    large = report.details["200,000 rows"]
    assert large["rows kept"] + large["rows dropped"] == 200_000 and large["splits"] == "not adjusted" and large["peak MB"] > 100
