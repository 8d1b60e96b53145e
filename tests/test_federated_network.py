"""Units of the run-config, and the emulated network: the same weather for everybody who asks with the same seed."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from federated.network import LOST, NetworkSettings, emulate, transfer_s, weather
from federated.units import parse_bandwidth, parse_duration
from kronos.errors import InputError


@pytest.fixture(autouse=True)
def in_a_run(monkeypatch):
    """Messages belong to a run; outside of Flower's processes there is none."""
    for name in ("_run_id", "_task_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


@pytest.mark.parametrize(
    ("text", "value"), [("200ms", 0.2), ("1.5s", 1.5), ("2m", 120.0), ("1h", 3600.0), ("250 us", 250e-6), ("0", 0.0), (0, 0.0)]
)
def test_durations_are_read_in_seconds(text, value):
    assert parse_duration(text) == pytest.approx(value)


@pytest.mark.parametrize(
    ("text", "value"), [("50mbps", 5e7), ("50Mbps", 5e7), ("800kbps", 8e5), ("1gbps", 1e9), ("", None), ("none", None), (0, None)]
)
def test_rates_are_read_in_bits_per_second(text, value):
    assert parse_bandwidth(text) == value


@pytest.mark.parametrize("text", ["200", "fast", "-5ms", "5 parsecs", "1e400s", True, "", "nan", "5mbps"])
def test_a_duration_that_could_mean_anything_is_refused_with_an_example(text):
    with pytest.raises(InputError, match=r"max-latency is .*such as 200ms"):
        parse_duration(text, "max-latency")


@pytest.mark.parametrize("text", ["50MBps", "50MB/s", "50", "50ms", "-1mbps"])
def test_a_rate_that_could_mean_anything_is_refused(text):
    with pytest.raises(InputError, match="bandwidth-limit is"):
        parse_bandwidth(text, "bandwidth-limit")


def test_the_weather_depends_on_seed_round_and_partition_and_on_nothing_else():
    settings = NetworkSettings(p_drop=0.5, max_latency_s=0.2, jitter_s=0.05, seed=7)
    first = [weather(settings, r, p) for r in range(4) for p in range(4)]
    np.random.default_rng(0).random(3)
    assert first == [weather(settings, r, p) for r in range(4) for p in range(4)]
    assert len(set(first)) == 16
    assert weather(settings, 1, 2) != weather(NetworkSettings(p_drop=0.5, max_latency_s=0.2, jitter_s=0.05, seed=8), 1, 2)


def test_clients_are_lost_as_often_as_p_drop_says_and_latency_fills_its_range():
    settings = NetworkSettings(p_drop=0.3, max_latency_s=0.2, jitter_s=0.05, seed=1)
    seen = [weather(settings, r, p) for r in range(100) for p in range(50)]
    assert abs(np.mean([w.loses("train") for w in seen]) - 0.3) < 0.03
    assert abs(np.mean([w.loses("evaluate") for w in seen]) - 0.3) < 0.03
    latencies = [w.latency_s for w in seen]
    assert 0 <= min(latencies) < 0.01
    assert 0.19 < max(latencies) <= 0.2
    assert min(min(w.jitter_s) for w in seen) >= 0
    assert max(max(w.jitter_s) for w in seen) <= 0.05


def test_another_latency_does_not_change_who_is_lost():
    calm, slow = NetworkSettings(p_drop=0.3, seed=1), NetworkSettings(p_drop=0.3, max_latency_s=9.0, seed=1)
    assert [weather(calm, r, 0).loses("train") for r in range(50)] == [weather(slow, r, 0).loses("train") for r in range(50)]


def test_a_client_lost_in_a_secure_round_answers_until_its_stage_and_never_after():
    settings = NetworkSettings(p_drop=1.0, seed=3)
    lost = [[weather(settings, r, 0).loses("train", stage, 4) for stage in range(4)] for r in range(200)]
    assert all(sorted(stages) == stages and stages[-1] for stages in lost)
    assert {stages.index(True) for stages in lost} == {0, 1, 2, 3}


def _asked(floats: int = 0) -> tuple[Message, Context]:
    content = RecordDict({"config": ConfigRecord({"server-round": 1}), "arrays": ArrayRecord({"w": Array(np.zeros(floats, np.float32))})})
    message = Message(content, dst_node_id=1, message_type="train")
    return message, Context(run_id=1, node_id=1, node_config={"partition-id": 0}, state=RecordDict(), run_config={})


def _mod(settings: NetworkSettings, waits: list[float]):
    return emulate(lambda context: settings, round_of=lambda message: int(message.content["config"]["server-round"]), sleep=waits.append)


def test_the_mod_waits_for_latency_both_ways_and_for_the_bytes():
    settings = NetworkSettings(max_latency_s=0.2, jitter_s=0.05, bandwidth_bps=1e6, seed=5)
    waits: list[float] = []
    message, context = _asked(floats=250_000)  # a megabyte down, nearly nothing up
    reply = _mod(settings, waits)(message, context, lambda m, c: Message(RecordDict(), reply_to=m))
    today = weather(settings, 1, 0)
    assert reply.has_content()
    assert waits[0] == pytest.approx(today.latency_s + today.jitter_s[0] + 8.0, rel=1e-3)
    assert waits[1] == pytest.approx(today.latency_s + today.jitter_s[1])
    assert transfer_s(125_000, 1e6) == 1.0


def test_a_lost_client_does_no_work_and_the_server_gets_an_error_reply():
    message, context = _asked()
    worked: list[int] = []
    reply = _mod(NetworkSettings(p_drop=1.0), [])(message, context, lambda m, c: worked.append(1))
    assert not worked
    assert reply.has_error()
    assert reply.error.reason == LOST
    assert reply.metadata.reply_to_message_id == message.metadata.message_id


def test_without_settings_the_mod_is_not_felt():
    message, context = _asked()
    waits: list[float] = []
    answer = Message(RecordDict(), reply_to=message)
    assert _mod(NetworkSettings(), waits)(message, context, lambda m, c: answer) is answer
    assert not waits


def test_settings_come_from_the_run_config_with_the_key_in_every_complaint():
    assert NetworkSettings.parse(0.1, "200ms", "20ms", "50mbps", 3) == NetworkSettings(0.1, 0.2, 0.02, 5e7, 3)
    for arguments, name in [((1.5, 0, 0, 0, 0), "p-drop"), ((0, "2", 0, 0, 0), "max-latency"), ((0, 0, 0, "1MBps", 0), "bandwidth-limit")]:
        with pytest.raises(InputError, match=name):
            NetworkSettings.parse(*arguments)
