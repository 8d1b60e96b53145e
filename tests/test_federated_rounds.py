"""Rounds of a federation in one process: what is recorded, who counts, what ends a run."""

import json
import re
from dataclasses import replace
from pathlib import Path

import federated_tiny as tiny
import numpy as np
import pytest
import tft_data
from flwr.app import ConfigRecord
from safetensors.numpy import load_file

from federated import client_app, local_tft, rounds, settings
from federated.task import Node
from federated.update import ARRAYS, CLIENT, from_record, to_record
from finetune.engine.files import read_json, read_json_lines
from kronos.errors import InputError
from tft.rows import save_with_manifest

pytestmark = pytest.mark.usefixtures("no_pictures")


def weights(folder: Path) -> dict[str, np.ndarray]:
    return load_file(next((folder / "checkpoints").glob("last-*")) / "model.safetensors")


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def poisoned(monkeypatch, partition: int, change) -> None:
    """One client's update is changed before it is sent."""
    honest = client_app._in_clear

    def in_clear(message, context, work):
        reply = honest(message, context, work)
        if reply.content[CLIENT]["partition-id"] == partition and ARRAYS in reply.content:
            base = from_record(message.content[ARRAYS])
            reply.content[ARRAYS] = to_record(change(from_record(reply.content[ARRAYS]), base))
        return reply

    monkeypatch.setattr(client_app, "_in_clear", in_clear)


def test_two_runs_are_equal_to_the_bit_although_replies_come_in_another_order(yaml, tmp_path):
    one = tiny.simulate(yaml, tmp_path / "one", clients=5, fraction_fit=0.8)
    run = tiny.settings(yaml, tmp_path / "two", fraction_fit=0.8)
    grid = tiny.grid(run, 5)
    ordered = grid.send_and_receive
    grid.send_and_receive = lambda messages, timeout=None: list(reversed(list(ordered(messages, timeout=timeout))))
    two = rounds.federate(grid, run)
    assert same(weights(one), weights(two))
    assert read_json_lines(one / "rounds.jsonl")[1]["asked"] == read_json_lines(two / "rounds.jsonl")[1]["asked"]


def test_the_mean_is_weighted_by_samples(tmp_path):
    yaml = tiny.write_yaml(tmp_path, rows=[60, 120], series=2)
    folder = tiny.simulate(yaml, tmp_path / "run", clients=2, num_server_rounds=1, fraction_evaluate=0.0)
    line = read_json_lines(folder / "rounds.jsonl")[0]
    mean = sum(line["samples"][p] * line["train_loss"][p] for p in "01") / sum(line["samples"].values())
    assert line["samples"]["1"] > 2 * line["samples"]["0"] and line["train"]["train_loss"] == pytest.approx(mean, abs=1e-6)


def test_with_noise_a_client_that_claims_more_samples_counts_for_no_more(yaml, tmp_path, monkeypatch):
    honest = client_app.trained

    def boasting(message, context):
        update = honest(message, context)
        assert update.examples == 1
        return replace(update, examples=7) if context.node_config["partition-id"] == 1 else update

    monkeypatch.setattr(client_app, "trained", boasting)
    line = read_json_lines(tiny.simulate(yaml, tmp_path / "run", num_server_rounds=1, dp_sigma=1.0) / "rounds.jsonl")[0]
    assert line["answered"] == [0, 2] and "num-examples 7 above the 1" in line["failed"]["1"]


def test_one_of_three_clients_may_be_lost_in_a_secure_round_and_the_next_one_waits_for_it(yaml, tmp_path, monkeypatch, capsys):
    run = tiny.settings(yaml, tmp_path / "run", secure=True)
    grid = tiny.grid(run)
    reach, trained = grid.send_and_receive, []

    def send(messages, timeout=None):
        messages = list(messages)
        if messages[0].metadata.message_type == "train" and not trained:
            trained.append(1)
            grid.lost.add(2)
        return reach(messages, timeout=timeout)

    grid.send_and_receive = send
    monkeypatch.setattr("federated.roster.time.sleep", lambda _: grid.lost.clear())  # while the server waits it is started again
    first, second = read_json_lines(rounds.federate(grid, run) / "rounds.jsonl")
    assert first["answered"] == [0, 2] and first["evaluated"] == [] and second["answered"] == [0, 1, 2]
    assert "round 1 is not evaluated: 2 clients are there" in capsys.readouterr().out


def test_a_partition_without_a_window_is_named_and_left_out(tmp_path, capsys):
    folder = tiny.simulate(tiny.write_yaml(tmp_path, rows=[60, 18, 60]), tmp_path / "run", num_server_rounds=1)
    assert "left out: the train split has no window" in capsys.readouterr().out
    assert read_json_lines(folder / "rounds.jsonl")[0]["asked"] == [0, 2]


def test_no_partition_with_a_window_is_an_error_with_the_reason_once(tmp_path):
    with pytest.raises(InputError, match=r"no partition can take part: partitions 0, 1, 2: the train split has no window.*give more bars$"):
        tiny.simulate(tiny.write_yaml(tmp_path, rows=18), tmp_path / "run")


def test_failures_are_those_asked_minus_those_who_answered(yaml, tmp_path, monkeypatch):
    honest = client_app.trained

    def work(message, context):
        if context.node_config["partition-id"] == 1:
            raise MemoryError("too little memory for this")
        return honest(message, context)

    monkeypatch.setattr(client_app, "trained", work)
    run = tiny.settings(yaml, tmp_path / "run", num_server_rounds=1)
    grid = tiny.grid(run)
    down, reach = grid.lost, grid.send_and_receive

    def send(messages, timeout=None):
        messages = list(messages)
        if messages[0].metadata.message_type == "train":
            down.add(3)  # partition 2 is killed in the middle of the round
        return reach(messages, timeout=timeout)

    grid.send_and_receive = send
    line = read_json_lines(rounds.federate(grid, run) / "rounds.jsonl")[0]
    assert line["asked"] == [0, 1, 2] and line["answered"] == [0] and line["evaluated"] == [0, 1]
    assert line["failed"] == {"1": "MemoryError: too little memory for this", "2": "no reply within 3600 s"}


def test_a_node_that_comes_back_as_another_takes_its_partition_again(yaml, tmp_path, capsys):
    run = tiny.settings(yaml, tmp_path / "run", num_server_rounds=3)
    grid = tiny.grid(run)
    federation_round = rounds.Federation._round

    def with_failure(self, number):
        if number == 2:
            grid.lost.add(2)
        if number == 3:
            grid._contexts[9] = grid._contexts.pop(2)  # another id, the same partition
        federation_round(self, number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounds.Federation, "_round", with_failure)
        folder = rounds.federate(grid, run)
    assert [line["answered"] for line in read_json_lines(folder / "rounds.jsonl")] == [[0, 1, 2], [0, 2], [0, 1, 2]]
    assert "partition 1 is back as another node" in capsys.readouterr().out


def test_a_round_that_nobody_survives_ends_the_run_as_a_failure(yaml, tmp_path, monkeypatch):
    poisoned(monkeypatch, 0, lambda new, base: {name: array * np.nan for name, array in new.items()})
    with pytest.raises(InputError, match=r"round 1: none of the 1 clients gave a valid update .*not finite"):
        tiny.simulate(yaml, tmp_path / "run", clients=1)
    assert read_json(tmp_path / "run" / "status.json")["exit_code"] == 2


@pytest.mark.parametrize("factor", [np.nan, 1e6, -1e6])
def test_a_poisoned_update_is_rejected_and_named(yaml, tmp_path, monkeypatch, factor):
    poisoned(monkeypatch, 1, lambda new, base: {name: base[name] + factor * (array - base[name]) for name, array in new.items()})
    line = read_json_lines(tiny.simulate(yaml, tmp_path / "run", num_server_rounds=1) / "rounds.jsonl")[0]
    assert line["answered"] == [0, 2] and set(line["failed"]) == {"1"}


@pytest.mark.parametrize("metrics, why", [({"train_loss": 1.0, "odd": 1.0}, "other names than those of most"), ({}, "lack train_loss")])
def test_metrics_of_other_names_lose_their_sender_and_not_the_others(yaml, tmp_path, monkeypatch, metrics, why):
    honest = client_app.trained

    def odd(message, context):
        update = honest(message, context)
        return replace(update, metrics=metrics) if context.node_config["partition-id"] == 0 else update

    monkeypatch.setattr(client_app, "trained", odd)
    run = tiny.simulate(yaml, tmp_path / "run", num_server_rounds=1, kronos_part="tokenizer", fraction_evaluate=0.0)
    line = read_json_lines(run / "rounds.jsonl")[0]
    assert line["answered"] == [1, 2] and why in line["failed"]["0"]


def test_a_flipped_update_is_bounded_by_strategies_that_look_at_single_ones(tmp_path, monkeypatch):
    yaml = tiny.write_yaml(tmp_path, rows=40, series=5)

    def moved(name, how):
        changes = dict(clients=5, num_server_rounds=1, strategy=how, malicious_clients=1, fraction_evaluate=0.0, kronos_part="tokenizer")
        return read_json_lines(tiny.simulate(yaml, tmp_path / name, **changes) / "rounds.jsonl")[0]["train"]["moved"]

    honest = moved("honest", "fedavg")
    poisoned(monkeypatch, 2, lambda new, base: {name: base[name] - 20 * (array - base[name]) for name, array in new.items()})
    assert moved("mean", "fedavg") > 2 * honest
    for strategy in ("median", "trimmed-mean", "krum"):
        assert moved(strategy, strategy) < 1.8 * honest, strategy


def test_krum_tells_small_changes_of_large_weights_apart():
    from federated.strategies import Krum

    krum = Krum(1)
    rng = np.random.default_rng(0)
    krum._base = {"w": rng.normal(0, 30, 5000).astype(np.float32)}
    changes = [np.full(5000, 0.0)] + [np.full(5000, 0.01) + rng.normal(0, 1e-4, 5000) for _ in range(5)]
    picked = krum.nearest([{"w": (krum._base["w"] + change).astype(np.float32)} for change in changes])
    assert picked != 0


def test_clients_of_another_version_are_refused(yaml, tmp_path):
    run = tiny.settings(yaml, tmp_path / "run", expected_version="2.0")
    with pytest.raises(InputError, match=r"partitions 0, 1, 2: client-version '0\.1\.0', expected '2\.0'"):
        rounds.federate(tiny.grid(run), run)


def test_clients_with_different_tokenizers_are_refused(tmp_path):
    from federated import local_kronos

    run = tiny.settings(tiny.write_yaml(tmp_path), tmp_path / "run")
    with pytest.raises(InputError, match="different tokenizers: one: aaa, two: bbb; give all of them the same files"):
        local_kronos.facts(run, [{"name": "one", "frozen": "aaa"}, {"name": "two", "frozen": "bbb"}])


def test_fedprox_holds_clients_back(yaml, tmp_path):
    free, held = (
        read_json_lines(
            tiny.simulate(yaml, tmp_path / f"{mu}", num_server_rounds=1, strategy="fedprox", proximal_mu=mu, fraction_evaluate=0.0)
            / "rounds.jsonl"
        )[0]["train"]["moved"]
        for mu in (0.0, 1000.0)
    )
    assert held < 0.8 * free


def test_secure_rounds_give_the_clear_mean_and_show_no_client(yaml, tmp_path):
    run = dict(clients=4, num_server_rounds=1)
    clear, secure = (weights(tiny.simulate(yaml, tmp_path / f"{hidden}", secure=hidden, **run)) for hidden in (False, True))
    assert max(float(np.abs(clear[name] - secure[name]).max()) for name in clear) <= 2e-5
    told, shown = (read_json_lines(tmp_path / f"{hidden}" / "rounds.jsonl")[0] for hidden in (False, True))
    assert shown["train_loss"] == shown["loss"] == shown["samples"] == {} and shown["samples_total"] == told["samples_total"]
    assert shown["score"]["val_loss"] == pytest.approx(told["score"]["val_loss"], abs=1e-4)


def test_a_secure_round_with_noise_and_lost_clients_tells_its_privacy(yaml, tmp_path):
    folder = tiny.simulate(yaml, tmp_path / "run", clients=6, secure=True, secure_threshold=0.51, dp_sigma=1.0, p_drop=0.2, seed=4)
    lines = read_json_lines(folder / "rounds.jsonl")
    assert any(line["stages"] for line in lines) and 0 < lines[0]["epsilon"] < lines[1]["epsilon"]
    assert all(line["samples_total"] is None for line in lines)


def test_a_halted_secure_round_is_an_error_that_says_how_to_go_on(yaml, tmp_path):
    with pytest.raises(InputError, match=r"round 1: secure aggregation halted in stage .* go on with resume=true"):
        tiny.simulate(yaml, tmp_path / "run", clients=5, secure=True, p_drop=0.9)


def test_a_run_stops_before_its_privacy_is_spent(yaml, tmp_path, capsys):
    folder = tiny.simulate(yaml, tmp_path / "run", num_server_rounds=9, dp_sigma=2.0, dp_epsilon=4.0, fraction_evaluate=0.0)
    lines = read_json_lines(folder / "rounds.jsonl")
    assert 1 < len(lines) < 9 and lines[-1]["epsilon"] <= 4.0
    assert f"stopped before round {len(lines) + 1}" in capsys.readouterr().out


def test_the_transformer_is_trained_with_the_vocabulary_of_all_clients(tmp_path, capsys):
    yaml = tft_data.write_config(tmp_path)
    folder = tiny.simulate(yaml, tmp_path / "run", clients=4, model="tft", num_server_rounds=1)
    assert "cut in time" not in capsys.readouterr().out
    config = json.loads((folder / "best_model" / "config.json").read_text())
    assert config["facts"]["vocabulary"]["symbols"] == ["AAA", "BBB"] and config["facts"]["vocabulary"]["periods"] == ["1h", "4h"]
    assert config["facts"]["scales"] == {}, "a client's scales are its own"
    line = read_json_lines(folder / "rounds.jsonl")[0]
    assert line["answered"] == [0, 1, 2, 3] and np.isfinite(line["score"]["val_loss"])


def test_a_run_says_that_clients_have_pieces_of_one_series(tmp_path, capsys):
    yaml = tft_data.write_config(tmp_path)
    tiny.simulate(yaml, tmp_path / "run", clients=6, model="tft", num_server_rounds=1)
    assert "training bars of one piece may be later than validation bars of another" in capsys.readouterr().out


def test_pieces_of_a_series_split_their_own_time_and_whole_series_where_their_thresholds_end(tmp_path):
    panel, manifest = tft_data.make_panel(200)
    rule = {"val_mode": "ratio", "val_ratio": 0.2, "test_ratio": 0.0, "val_days": 30.0, "test_days": 0.0, "train_until": ""}
    end = str(np.datetime64(int(np.quantile(panel.times, 0.8)), "ns").astype("datetime64[s]")) + "+00:00"
    save_with_manifest(panel, tmp_path / "fused", {**manifest, "split": rule, "train_until": end})
    yaml = tft_data.write_config(tmp_path)
    told = [local_tft.hello(tiny.settings(yaml, tmp_path, model="tft"), Node(k, 12)) for k in range(12)]
    assert all(client["train"] > client["val"] > 0 for client in told), "also of the earliest pieces"
    assert all(client["pieces"] for client in told)
    whole = tiny.settings(yaml, tmp_path, model="tft", partitions="iid")
    of_all = [local_tft.hello(whole, Node(k, 4)) for k in range(4)]
    assert sum(client["val"] for client in of_all) > 0 and not any(client["pieces"] for client in of_all)


@pytest.mark.parametrize(
    "change, told",
    [
        ({"targets": {"up": {"name": "up", "parameters": {"quantile": 0.5}, "horizon": {"1h": 3}}}}, "up is"),
        (
            {"targets": {"up": {"name": "up", "parameters": {"quantile": 0.7}, "horizon": {"1h": 6}}}},
            "up horizon of 1h is 3 for one and 6 for two",
        ),
        ({"thresholds": {"up": {"BTC 1h": 0.03}}}, "up threshold of BTC 1h is 0.02 for one and 0.03 for two"),
        ({"thresholds": {"up": {"ETH 1h": 0.03}}}, ""),
    ],
)
def test_labels_that_mean_two_things_are_refused(change, told):
    from federated.local_tft import facts

    one = {
        "name": "one",
        "vocabulary": {"symbols": ["BTC"], "periods": ["1h"], "categories": {}},
        "labels": {"up": [3, 9]},
        "targets": {"up": {"name": "up", "parameters": {"quantile": 0.7}, "horizon": {"1h": 3}}},
        "thresholds": {"up": {"BTC 1h": 0.02}},
    }
    both = [one, {**one, "name": "two", **change}]
    if not told:
        assert facts(settings.read_settings({}), both)["positive"] == {"up": 2.0}
        return
    with pytest.raises(InputError, match=f"targets: {told}.*targets.thresholds: the targets.json of one client"):
        facts(settings.read_settings({}), both)


def test_settings_tell_all_that_is_wrong_in_one_message():
    with pytest.raises(InputError) as error:
        settings.read_settings({"batch-size": 0, "max-latency": "200", "bach-size": 3, "strategy": "mean"})
    assert all(text in str(error.value) for text in ("batch-size=0", "did you mean batch-size?", "strategy='mean': expected one of fedavg"))
    with pytest.raises(InputError, match=r"max-latency.*'200'"):
        settings.read_settings({"max-latency": "200"})
    for strategy in settings.NEED_SINGLE_UPDATES:
        with pytest.raises(InputError, match=rf"strategy is {strategy}, which looks at single updates, and secure hides them"):
            settings.read_settings({"secure": True, "strategy": strategy})


def test_every_key_stands_in_pyproject_with_its_default_and_meaning():
    text = (settings.ROOT / "federated" / "pyproject.toml").read_text()
    assert text.endswith(settings.run_config_toml()), (
        "write it anew: python -c 'from federated import settings; settings.write_run_config()'"
    )
    issue = """num-server-rounds fraction-fit fraction-evaluate min-fit-clients min-evaluate-clients min-available-clients local-epochs
        batch-size num-workers num-clients partitions symbols periods model secure dp-max-norm dp-sigma dp-mode dp-epsilon dp-delta p-drop
        max-latency latency-jitter bandwidth-limit client-version expected-version strategy proximal-mu seed resume round-timeout-s"""
    assert set(issue.split()) <= set(re.findall(r"^([a-z-]+) = ", text, re.M))


def test_the_bundle_is_small_and_names_only_what_is_run():
    from io import BytesIO
    from zipfile import ZipFile

    from flwr.cli.build import build_fab_from_disk

    bundle = build_fab_from_disk(settings.ROOT / "federated")
    assert len(bundle) < 100_000
    assert set(ZipFile(BytesIO(bundle)).namelist()) == {"pyproject.toml", "server_app.py", "client_app.py", ".info/CONTENT"}
    assert (
        "torch" not in (settings.ROOT / "federated" / "pyproject.toml").read_text().split("[tool.flwr.app]")[0].split("dependencies = ")[1]
    )


def test_a_failed_run_is_a_failure_although_flower_says_completed(tmp_path):
    from federated.engines import as_text, verdict
    from finetune.engine.files import write_json

    (tmp_path / "status.json").unlink(missing_ok=True)
    assert verdict(tmp_path, 0, "finished:completed") == 1  # nothing was ever written
    write_json(tmp_path / "status.json", {"state": "done", "exit_code": 0})
    assert verdict(tmp_path, 0, "finished:completed") == 0
    assert verdict(tmp_path, 0, "finished:failed") == 1
    write_json(tmp_path / "status.json", {"state": "failed", "exit_code": 2, "error": "round 1: none"})
    with pytest.raises(InputError, match="round 1: none"):
        verdict(tmp_path, 0, "finished:completed")
    assert as_text({"a": "x y", "b": 1.5, "c": True}) == 'a="x y" b=1.5 c=true'


def test_a_secure_message_keeps_its_arrays_as_bytes():
    arrays = {"b": np.ones((2, 3), np.float32), "a": np.zeros(1, np.float32)}
    record = client_app.packed(arrays)
    assert isinstance(record, ConfigRecord) and same(client_app.unpacked(record), arrays)
