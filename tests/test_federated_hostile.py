"""Nonsense from one client costs that client its place, not the others their round."""

import json

import federated_tiny as tiny
import pytest
import tft_data
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from federated import local_tft, rounds
from federated.exchange import Exchange
from federated.roster import Client, Roster
from federated.secure.client import RECORD
from federated.secure.server import SecureRound
from federated.secure.settings import SecureSettings
from federated.update import ARRAYS, CLIENT, MALFORMED, METRICS
from finetune.engine.files import read_json_lines
from kronos.errors import InputError
from tests.secure_world import STAGES, Room, TinyGrid, some_updates, the_model

pytestmark = pytest.mark.usefixtures("no_pictures")

TEXTS = dict.fromkeys(("cipher_key", "mask_key", "nodes", "sealed", "words", "metrics", "tags", "shares"), "x")
LISTS = {name: [1.5, 2.5] for name in TEXTS}
NUMBERS = dict.fromkeys(TEXTS, 2**62)


def array(content: bytes, shape=(3,), kind="numpy.ndarray") -> ArrayRecord:
    return ArrayRecord({"words": Array("uint32", shape, kind, content)})


def answering(grid, kind_of, node: int, wanted: str, content: RecordDict) -> None:
    """From now on `node` answers requests of the kind `wanted` with `content`."""
    reach = grid.send_and_receive

    def send(messages, timeout=None):
        messages = list(messages)
        own = {m.metadata.dst_node_id: m for m in messages}
        replies = list(reach(messages, timeout=timeout))
        if kind_of(messages[0]) != wanted:
            return replies
        return [Message(content, reply_to=own[node]) if r.metadata.src_node_id == node else r for r in replies]

    grid.send_and_receive = send


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    "content",
    [
        {},
        {RECORD: ConfigRecord({})},
        {RECORD: ConfigRecord(TEXTS)},
        {RECORD: ConfigRecord(LISTS)},
        {RECORD: ConfigRecord(NUMBERS)},
        {RECORD: ConfigRecord({"refused": [1, 2]})},
        {RECORD: ConfigRecord({"metrics": []}), "v": array(b"abc")},
        {RECORD: ConfigRecord({"metrics": []}), "v": array(b"")},
        {RECORD: ConfigRecord({"metrics": []}), "v": array(b"abc", kind="torch.tensor")},
    ],
)
def test_nonsense_at_any_stage_of_a_secure_round_loses_its_sender_alone(stage, content):
    base = the_model(size=4)
    grid = TinyGrid(some_updates(base, 4))
    answering(grid, lambda message: message.content[RECORD]["stage"], 1, stage, RecordDict(dict(content)))
    outcome = SecureRound(SecureSettings(max_weight=256)).exchange(grid, grid.messages(base), timeout_s=None, seed=0, server_round=1)
    assert outcome.dropped == {stage: [1]}


@pytest.mark.parametrize(
    "wrong",
    [
        lambda nodes, values: (nodes, ["x"] * len(values)),
        lambda nodes, values: (nodes, [b"x"] * (len(values) - 1)),
        lambda nodes, values: (nodes, "x" * len(values)),
        lambda nodes, values: ([*nodes, nodes[0]], [*values, values[0]]),  # one client twice
    ],
)
@pytest.mark.parametrize("stage, name", [("share_keys", "sealed"), ("agree", "tags"), ("unmask", "shares")])
def test_values_of_another_type_or_number_for_clients_lose_their_sender_alone(stage, name, wrong):
    base = the_model(size=4)
    room = Room(some_updates(base, 4), base)

    def ask(at, requests):
        replies = room.ask(at, {node: dict(ConfigRecord(request)) for node, request in requests.items()})  # as Flower carries them
        if at == stage:
            nodes, values = wrong(replies[1]["nodes"], replies[1][name])
            replies[1] = {**replies[1], "nodes": nodes, name: values}
        return replies

    room.cohort.run(ask)
    assert {at: lost for at, lost in room.cohort.lost.items() if lost} == {stage: [1]}


@pytest.mark.parametrize(
    "content",
    [
        {},
        {METRICS: MetricRecord({})},
        {METRICS: MetricRecord({"num-examples": 3, "train_loss": 1.0}), ARRAYS: array(b"")},
        {METRICS: MetricRecord({"num-examples": [3], "train_loss": 1.0}), ARRAYS: array(b"abc")},
    ],
)
def test_nonsense_for_an_update_loses_its_sender_alone(yaml, tmp_path, content):
    run = tiny.settings(yaml, tmp_path / "run", num_server_rounds=1, kronos_part="tokenizer")
    grid = tiny.grid(run)
    answering(grid, lambda message: message.metadata.message_type, 2, "train", RecordDict(dict(content)))
    line = read_json_lines(rounds.federate(grid, run) / "rounds.jsonl")[0]
    assert line["answered"] == [0, 2] and "is not one of this protocol" in line["failed"]["1"]


@pytest.mark.parametrize(
    "record",
    [
        None,
        {"partition-id": "x", "version": "0.1.0", "told": "{}"},
        {"partition-id": 1, "version": "0.1.0", "told": "no JSON"},
        {"partition-id": 1, "version": "0.1.0", "told": '{"name": "x", "train": "many", "val": 3}'},
        {"partition-id": 1, "version": "0.1.0", "told": "[1]"},
        {"partition-id": 1, "version": "0.1.0", "told": '"reason"'},
        {"partition-id": 1, "version": "0.1.0", "told": '{"name": "x", "train": 3, "val": 3}'},
        {"partition-id": 1, "version": "0.1.0", "told": '{"name": "x", "train": 3, "val": 3, "frozen": [1]}'},
    ],
)
def test_nonsense_for_a_greeting_leaves_its_sender_out(yaml, tmp_path, record, capsys):
    run = tiny.settings(yaml, tmp_path / "run", num_server_rounds=1, kronos_part="tokenizer", fraction_evaluate=0.0)
    grid = tiny.grid(run)
    content = RecordDict({} if record is None else {CLIENT: ConfigRecord(record)})
    answering(grid, lambda message: message.metadata.message_type, 2, "query", content)
    line = read_json_lines(rounds.federate(grid, run) / "rounds.jsonl")[0]
    assert line["asked"] == [0, 2] and "node 2 cannot take part: its reply is not one of this protocol" in capsys.readouterr().out


def test_a_reason_that_is_no_text_is_one_all_the_same(yaml, tmp_path):
    run = tiny.settings(yaml, tmp_path / "run", num_server_rounds=1, kronos_part="tokenizer", fraction_evaluate=0.0)
    grid = tiny.grid(run)
    content = RecordDict({CLIENT: ConfigRecord({"partition-id": 1, "version": "0.1.0", "told": '{"reason": [1]}'})})
    answering(grid, lambda message: message.metadata.message_type, 2, "query", content)
    assert read_json_lines(rounds.federate(grid, run) / "rounds.jsonl")[0]["asked"] == [0, 2]


SOUND = {
    "vocabulary": {"symbols": ["BTC"], "periods": ["1h"], "categories": {"weekday": [1]}},
    "labels": {"up": [3, 9]},
    "targets": {"up": {"name": "up", "parameters": {"quantile": 0.7}, "horizon": {"1h": 3}}},
    "thresholds": {"up": {"BTC 1h": 0.02}},
}


@pytest.mark.parametrize(
    "wrong",
    [
        *({name: value} for name in SOUND for value in ([1], "x", None)),
        *({"vocabulary": {**SOUND["vocabulary"], name: "BTC"}} for name in SOUND["vocabulary"]),
        {"vocabulary": {**SOUND["vocabulary"], "symbols": [["BTC"]]}},
        {"vocabulary": {**SOUND["vocabulary"], "categories": {"weekday": ["1"]}}},
        {"labels": {"up": [1]}},
        {"labels": {"up": [4, 3]}},
        {"labels": {"up": [1, 10**400]}},
        {"targets": {"up": [1]}},
        {"targets": {"up": {"horizon": 3}}},
        {"thresholds": {"up": 0.02}},
    ],
)
def test_a_greeting_that_the_transformer_cannot_read_is_told_by_its_shape(wrong):
    local_tft.heard(SOUND)
    with pytest.raises(MALFORMED):
        local_tft.heard({**SOUND, **wrong})
    for name in wrong:
        with pytest.raises(KeyError):
            local_tft.heard({key: value for key, value in SOUND.items() if key != name})


@pytest.mark.parametrize("told", ["no JSON", "[1]", None])
def test_nonsense_for_the_models_description_is_no_description(yaml, tmp_path, told):
    run = tiny.settings(yaml, tmp_path / "run")
    grid = tiny.grid(run)
    content = RecordDict({} if told is None else {CLIENT: ConfigRecord({"told": told})})
    answering(grid, lambda message: message.metadata.message_type, 2, "query.model", content)
    described, why = Exchange(grid, run, {}).describe(Client(2, 1, {}))
    assert described is None and "its reply is not one of this protocol" in why


def test_a_table_that_describes_no_model_is_passed_over_for_the_next_clients(tmp_path, capsys):
    run = tiny.settings(tft_data.write_config(tmp_path), tmp_path / "run", model="tft", num_server_rounds=1, fraction_evaluate=0.0)
    grid = tiny.grid(run, 4)
    for node, told in enumerate([{"task": {}}, {"task": [1]}, {"task": {"sizes": {"hidden": -8}, "targets": {"up": "bce"}}}], 1):
        content = RecordDict({CLIENT: ConfigRecord({"told": json.dumps(told)})})
        answering(grid, lambda message: message.metadata.message_type, node, "query.model", content)
    assert read_json_lines(rounds.federate(grid, run) / "rounds.jsonl")[0]["answered"] == [0, 1, 2, 3]
    out = capsys.readouterr().out
    for partition in range(3):
        assert f"partition {partition} cannot describe the model: what it describes is no model (" in out


def test_if_nobody_describes_a_model_the_error_says_of_each_why(tmp_path):
    run = tiny.settings(tft_data.write_config(tmp_path), tmp_path / "run", model="tft")
    grid = tiny.grid(run, 1)
    answering(grid, lambda m: m.metadata.message_type, 1, "query.model", RecordDict({CLIENT: ConfigRecord({"told": "{}"})}))
    with pytest.raises(InputError, match=r"no client could describe the model: partition 0: .* no model \(KeyError: 'task'\)"):
        rounds.federate(grid, run)


@pytest.mark.parametrize("least, fix", [(2, "train without secure"), (5, "lower it")])
def test_too_few_nodes_for_secure_aggregation_are_told_what_can_be_done(yaml, tmp_path, least, fix):
    run = tiny.settings(yaml, tmp_path / "run", secure=True, min_available_clients=least, round_timeout_s=0.01)
    with pytest.raises(InputError, match=f"2 nodes are there .* start more nodes, or {fix}$"):
        Roster(tiny.grid(run, clients=2), run, print, lambda told: None).online(3)
