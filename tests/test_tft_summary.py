"""Runs side by side: what each was, what it came to, and what it began with."""

import csv
import json
import sys

import pytest

from finetune.engine.command import run_command
from kronos.errors import InputError, MissingFileError
from tft.report_runs import read_all, read_run, table, write_tables
from tft.stage_summary import main


def write(folder, history=(), **summary):
    """A finished run's folder as `Run.finish` leaves it."""
    (folder / "logs").mkdir(parents=True)
    facts = {"task": "tft", "monitor": "val_target_up_f1", "mode": "max", "history": list(history), "wall_time_s": 3725.4, **summary}
    (folder / "summary.json").write_text(json.dumps(facts))
    (folder / "status.json").write_text(json.dumps({"state": "done", "exit_code": 0, "name": "tft"}))
    return folder


def epoch(number, f1, **more):
    return {"epoch": number, "step": 10 * (number + 1), "train_loss": 2.0, "val_loss": 1.0, "val_target_up_f1": f1, **more}


HISTORY = [
    epoch(0, 0.3),
    epoch(1, 0.7, **{"val_target_up_auc": 0.8, "val_target_down_auc": 0.6, "val_target_up_auc@1h": 0.1, "val_target_r_rmse": 1.5}),
    epoch(2, 0.5),
]


def test_a_run_is_told_by_its_best_epoch(tmp_path):
    row = read_run(write(tmp_path / "train_multi_tft-20251101_1200", HISTORY, best_epoch=2, best_score=0.7))
    assert (row["script"], row["state"], row["epochs"], row["best epoch"]) == ("train_multi_tft", "done", 3, 2)
    assert row["monitor"] == "val_target_up_f1" and row["best"] == 0.7
    assert row["mean auc"] == pytest.approx(0.7) and row["mean rmse"] == 1.5 and row["mean f1"] == 0.7, "all periods together only"
    assert row["val_target_up_auc@1h"] == 0.1 and row["origin"] == "fresh"


def test_the_second_run_of_a_minute_and_warm_starts_keep_the_scripts_name(tmp_path):
    warm = {"from": "runs/a/checkpoints/best", "loaded": [], "skipped": {}}
    row = read_run(write(tmp_path / "warm_start_train-20251101_1200-2", HISTORY, best_epoch=2, warm_start=warm))
    assert row["script"] == "warm_start_train" and row["origin"] == "warm start from runs/a/checkpoints/best"


def test_a_resumed_run_says_how_often_and_from_where(tmp_path):
    folder = write(tmp_path / "x", HISTORY, best_epoch=2)
    line = "2025-11-01 12:00:00  resumed from {}: epoch 2, step 20\n"
    (folder / "logs" / "tft.log").write_text(line.format("/r/checkpoints/last-00000001") + line.format("/r/checkpoints/last-00000004"))
    assert read_run(folder)["origin"] == "resumed 2 times, last from last-00000004"
    assert read_run(write(tmp_path / "y", HISTORY, resumed_from="last-00000007"))["origin"] == "resumed 1 time, last from last-00000007"


@pytest.mark.parametrize(("monitor", "best"), [("val_loss", 2), ("val_target_up_f1", 1)])
def test_a_run_that_still_goes_on_is_read_from_what_it_logged(tmp_path, monitor, best):
    folder = tmp_path / "train_multi_tft-20251101_1200"
    folder.mkdir()
    (folder / "status.json").write_text(json.dumps({"state": "running", "name": "tft", "wall_time_s": 61}))
    (folder / "config.yaml").write_text(f"data_path: x\nmonitor: {monitor}\n")
    lines = [{"split": "train", "step": 1, "epoch": 0, "loss": 3.0}]
    lines += [{"split": "val", "step": e, "epoch": e, "time_s": 1.0, "loss": 1.0 - e / 10, "target_up_f1": 0.5 - e / 10} for e in (0, 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    row = read_run(folder)
    assert (row["state"], row["epochs"], row["best epoch"], row["monitor"]) == ("running", 2, best, monitor)
    assert row["best"] == {"val_loss": 0.9, "val_target_up_f1": 0.5}[monitor]


def test_a_run_before_its_first_validation_has_a_row_too(tmp_path):
    (tmp_path / "status.json").write_text(json.dumps({"state": "failed", "name": "tft"}))
    row = read_run(tmp_path)
    assert row["state"] == "failed" and row["best"] is None and "–" in table([row, {**row, "best": 1.0}])[1]


def test_the_table_is_written_as_markdown_and_with_every_metric_as_csv(tmp_path):
    rows = [read_run(write(tmp_path / f"train_multi_tft-20251101_120{k}", HISTORY, best_epoch=2)) for k in (0, 1)]
    markdown, numbers = write_tables(rows, tmp_path / "out")
    head, first, *_ = table(rows)
    assert dict(zip(head, first, strict=True))["wall time"] == "1 h 2 min" and "composite_score" not in head
    assert "| train_multi_tft-20251101_1201 |" in markdown.read_text()
    with numbers.open() as file:
        read = list(csv.DictReader(file))
    assert len(read) == 2 and read[0]["wall time s"] == "3725.4" and read[0]["val_target_up_auc@1h"] == "0.1"


def test_what_is_no_run_is_left_out_and_named(tmp_path):
    run = write(tmp_path / "run", HISTORY, best_epoch=2)
    (tmp_path / "predictions.parquet").write_text("x")
    told = []
    assert len(read_all([run, tmp_path / "predictions.parquet", run], told.append)) == 1, "named twice, shown once"
    assert len(told) == 1 and "predictions.parquet" in told[0]


def test_without_any_run_there_is_one_message(tmp_path, monkeypatch, capsys):
    with pytest.raises(InputError, match=r"no run folder, none has metrics\.jsonl"):
        read_all([tmp_path])
    with pytest.raises(MissingFileError, match="there is no such folder"):
        read_all([tmp_path / "absent"])
    monkeypatch.setattr(sys, "argv", ["stage_summary.py", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        run_command(main)
    message = capsys.readouterr().err
    assert ended.value.code == 2 and message.startswith("error: ") and message.count("\n") == 1
