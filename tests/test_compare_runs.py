"""Runs side by side: what differs, what came of them, one picture; folders that are no runs are named."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from matplotlib.image import imread
from ranks import environment

from finetune.evaluation.run_comparison import as_markdown, as_text, comparison, differing_keys, read_runs, write_comparison
from kronos.errors import InputError, MissingFileError

ROOT = Path(__file__).resolve().parents[1]


def make_run(folder: Path, scores, *, task="predictor", finished=True, **training) -> Path:
    """A run folder with the files that the loop leaves."""
    folder.mkdir(parents=True)
    config = {
        "training": {"batch_size": 32, **training},
        "model_paths": {"exp_name": folder.parent.name},
        "experiment": {"name": folder.parent.name},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    lines = [{"step": 5, "epoch": 0, "split": "train", "time_s": 1, "loss": 9.0}]
    lines += [{"step": 10 * n, "epoch": n, "split": "val", "time_s": n, "loss": score} for n, score in enumerate(scores, 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "status.json").write_text(json.dumps({"state": "done" if finished else "running", "name": task, "wall_time_s": 61.0}))
    if finished:
        summary = {
            "task": task,
            "monitor": "val_loss",
            "best_score": min(scores),
            "best_epoch": scores.index(min(scores)) + 1,
            "steps": 10 * len(scores),
            "parameters": 1234567,
            "effective_batch": 64,
            "wall_time_s": 7265.0,
            "history": [{"epoch": -1}, *({"epoch": n} for n in range(len(scores)))],
            "data": {"data": "abc"},
        }
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def column(rows, number):
    return {row[0]: row[number] for row in rows}


def test_the_table_has_what_came_of_each_run_and_what_differs(tmp_path):
    make_run(tmp_path / "one" / "basemodel", [3.0, 2.5, 2.75], learning_rate=1e-3, amp="off")
    make_run(tmp_path / "two" / "basemodel", [2.9, 2.8], learning_rate=1e-4, amp="off")
    rows = comparison(read_runs([tmp_path / "one", tmp_path / "two" / "basemodel"]))
    first, second = column(rows, 1), column(rows, 2)
    assert rows[0] == ["", "one/basemodel", "two/basemodel"]
    assert first["best score"] == "val_loss 2.50000" and (first["best epoch"], first["epochs"], first["steps"]) == ("2", "3", "30")
    assert (first["wall time"], first["parameters"], first["effective batch"]) == ("2 h 1 min", "1,234,567", "64")
    assert (first["training.learning_rate"], second["training.learning_rate"]) == ("0.001", "0.0001")
    assert not {"training.amp", "training.batch_size", "model_paths.exp_name", "experiment.name", "data"} & set(first)


def test_a_run_under_way_is_shown_with_what_it_has(tmp_path):
    make_run(tmp_path / "one" / "basemodel", [3.0, 2.5], finished=False)
    make_run(tmp_path / "two" / "basemodel", [2.9])
    found = column(comparison(read_runs([tmp_path / "one", tmp_path / "two"])), 1)
    assert (found["state"], found["best score"], found["steps"], found["parameters"]) == ("running", "val_loss 2.50000", "20", "–")


def test_stages_stand_apart_and_names_are_as_short_as_tells_them_apart(tmp_path):
    for name in ("a/x", "b/x"):
        make_run(tmp_path / name / "tokenizer", [1.0], task="tokenizer")
        make_run(tmp_path / name / "basemodel", [2.0])
    runs = read_runs([tmp_path / "a" / "x", tmp_path / "b" / "x", tmp_path / "a" / "x"])
    assert [run.name for run in runs] == ["a/x/tokenizer", "b/x/tokenizer", "a/x/basemodel", "b/x/basemodel"]
    assert differing_keys(runs) == []


def test_text_and_markdown_have_every_cell(tmp_path):
    make_run(tmp_path / "o|ne" / "basemodel", [3.0])
    rows = comparison(read_runs([tmp_path / "o|ne"]))
    assert as_text(rows).count("\n") == len(rows) - 1 and "o\\|ne/basemodel" in as_markdown(rows)
    assert {line.count(" | ") for line in as_markdown(rows).splitlines()} == {1}


def test_the_picture_has_a_panel_for_each_stage(tmp_path):
    make_run(tmp_path / "one" / "basemodel", [3.0, 2.5])
    make_run(tmp_path / "none" / "basemodel", [], finished=False)
    sizes = []
    for name, given in (("both", ["one", "none"]), ("stages", ["one", "none", "other"])):
        if name == "stages":
            make_run(tmp_path / "other" / "tokenizer", [1.0], task="tokenizer")
        paths = write_comparison(read_runs([tmp_path / one for one in given]), tmp_path / name)
        sizes.append(imread(paths[1]).shape)
    assert sizes[0][1] * 2 == sizes[1][1]


@pytest.mark.parametrize("made", ["nothing", "file", "empty", "torn"])
def test_a_folder_that_is_no_run_is_named(tmp_path, made):
    place = tmp_path / "bad"
    if made == "file":
        place.write_text("x")
    elif made == "empty":
        place.mkdir()
    elif made == "torn":
        make_run(place, [1.0])
        (place / "summary.json").write_text("{")
    with pytest.raises((InputError, MissingFileError), match="bad"):
        read_runs([place])


def test_the_command_prints_the_table_and_ends_with_2_for_a_bad_folder(tmp_path):
    make_run(tmp_path / "one" / "basemodel", [3.0])
    program = [sys.executable, str(ROOT / "finetune_csv" / "compare_runs.py")]
    how = dict(cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60)
    done = subprocess.run([*program, "one"], **how)
    assert done.returncode == 0 and "val_loss 3.00000" in done.stdout and (tmp_path / "comparison" / "runs.png").stat().st_size > 5000
    bad = subprocess.run([*program, "one", "nowhere"], **how)
    assert bad.returncode == 2 and "nowhere" in bad.stderr and "Traceback" not in bad.stderr
