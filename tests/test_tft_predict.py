"""Forecasts of a trained run: their table, their units, the newest bars, and the report beside the baselines."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import tft_data
import torch

from finetune.engine.command import run_command
from finetune.engine.config import load_config
from kronos.errors import InputError, MissingFileError
from tft.config import TftConfig
from tft.forecasts import Outputs, batches, last_rows, run_network
from tft.long_tables import panel_to_table
from tft.losses import TargetLoss
from tft.predict import main
from tft.prediction_table import chosen_sources, forecast, prediction_table, write_table
from tft.report import CONSTANT, LIGHTGBM, MODEL, baseline_point, compare, label_reach
from tft.report_run import report_split
from tft.report_text import verdicts, write_report
from tft.train_run import train
from tft.training import load_run

TARGETS = {"target_up": "WeightedBCE", "target_rare": "focal", "target_return": {"name": "quantile", "quantiles": [0.1, 0.5, 0.9]}}
HOUR = tft_data.HOUR


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    config = load_config(TftConfig, tft_data.write_config(folder, rows=400, targets=TARGETS, batch_size=64, test_ratio=0.2), (), {})
    return train(config, "train_multi_tft")


@pytest.fixture(scope="module")
def prepared(run):
    return load_run(run, say=lambda text: None)


@pytest.fixture(scope="module")
def outputs(prepared):
    return forecast(prepared, chosen_sources(prepared, ["all"], "24/7"))


@pytest.fixture(scope="module")
def table(prepared, outputs):
    return prediction_table(prepared, outputs)


def test_there_is_one_row_per_series_time_and_target(prepared, table):
    assert not table.duplicated(["symbol", "period", "time", "target"]).any()
    counts = table.groupby("split").size() / len(TARGETS)
    assert counts.to_dict() == {**{name: len(source) for name, source in prepared.windows.items()}, "latest": 4}
    assert set(zip(table.symbol, table.period, strict=True)) == set(tft_data.SERIES)


def test_truth_is_the_panels_at_the_last_bar_of_the_window(prepared, table):
    panel = prepared.panel
    row = table[(table.split == "val") & (table.target == "target_return")].iloc[7]
    number = [(info.symbol, info.period) for info in panel.series].index((row.symbol, row.period))
    rows = slice(int(panel.offsets[number]), int(panel.offsets[number + 1]))
    at = rows.start + int(np.flatnonzero(panel.times[rows] == row.time.value)[0])
    assert row.truth == pytest.approx(float(panel.targets[at, panel.target_names.index("target_return")]))


def test_values_are_in_the_targets_own_units_with_their_quantiles_around_them(prepared, outputs, table):
    found = table[(table.split == "test") & (table.target == "target_return")]
    assert (found["q0.1"] <= found["q0.5"]).all() and (found["q0.5"] <= found["q0.9"]).all()
    assert abs(found.value.mean() - 0.01) < 0.01 and found.value.std() < 0.05, "labels are 0.02 x + 0.01, not of deviation 1"
    raw, rows = outputs["test"].raw["target_return"], outputs["test"].row
    labels = prepared.panel.targets[:, 2]
    first = int(np.searchsorted(prepared.panel.offsets, rows[0], side="right")) - 1
    learned = prepared.windows["train"].rows()
    own = labels[learned[(learned >= prepared.panel.offsets[first]) & (learned < prepared.panel.offsets[first + 1])]]
    expected = raw[0] * np.nanstd(own) + np.nanmean(own)
    time = pd.Timestamp(int(prepared.panel.times[rows[0]]), tz="UTC")
    info = prepared.panel.series[first]
    row = found[(found.time == time) & (found.symbol == info.symbol) & (found.period == info.period)].iloc[0]
    assert [row["q0.1"], row["q0.5"], row["q0.9"]] == pytest.approx(np.sort(expected), rel=1e-4, abs=1e-6)


def test_probabilities_are_those_of_the_data_and_not_of_the_weighted_loss(prepared, table):
    for target in ("target_up", "target_rare"):
        learned = table[(table.split == "train") & (table.target == target)]
        assert learned.value.between(0, 1).all() and set(learned.decision) <= {0.0, 1.0}
        assert abs(learned.value.mean() - learned.truth.mean()) < 0.12
    assert table[table.kind == "value"].decision.isna().all()


def test_the_newest_bar_of_each_series_is_forecast_without_a_truth(prepared, table):
    newest = table[table.split == "latest"]
    assert newest.truth.isna().all() and newest.value.notna().all()
    assert (newest.time == pd.Timestamp(tft_data.END, tz="UTC")).all() and len(newest) == 4 * len(TARGETS)


def test_neighbouring_windows_share_their_rows_and_change_nothing(prepared):
    source = prepared.windows["test"]
    together = run_network(prepared.task, source)
    alone = prepared.task.model(source.gather(np.arange(len(source))))["logits"]
    shapes = [(tuple(batch["blocks"].shape), len(batch["row"])) for batch in batches(source) if "blocks" in batch]
    assert len(shapes) >= 4 and all(shape == (1, count) for shape, count in shapes), "one stretch for each series"
    for name, values in alone.items():
        np.testing.assert_allclose(together.raw[name], values.detach().numpy(), atol=2e-5)
    spread = np.arange(0, len(source), 5)
    assert torch.cat([batch["row"] for batch in batches(source, index=spread)]).tolist() == source.rows(spread).tolist()


def test_the_report_measures_what_training_measured(run, prepared, outputs):
    found = compare(prepared, "val", prepared.windows["val"], outputs["val"], with_lightgbm=False)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    best = json.loads((run / "summary.json").read_text())["best_epoch"]
    logged = next(line for line in lines if line["split"] == "val" and line["epoch"] + 1 == best)
    same = [name for name in found.metrics[MODEL] if not name.startswith("target_return")]
    assert {"target_up_auc@4h", "target_rare_f1", "target_up_precision@1h"} <= set(same)
    for name in same:
        assert found.metrics[MODEL][name] == pytest.approx(logged[name], abs=1e-6), name
    assert found.periods == ["all periods", "1h", "4h"]


def truthful(prepared, outputs, sign=1.0):
    """Outputs as if the network knew (or, sign -1, turned round) every label, quantiles a little apart."""
    labels = {name: np.nan_to_num(outputs.labels[:, [k]]) for k, name in enumerate(prepared.task.losses.losses)}
    raw = {name: sign * (6 * values - 3) for name, values in labels.items()}
    raw["target_return"] = sign * labels["target_return"] + np.array([-0.1, 0.0, 0.1], np.float32)
    return Outputs(outputs.row, outputs.period, {name: values.astype(np.float32) for name, values in raw.items()}, outputs.labels)


def test_verdicts_tell_an_oracle_from_its_opposite(prepared, outputs, tmp_path):
    source = prepared.windows["test"]
    oracle = compare(prepared, "test", source, truthful(prepared, outputs["test"]))
    for target in TARGETS:
        assert oracle.deciding(target, CONSTANT).verdict == "better than", target
        exactly = target == "target_rare"  # its label is a column above 1, which trees find
        assert oracle.deciding(target, LIGHTGBM).verdict == ("indistinguishable from" if exactly else "better than"), target
    assert oracle.metrics[MODEL]["target_return_mae"] == pytest.approx(0, abs=1e-6)
    assert oracle.metrics[CONSTANT]["target_return_mae"] == pytest.approx(0.016, abs=0.004), "in the target's own units"
    assert oracle.metrics[LIGHTGBM]["target_up_auc"] > 0.9, "it learns what the columns say"
    wrong = compare(prepared, "test", source, truthful(prepared, outputs["test"], -1.0))
    assert {wrong.deciding(target, LIGHTGBM).verdict for target in TARGETS} == {"worse than"}
    assert "worse than it in 3" in verdicts(wrong)[0]
    paths = write_report(wrong, tmp_path / "report", "opposite")
    assert [path.name for path in paths] == ["report.md", "report.json", "comparison.png", "confusion.png"]
    numbers = json.loads(paths[1].read_text())
    up = numbers["targets"]["target_up"]
    assert (up["decides"], up["verdict"], up["against"]) == ("auc", "worse than", LIGHTGBM)
    assert up["differences"]["1h"][CONSTANT]["f1"]["high"] is not None
    assert "target_up: worse than LightGBM (AUC 0, " in paths[0].read_text()
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths[2:])


def test_baselines_learn_from_the_training_windows_alone(prepared, outputs):
    train = last_rows(prepared.windows["train"])
    assert train.row.tolist() == prepared.windows["train"].rows().tolist()
    found = compare(prepared, "test", prepared.windows["test"], outputs["test"], with_lightgbm=False)
    assert found.metrics[CONSTANT]["target_up_auc@1h"] == found.metrics[CONSTANT]["target_up_auc@4h"] == 0.5
    assert LIGHTGBM not in found.metrics
    assert train.features.shape[1] == 3 + 2 * 2 + 2 + 2, "reals; known and category at the last bar and the next; symbol and period"


def test_baselines_decide_where_the_transformers_loss_does(prepared):
    share = np.array([0.1, 0.3, 0.6, 0.8])
    for loss, expected in ((TargetLoss("bce", pos_weight=4.0), [0, 1, 1, 1]), (TargetLoss("focal", alpha=0.25), [0, 0, 0, 1])):
        said = baseline_point(prepared, "target_up", loss, np.zeros(4, int), share) > 0
        assert said.astype(int).tolist() == expected, loss.kind


def test_a_label_of_a_slow_bar_takes_longer_to_be_known(prepared):
    assert label_reach(prepared)["target_up"][1:] == [3 * HOUR, 12 * HOUR]


def test_a_report_on_validation_says_that_the_model_was_chosen_there(run, prepared, outputs):
    only = {"val": outputs["val"]}
    found = report_split(prepared, run, prepared.windows, only, with_lightgbm=False)
    assert found.split == "val" and "chosen on this split" in found.notes[0]
    assert report_split(prepared, run, prepared.windows, {"latest": outputs["latest"]}) is None
    tested = report_split(prepared, run, prepared.windows, {name: outputs[name] for name in ("train", "val", "test")}, with_lightgbm=False)
    assert tested.split == "test" and not tested.notes


def test_other_data_are_named_in_the_report(run, prepared, tmp_path):
    other, _ = tft_data.make_panel(400, seed=5)
    path = tmp_path / "table.parquet"
    import pyarrow.parquet

    pyarrow.parquet.write_table(panel_to_table(other), path)
    elsewhere = load_run(run, str(path), say=lambda text: None)
    sources = chosen_sources(elsewhere, ["val"])
    found = report_split(elsewhere, run, sources, forecast(elsewhere, sources), with_lightgbm=False)
    assert any("other data than the run was trained on" in note for note in found.notes)


@pytest.mark.parametrize("change", [{"rsi_14": "rsi_21"}, {"weekday_sin": "hour_sin"}])
def test_other_columns_of_the_same_number_are_refused_by_name(run, tmp_path, change):
    panel, _ = tft_data.make_panel(120)
    path = tmp_path / "table.csv"
    table = panel_to_table(panel).to_pandas().rename(columns=change)
    table.to_csv(path, index=False)
    with pytest.raises(InputError, match=rf"table\.csv: has no column '{next(iter(change))}'"):
        load_run(run, str(path), say=lambda text: None)


def test_data_with_a_column_too_few_are_refused(run, tmp_path):
    panel, _ = tft_data.make_panel(120)
    path = tmp_path / "table.csv"
    panel_to_table(panel).to_pandas().drop(columns="rsi_14").to_csv(path, index=False)
    with pytest.raises(InputError, match=r"table\.csv: has no column 'rsi_14'.*make the data as for training"):
        load_run(run, str(path), say=lambda text: None)


def test_weights_that_give_no_numbers_are_refused(prepared):
    import copy

    broken = copy.deepcopy(prepared.task)
    with torch.no_grad():
        broken.model.heads["target_up"].bias.fill_(float("nan"))
    with pytest.raises(InputError, match="target_up: its training diverged"):
        run_network(broken, prepared.windows["test"])


def test_a_table_is_written_as_its_name_says(table, tmp_path):
    write_table(table, tmp_path / "p.parquet")
    write_table(table, tmp_path / "p.csv")
    assert len(pd.read_parquet(tmp_path / "p.parquet")) == len(pd.read_csv(tmp_path / "p.csv")) == len(table)
    with pytest.raises(InputError, match=r"\.parquet or \.csv"):
        write_table(table, tmp_path / "p.xlsx")


def test_a_split_without_a_window_and_a_run_that_is_none_are_told(tmp_path):
    empty = SimpleNamespace(windows={name: [] for name in ("train", "val", "test")})
    with pytest.raises(InputError, match="--split test: has no window"):
        chosen_sources(empty, ["test"])
    with pytest.raises(MissingFileError, match="is no run"):
        load_run(tmp_path)


def command(monkeypatch, *arguments):
    """The exit code of tft/predict.py."""
    monkeypatch.setattr(sys, "argv", ["predict.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        run_command(main)
    return ended.value.code


def test_the_command_forecasts_and_reports(run, tmp_path, monkeypatch, capsys):
    out = tmp_path / "p.parquet"
    how = ("--split", "test", "latest", "--calendar", "24/7", "--baselines", "prior")
    assert command(monkeypatch, "--run", str(run), "--out", str(out), *how) == 0
    assert "of 3 targets" in capsys.readouterr().out and set(pd.read_parquet(out).split) == {"test", "latest"}
    assert (tmp_path / "p_report" / "report.md").is_file()


def test_the_newest_bars_alone_make_no_report(run, tmp_path, monkeypatch, capsys):
    how = ("--split", "latest", "--calendar", "24/7", "--out", str(tmp_path / "now.csv"))
    assert command(monkeypatch, "--run", str(run), *how) == 0
    assert "no report" in capsys.readouterr().out and [path.name for path in tmp_path.iterdir()] == ["now.csv"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--run", "absent"), "is no run"),
        (("--run", "RUN", "--split", "future"), "invalid choice: 'future'"),
        (("--run", "RUN", "--checkpoint", "absent"), "absent"),
        (("--run", "RUN", "--out", "p.xlsx"), ".parquet or .csv"),
        (("--run", "RUN", "--data", "absent.parquet"), "absent.parquet"),
        ((), "--run"),
    ],
)
def test_bad_input_ends_in_one_line_and_exit_code_2(run, arguments, told, monkeypatch, capsys):
    given = [str(run) if argument == "RUN" else argument for argument in arguments]
    assert command(monkeypatch, *given) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and told in message and message.count("\n") == 1
