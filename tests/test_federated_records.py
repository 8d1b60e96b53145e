"""What a run of a federation leaves, its picture included."""

import federated_tiny as tiny

from finetune.engine.files import read_json, read_json_lines
from kronos import load_predictor, load_tokenizer


def test_a_run_leaves_models_records_a_table_and_a_picture(yaml, tmp_path, capsys):
    folder = tiny.simulate(yaml, tmp_path / "run")
    told = capsys.readouterr().out
    assert told.index("| partition | bars") < told.index("round 1: 3 of 3 clients")
    load_tokenizer(folder / "best_model" / "tokenizer")
    load_predictor(folder / "best_model" / "predictor")
    assert (folder / "checkpoints" / "round-0001" / "predictor").is_dir()
    lines = read_json_lines(folder / "rounds.jsonl")
    assert [line["round"] for line in lines] == [1, 2]
    assert lines[0]["asked"] == lines[0]["answered"] == [0, 1, 2] and set(lines[0]["loss"]) == {"0", "1", "2"}
    assert lines[0]["bytes_up"] > lines[0]["model_bytes"] * 3 and lines[0]["samples_total"] == sum(lines[0]["samples"].values())
    assert {line["split"] for line in read_json_lines(folder / "metrics.jsonl")} == {"train", "val"}
    assert list((folder / "tensorboard").iterdir()) and (folder / "federation.png").stat().st_size > 10_000
    assert "| round | asked | answered |" in (folder / "rounds.md").read_text()
    assert read_json(folder / "status.json")["state"] == "done" and read_json(folder / "summary.json")["rounds"] == 2
