"""What the network looks at: planted importances come first, bands are percentiles, lags count from the last known bar."""

import json
import sys

import numpy as np
import pandas as pd
import pytest
import tft_data
import tft_tiny
import torch

from finetune.engine.command import run_command
from finetune.engine.config import load_config
from kronos.errors import InputError
from tft.config import TftConfig
from tft.importance import Looked, attention_by_lag, bands, importance, look, spread, time_spans
from tft.interpret import main
from tft.train_run import train
from tft.training import load_run

TWENTY = tuple(f"feature_{k}" for k in range(20))
DAY = 86_400 * 10**9


class Planted(tft_tiny.Source):
    """Windows of 20 features, two of which make the target, with noise."""

    def __init__(self, of, count, seed=0):
        self.data = tft_tiny.plain(tft_tiny.batch(count, 1, encoder=2, of=of, dtype=torch.float32, seed=seed))
        last, draw = self.data["past"][:, -1], torch.Generator().manual_seed(seed)
        self.data["targets"] = (last[:, 3] + last[:, 11] + 0.3 * torch.randn(count, generator=draw))[:, None]

    def __len__(self):
        return len(self.data["row"])


def twenty(seed):
    return tft_tiny.task(seed, {"target_y": "MSE"}, past=20, known=1, categories=(), statics=(), lstm_layers=1)


def trained(seed, steps=200, size=64):
    """A network that has seen each of steps · size windows once."""
    task = twenty(seed)
    source, optimiser = Planted(task.sizes, steps * size, seed), torch.optim.Adam(task.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-2, total_steps=steps)
    for step in range(steps):
        optimiser.zero_grad()
        task(source.gather(np.arange(step * size, (step + 1) * size))).loss.backward()
        optimiser.step()
        schedule.step()
    return task


@pytest.mark.slow
def test_the_two_features_of_twenty_that_matter_rank_first_over_three_networks():
    """One so small network puts them first in 5 of 9 seeds only, though all fit: what a weight of selection says is not unique."""
    tables = []
    for seed in range(3):
        task = trained(seed)
        tables.append(importance(look(task, Planted(task.sizes, 256, seed + 50), TWENTY, ["weekday"], [], np.arange(256))))
    for found in tables:
        past = found[found.part == "past"]
        assert len(past) == 21 and past["mean"].sum() == pytest.approx(1, abs=1e-4)
        assert found[found.part == "known"]["mean"].tolist() == pytest.approx([1.0])
    mean = pd.concat(tables).query("part == 'past'").groupby("variable")["mean"].mean().sort_values(ascending=False)
    assert set(mean.index[:2]) == {"feature_3", "feature_11"}, mean.head(4)
    assert mean.iloc[1] > 1.5 * mean.iloc[2], "not by a hair"


def looked(weights, attention=None, encoder=3, **changes):
    count = len(weights)
    attention = np.full((count, 4), 0.25, np.float32) if attention is None else attention
    weights = {"past": np.asarray(weights, np.float32)}
    names = {"past": ("a", "b")}
    period, symbol = (np.array(changes.get(key, ["x"] * count), object) for key in ("period", "symbol"))
    return Looked(weights, names, attention, encoder, np.arange(count), period, symbol)


def test_bands_are_percentiles_over_windows():
    share = np.linspace(0, 1, 101)
    found = importance(looked(np.column_stack([share, 1 - share])))
    a = found[found.variable == "a"].iloc[0]
    assert [a["mean"], a.p10, a.p50, a.p90] == pytest.approx([0.5, 0.1, 0.5, 0.9], abs=1e-6) and a.windows == 101


def test_groups_are_told_apart_and_ranked_by_themselves():
    found = importance(looked([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]]), np.array(["u", "u", "v"], object))
    assert found[found["rank"] == 1][["group", "variable", "windows"]].to_numpy().tolist() == [["u", "a", 2], ["v", "b", 1]]
    assert found[(found.group == "u") & (found.variable == "a")]["mean"].item() == pytest.approx(0.85)


def test_attention_is_told_by_bars_before_the_last_known_one():
    weights = np.array([[0.1, 0.2, 0.6, 0.1]] * 4, np.float32)
    found = attention_by_lag(looked([[0.5, 0.5]] * 4, weights))
    assert dict(zip(found.lag, found["mean"].round(3), strict=True)) == {2: 0.1, 1: 0.2, 0: 0.6, -1: 0.1}


def test_weights_are_those_of_the_network_window_by_window():
    task = twenty(0)
    source = Planted(task.sizes, 40)
    found = look(task, source, TWENTY, ["weekday"], [], np.arange(40))
    expected = task.model.eval()(source.gather(np.arange(40)), interpret=True)
    np.testing.assert_allclose(found.attention, expected["attention"][:, -1].detach(), atol=1e-6)
    np.testing.assert_allclose(found.weights["past"], expected["past_weights"].mean(1).detach(), atol=1e-6)
    assert found.lags.tolist() == [1, 0, -1] and found.attention.shape == (40, 3)


def test_windows_are_spread_over_the_whole_split():
    assert spread(10, 100).tolist() == list(range(10))
    chosen = spread(100_000, 640)
    assert 600 <= len(chosen) <= 640 and chosen[0] == 0 and chosen[-1] == 99_999 and np.diff(chosen).max() < 3_000
    assert len(spread(100, 3)) == 3


def test_spans_of_time_begin_on_whole_days_and_are_few():
    times = np.arange(0, 1000 * DAY, DAY // 4) + 5
    spans = time_spans(times)
    assert len(np.unique(spans)) <= 24 and (spans.astype("datetime64[ns]").astype(np.int64) % DAY == 0).all()
    assert (spans.astype("datetime64[ns]").astype(np.int64) <= times).all()
    assert len(np.unique(time_spans(np.array([7, 7, 7])))) == 1


def test_bands_of_nothing_but_one_window_are_that_window():
    found = bands(np.array([[0.25, 0.75]]), ["a", "b"])
    assert found[["mean", "p10", "p50", "p90"]].to_numpy().tolist() == [[0.25] * 4, [0.75] * 4]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return train(load_config(TftConfig, tft_data.write_config(folder, rows=120, max_epochs=1), (), {}), "train_multi_tft")


def command(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["interpret.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        run_command(main)
    return ended.value.code


def test_the_command_leaves_tables_and_pictures(run, monkeypatch, tmp_path, capsys):
    assert command(monkeypatch, "--run", str(run), "--out", str(tmp_path), "--windows", "64") == 0
    assert "past: " in capsys.readouterr().out
    tables = {path.stem: pd.read_csv(path) for path in tmp_path.glob("*.csv")}
    overall = tables["importance"]
    names = {*tft_data.REALS, *tft_data.KNOWN, "hour_category"}
    assert set(overall[overall.part == "past"].variable) == names and set(overall.part) == {"past", "known", "static"}
    assert set(overall[overall.part == "known"].variable) == {*tft_data.KNOWN, "hour_category"}
    assert overall.groupby("part")["mean"].sum().tolist() == pytest.approx([1, 1, 1], abs=1e-4)
    assert ((overall.p10 <= overall.p50) & (overall.p50 <= overall.p90)).all()
    assert set(tables["importance_by_symbol"].group) == {"AAA", "BBB"} and set(tables["importance_by_period"].group) == {"1h", "4h"}
    attention = tables["attention_by_period"].groupby("group")["mean"].sum()
    assert attention.to_dict() == pytest.approx({"1h": 1, "4h": 1}, abs=1e-4)
    assert tables["importance_over_time"].group.nunique() > 1
    numbers = json.loads((tmp_path / "interpretation.json").read_text())
    assert numbers["percentiles"] == [10, 50, 90] and len(numbers["importance"]) == len(overall)
    pictures = sorted(path.stem for path in tmp_path.glob("*.png"))
    assert pictures == ["attention_by_period", *sorted(name for name in tables if name.startswith("importance"))]
    assert all((tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG") for name in pictures)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--run", "absent"), "is no run"),
        (("--run", "RUN", "--split", "test"), "--split test: has no window"),
        (("--run", "RUN", "--split", "latest"), "invalid choice: 'latest'"),
        (("--run", "RUN", "--windows", "0"), "--windows 0"),
    ],
)
def test_bad_input_ends_in_one_line_and_exit_code_2(run, arguments, told, monkeypatch, capsys):
    assert command(monkeypatch, *(str(run) if argument == "RUN" else argument for argument in arguments)) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and told in message and message.count("\n") == 1


def test_no_window_is_refused(run):
    prepared = load_run(run, say=lambda text: None)
    with pytest.raises(InputError, match="no window to interpret"):
        look(prepared.task, prepared.windows["val"], [], [], [], np.empty(0, np.int64))
