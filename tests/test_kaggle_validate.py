import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from kaggle_bars import PRICES, make_bars, make_folder, rows_of

from finetune.data import kaggle_checks
from finetune.data.kaggle_checks import FAIL, PASS, WARN, check_folder
from finetune.data.panel import Panel
from finetune_csv import kaggle_validate

ROOT = Path(__file__).resolve().parents[1]


def status(folder, lookback=8, predict=1):
    return {check.what: (check.status, check.told) for check in check_folder(folder, lookback, predict)}


@pytest.fixture
def validate(tmp_path, monkeypatch, capsys):
    """Runs the command in tmp_path; returns (exit code, what it printed)."""

    def run(*arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["kaggle_validate.py", *arguments])
        code = kaggle_validate.main()
        return code, capsys.readouterr().out

    return run


def resaved(folder, **changes):
    """The folder's panel with other values, as if preprocessing had made it so."""
    panel = Panel.open(folder / "panel")
    features = panel.features.copy()
    for row, column, value in changes.pop("cells"):
        features[row, column] = value
    names = ("stamps", "times", "offsets", "breaks", "series", "columns", "timezone", "stamp")
    built = Panel.build(
        features=features, **{name: np.array(getattr(panel, name)) if name in names[:4] else getattr(panel, name) for name in names}
    )
    built.save(folder / "panel")
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "panel": built.fingerprint}))


def test_a_good_folder_passes_and_tells_what_is_in_it(tmp_path):
    seen = status(make_folder(tmp_path, make_bars(3, [60, 20, 40])))
    assert {state for state, _ in seen.values()} == {PASS}
    assert seen["size"][1] == "3 tickers, 120 rows, 0 gaps"
    assert seen["length of tickers"][1] == "shortest T1 20, longest T0 60, median 40"
    assert seen["dates"][1] == "2001-03-26 to 2001-06-15, wall clock America/New_York"
    assert seen["tickers long enough"][1].startswith("3 of 3 (100.0%)") and "93 windows" in seen["tickers long enough"][1]
    assert seen["test rows"][1].startswith("3 of 3 have 8 bars")


def test_a_folder_that_is_not_there_or_not_finished_names_the_command_to_run(tmp_path):
    run = r"run: python finetune_csv/kaggle_data_preprocess.py --train train.csv --test test.csv --out"
    assert status(tmp_path / "nix")["panel opens"] == (FAIL, f"{tmp_path / 'nix'}: there is no such folder; {run} {tmp_path / 'nix'}")
    (tmp_path / "new").mkdir()
    assert "not preprocessed yet" in status(tmp_path / "new")["panel opens"][1]
    folder = make_folder(tmp_path, make_bars(2, 30))
    (folder / "manifest.json").unlink()
    assert status(folder)["panel opens"][0] == FAIL and "did not end" in status(folder)["panel opens"][1]


def test_one_changed_byte_in_the_panel_is_found(tmp_path):
    folder = make_folder(tmp_path, make_bars(2, 30))
    data = bytearray((folder / "panel" / "features.npy").read_bytes())
    data[-3] ^= 1
    (folder / "panel" / "features.npy").write_bytes(data)
    assert status(folder)["panel is whole"][0] == FAIL


def test_another_panel_than_the_manifest_names_is_found(tmp_path):
    folder = make_folder(tmp_path, make_bars(2, 30))
    Panel.open(make_folder(_made(tmp_path / "other"), make_bars(2, 30, seed=1)) / "panel").save(folder / "panel")
    assert "another panel than manifest.json names" in status(folder)["panel opens"][1]


def _made(folder):
    folder.mkdir()
    return folder


def test_length_counts_without_gaps_and_too_few_long_tickers_are_a_warning(tmp_path):
    bars = make_bars(3, 40)
    for name in ("T0", "T1"):
        bars.loc[rows_of(bars, name)[20], "Close"] = -1.0
    folder = make_folder(tmp_path, bars)
    assert status(folder, 17)["tickers long enough"][0] == PASS
    state, told = status(folder, 20)["tickers long enough"]
    assert state == WARN and told == "1 of 3 (33.3%) have lookback 20 + 1 + 1 = 22 bars without a gap: 19 windows"
    assert status(folder, 60)["tickers long enough"][0] == FAIL


def test_extreme_returns_are_counted_and_the_worst_named_but_not_from_one_ticker_to_the_next(tmp_path):
    bars = make_bars(2, 40)
    bars.loc[rows_of(bars, "T1"), PRICES] *= 1000
    bars.loc[rows_of(bars, "T1")[10:20], PRICES] *= 5
    state, told = status(make_folder(tmp_path, bars))["extreme returns"]
    assert state == WARN and told.startswith("2 of 78 beyond") and "T1 on 2001-04-09" in told and "T1 on 2001-04-23 -8" in told


def test_pieces_of_the_panel_join(tmp_path, monkeypatch):
    bars = make_bars(3, 40)
    bars.loc[rows_of(bars, "T1")[10:20], PRICES] *= 5
    folder = make_folder(tmp_path, bars)
    whole = status(folder)["extreme returns"]
    for size in (1, 7, 50):
        monkeypatch.setattr(kaggle_checks, "_ROWS_AT_ONCE", size)
        assert status(folder)["extreme returns"] == whole


def test_prices_that_are_not_above_zero_fail_and_many_silent_bars_warn(tmp_path):
    folder = make_folder(tmp_path, make_bars(2, 30))
    resaved(folder, cells=[(3, 0, 0.0), (40, 2, -1.0)])
    assert status(folder)["numbers"] == (FAIL, "2 rows with NaN, infinity or a price that is not above 0")
    resaved(folder, cells=[(row, 4, 0.0) for row in range(20)])
    assert status(folder)["bars without volume"] == (WARN, "20 (33.33%)")


def test_test_rows_need_their_bars_no_later_than_their_date(tmp_path):
    asked = [("T0", "2001-04-04"), ("T0", "2001-04-03"), ("T1", "2001-06-01"), ("GONE", "2001-06-01")]
    folder = make_folder(tmp_path, make_bars(2, 30), test=asked)
    state, told = status(folder)["test rows"]
    assert state == WARN and told.startswith("2 of 4 have 8 bars") and "1 have fewer, 1 ask about tickers" in told
    (folder / "test.parquet").write_bytes(b"PAR1 and nothing")
    assert status(folder)["test rows"][0] == FAIL


def test_the_command_prints_the_table_and_its_exit_code_tells(tmp_path, validate):
    make_folder(tmp_path, make_bars(2, 30))
    code, shown = validate("--data", "data", "--lookback", "8")
    assert code == 0 and "PASS  panel is whole" in shown and "0 failed, 0 warnings: ready to train" in shown
    code, shown = validate("--data", "data")
    assert code == 2 and "FAIL  tickers long enough" in shown and "not ready to train" in shown


def test_a_configuration_is_checked_against_the_folder(tmp_path, validate):
    folder = make_folder(tmp_path, make_bars(2, 30))
    text = "data:\n  data_path: {}\n  lookback_window: 8\n  predict_window: 1\n  max_context: {}\n"
    (tmp_path / "good.yaml").write_text(text.format(folder / "panel", 32))
    code, shown = validate("--data", "data", "--config", "good.yaml")
    assert code == 0 and "PASS  config" in shown and "lookback 8 + 1 + 1" in shown, shown
    (tmp_path / "other.yaml").write_text(text.format(tmp_path / "other", 32))
    assert "WARN  config" in validate("--data", "data", "--config", "other.yaml")[1]
    (tmp_path / "typo.yaml").write_text(text.format(folder / "panel", 32).replace("lookback", "lokback"))
    code, shown = validate("--data", "data", "--config", "typo.yaml", "--lookback", "8")
    assert code == 2 and "FAIL  config" in shown and "lookback_window" in shown
    assert validate("--data", "data", "--config", "good.yaml", "--set", "data.lookback_window=20")[0] == 0, "--set counts"
    assert validate("--data", "data", "--config", "good.yaml", "--set", "data.lookback_window=29", "data.max_context=64")[0] == 2


@pytest.mark.parametrize("name", ["kaggle_validate.py", "kaggle_data_preprocess.py"])
def test_help_and_unknown_flags(tmp_path, name):
    command = [sys.executable, str(ROOT / "finetune_csv" / name)]
    shown = subprocess.run([*command, "--help"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert shown.returncode == 0 and "examples:" in shown.stdout
    wrong = subprocess.run([*command, "--dta", "x"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert wrong.returncode == 2 and wrong.stderr.startswith("error: ") and wrong.stderr.count("\n") == 1
