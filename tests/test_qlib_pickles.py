"""The pickles for the public code: layout, values and dates."""

import os
import pickle
import pickletools
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from qlib_bars import CHANGING, HORIZON, LATE, LOOKBACK, data_section, market

from finetune.data.frames import wall_clock
from finetune.data.qlib_panels import build_panels
from finetune.data.qlib_pickles import write_pickles
from kronos.errors import InputError

COLUMNS = ["open", "high", "low", "close", "vol", "amt"]
NAMES = ("train", "val", "test")


def quiet(_):
    return None


@pytest.fixture(scope="module")
def made():
    return build_panels(data_section(instrument="few"), quiet)


def written(made, folder, kind):
    """The content of the three files, by name."""
    files = write_pickles(made, folder, kind, data_section(), quiet)
    assert sorted(os.listdir(folder)) == ["test_data.pkl", "train_data.pkl", "val_data.pkl"]
    return {name: pickle.loads(files[name].read_bytes()) for name in NAMES}


def test_frames_are_what_the_public_data_set_reads(tmp_path, made):
    read, frames = written(made, tmp_path, "frames"), market()
    for name in NAMES:
        first, last = getattr(data_section(), f"{name}_time_range")
        assert list(read[name]) == [f"SH60000{i}" for i in range(6)]
        for symbol, frame in read[name].items():
            assert list(frame.columns) == COLUMNS and (frame.dtypes == np.float32).all()
            assert isinstance(frame.index, pd.DatetimeIndex) and frame.index.name == "datetime" and frame.index.tz is None
            there = frames[symbol].loc[first:last, ["open", "high", "low", "close", "volume", "amount"]].dropna()
            assert list(frame.index) == list(there.index), "the range, without margins"
            np.testing.assert_allclose(frame.to_numpy(), there.to_numpy(), rtol=1e-6)
            assert "datetime" in frame.reset_index().columns


def test_frames_hold_nothing_that_pandas_2_cannot_read(tmp_path, made):
    write_pickles(made, tmp_path, "frames", data_section(), quiet)
    names = {str(part) for _, part, _ in pickletools.genops((tmp_path / "val_data.pkl").read_bytes()) if isinstance(part, str)}
    assert "StringDtype" not in names and "DatetimeIndex" in " ".join(names)


def test_samples_are_windows_at_origins_with_the_documented_keys(tmp_path, made):
    read = written(made, tmp_path, "samples")
    for name in NAMES:
        panel, samples = getattr(made, name), read[name]
        assert len(samples) > 0.7 * panel.origin.sum() / HORIZON
        times, symbols = wall_clock(panel, 0, panel.n_rows).to_numpy(), [info.symbol for info in panel.series]
        for sample in samples[::7]:
            assert list(sample) == ["input_data", "target_data", "input_timestamps", "target_timestamps", "symbol"]
            assert sample["input_data"].shape == (LOOKBACK, 6) and sample["target_data"].shape == (HORIZON, 6)
            low = panel.offsets[symbols.index(sample["symbol"])]
            row = low + int(
                np.searchsorted(times[low : panel.offsets[symbols.index(sample["symbol"]) + 1]], sample["input_timestamps"][-1])
            )
            assert panel.origin[row]
            assert np.array_equal(sample["input_data"], panel.features[row + 1 - LOOKBACK : row + 1])
            assert np.array_equal(sample["target_data"], panel.features[row + 1 : row + 1 + HORIZON])
            assert np.array_equal(sample["target_timestamps"], times[row + 1 : row + 1 + HORIZON])


def test_samples_start_only_while_the_symbol_was_in_the_pool(tmp_path, made):
    starts = [s["input_timestamps"][-1] for s in written(made, tmp_path, "samples")["train"] if s["symbol"] == CHANGING]
    assert starts and max(starts) <= np.datetime64("2021-03-31")


def test_samples_stand_further_apart_where_there_would_be_too_many(tmp_path, made, monkeypatch):
    monkeypatch.setattr("finetune.data.qlib_pickles._MOST_SAMPLES", 20)
    lines = []
    write_pickles(made, tmp_path, "samples", data_section(), lines.append)
    samples = pickle.loads((tmp_path / "train_data.pkl").read_bytes())
    assert 10 <= len(samples) <= 26 and f"{len(samples)} samples" in lines[0]


def test_a_symbol_that_was_not_listed_yet_has_only_its_own_bars(tmp_path):
    everything = build_panels(data_section(), quiet)
    train = written(everything, tmp_path, "frames")["train"]
    assert train[LATE].index[0] == market()[LATE].index[0] and len(train[LATE]) < len(train["SH600000"])


def test_another_kind_is_refused(tmp_path, made):
    with pytest.raises(InputError, match="--export-pickle: 'csv' is not one of frames, samples"):
        write_pickles(made, tmp_path, "csv", data_section(), quiet)


def test_the_pickles_are_read_without_any_of_our_packages(tmp_path, made):
    write_pickles(made, tmp_path, "frames", data_section(), quiet)
    program = "import pickle, sys; d = pickle.load(open('val_data.pkl', 'rb')); assert len(d) == 6; assert 'finetune' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, timeout=60)
