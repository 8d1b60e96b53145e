"""A run that was stopped goes on as if it had not been."""

from pathlib import Path

import federated_tiny as tiny
import numpy as np
import pytest
from safetensors.numpy import load_file

from federated import rounds
from finetune.engine.errors import Interrupted
from finetune.engine.files import read_json, read_json_lines
from kronos.errors import InputError

pytestmark = pytest.mark.usefixtures("no_pictures")


def weights(folder: Path) -> dict[str, np.ndarray]:
    return load_file(next((folder / "checkpoints").glob("last-*")) / "model.safetensors")


def told(folder: Path) -> list[dict]:
    return [{k: v for k, v in line.items() if k != "seconds"} for line in read_json_lines(folder / "rounds.jsonl")]


@pytest.mark.parametrize("strategy", ["fedavg", "fedadam", "fedyogi"])
def test_a_resumed_run_equals_one_that_was_never_stopped(yaml, tmp_path, strategy):
    changes = dict(strategy=strategy, kronos_part="tokenizer", fraction_fit=0.7, min_fit_clients=2, p_drop=0.1)
    whole = tiny.simulate(yaml, tmp_path / "whole", num_server_rounds=4, **changes)
    tiny.simulate(yaml, tmp_path / "parts", num_server_rounds=2, **changes)
    parts = tiny.simulate(yaml, tmp_path / "parts", num_server_rounds=4, resume=True, **changes)
    a, b = weights(whole), weights(parts)
    assert all(np.array_equal(a[name], b[name]) for name in a)
    assert told(whole) == told(parts)
    assert read_json(whole / "summary.json")["best_round"] == read_json(parts / "summary.json")["best_round"]


def test_a_signal_between_two_clients_work_loses_no_round_that_was_done(yaml, tmp_path, monkeypatch):
    run = tiny.settings(yaml, tmp_path / "run", num_server_rounds=3, kronos_part="tokenizer")
    one_round = rounds.Federation._round

    def stopped(self, number):
        one_round(self, number)
        if number == 2:
            self.stop.requested, self.stop.name = True, "SIGTERM"

    monkeypatch.setattr(rounds.Federation, "_round", stopped)
    with pytest.raises(Interrupted, match="stopped by SIGTERM after round 2; the same command with --resume goes on"):
        rounds.federate(tiny.grid(run), run)
    monkeypatch.undo()
    monkeypatch.setattr("federated.pictures.draw_run", lambda *_: None)
    assert read_json(tmp_path / "run" / "status.json")["exit_code"] == 75
    parts = tiny.simulate(yaml, tmp_path / "run", num_server_rounds=3, kronos_part="tokenizer", resume=True)
    whole = tiny.simulate(yaml, tmp_path / "whole", num_server_rounds=3, kronos_part="tokenizer")
    assert all(np.array_equal(weights(whole)[name], value) for name, value in weights(parts).items())


def test_a_run_with_other_settings_is_not_resumed(yaml, tmp_path):
    tiny.simulate(yaml, tmp_path / "run", num_server_rounds=1, kronos_part="tokenizer")
    with pytest.raises(InputError, match="is of another run; batch-size: checkpoint has 16, this run 8"):
        tiny.simulate(yaml, tmp_path / "run", num_server_rounds=2, kronos_part="tokenizer", resume=True, batch_size=8)


def test_a_run_that_starts_anew_never_goes_on_from_the_former_one(yaml, tmp_path):
    changes = dict(num_server_rounds=1, kronos_part="tokenizer", fraction_evaluate=0.0)
    first = weights(tiny.simulate(yaml, tmp_path / "run", **changes))
    again = tiny.simulate(yaml, tmp_path / "run", **changes)
    assert [line["round"] for line in told(again)] == [1]
    assert all(np.array_equal(first[name], value) for name, value in weights(again).items())


def test_privacy_that_was_spent_stays_spent(yaml, tmp_path, monkeypatch):
    changes = dict(dp_sigma=2.0, kronos_part="tokenizer", fraction_evaluate=0.0)
    tiny.simulate(yaml, tmp_path / "run", num_server_rounds=1, **changes)
    broken = pytest.MonkeyPatch()
    broken.setattr(rounds.Federation, "_aggregate", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        tiny.simulate(yaml, tmp_path / "run", num_server_rounds=2, resume=True, **changes)
    broken.undo()
    folder = tiny.simulate(yaml, tmp_path / "run", num_server_rounds=2, resume=True, **changes)
    assert len(read_json(folder / "privacy.json")["multipliers"]) == 3, "a round that came to nothing had been uploaded all the same"
