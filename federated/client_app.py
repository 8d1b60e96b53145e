"""The ClientApp: what a node answers. Every node runs the code that is installed on it; the bundle that a server sends names it only.

query     who are you: partition, version, windows, series           (`hello`)
query.model   the model's description, where only a client can give it (TFT: columns and categories are the bars')
train     local work, in clear or as one of the six stages of a secure round
evaluate  metrics of the global model on the client's validation windows
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from federated import local_kronos, local_tft
from federated.consent import Consent
from federated.network import NetworkSettings, emulate
from federated.privacy import Mechanism, SystemNoise
from federated.secure.client import answer, is_secure
from federated.secure.terms import STAGES
from federated.settings import ROOT, Settings, package_version, read_settings
from federated.task import Local, Node
from federated.update import ARRAYS, CLIENT, CONFIG, PARTITION, VERSION, Update, content_of, from_record
from kronos.errors import InputError

MODELS = {"kronos": local_kronos, "tft": local_tft}
FACTS, MODEL, ROUND, SHARE = "facts", "model", "server-round", "noise-share"  # in messages
app = ClientApp()


def settings_of(context: Context) -> Settings:
    """The run's settings as this node has them: client-version and model-config are its own to tell, in its node_config.

    Raises InputError where a node with bars of its own is sent to a file that is neither its own choice nor its package's: what is wrong
    with a file is told to the server, and would tell what is in it.
    """
    own = {name: context.node_config[name] for name in ("client-version", "model-config") if name in context.node_config}
    settings = read_settings({**context.run_config, **own})
    theirs = "model-config" not in own and not settings.yaml.resolve().is_relative_to(ROOT / "configs")
    if theirs and "data-path" in context.node_config:
        raise InputError(
            f"model-config: this node reads {ROOT / 'configs'} and what its owner names, not what a server does; its owner may add "
            'model-config="FILE" to --node-config'
        )
    return settings


def node_of(context: Context) -> Node:
    """Who this node is. Raises InputError if it was started without a partition-id."""
    config = context.node_config
    if PARTITION not in config:
        raise InputError('this node has no partition-id: start it with --node-config "partition-id=0 num-partitions=3"')
    return Node(int(config[PARTITION]), int(config.get("num-partitions", 1)), str(config.get("data-path", "")))


def _network_of(context: Context) -> NetworkSettings:
    s = settings_of(context)
    return NetworkSettings.parse(s.p_drop, s.max_latency, s.latency_jitter, s.bandwidth_limit, s.seed)


def _round_of(message: Message) -> int:
    config = message.content.config_records.get(CONFIG, {})
    return int(config.get(ROUND, message.metadata.group_id or 0))


def _stage_of(message: Message) -> tuple[int, int]:
    if not is_secure(message):
        return 0, 1
    from federated.secure.client import RECORD

    return STAGES.index(str(message.content.config_records[RECORD]["stage"])), len(STAGES)


network = emulate(_network_of, round_of=_round_of, stage_of=_stage_of)


@app.query()
def hello(message: Message, context: Context) -> Message:
    """Partition, version, windows. What is wrong with this node's bars, or with what its owner asks, is its reply, not a failure."""
    settings, node = settings_of(context), node_of(context)
    try:
        Consent.of(context.node_config)
        told = MODELS[settings.model].hello(settings, node)
    except InputError as error:
        told = {"reason": str(error)}
    record = ConfigRecord({**_who(settings, node), "told": json.dumps(told)})
    return Message(RecordDict({CLIENT: record}), reply_to=message)


@app.query("model")
def describe(message: Message, context: Context) -> Message:
    """The model's description, for a server that has no bars."""
    settings, node = settings_of(context), node_of(context)
    told = MODELS[settings.model].describe(settings, node, _facts(message))
    return Message(RecordDict({CLIENT: ConfigRecord({**_who(settings, node), "told": json.dumps(told)})}), reply_to=message)


@app.train(mods=[network])
def train(message: Message, context: Context) -> Message:
    """Local work of one round."""
    return answer(message, context, trained) if is_secure(message) else _in_clear(message, context, trained)


@app.evaluate(mods=[network])
def evaluate(message: Message, context: Context) -> Message:
    """Metrics of the global model."""
    return answer(message, context, evaluated) if is_secure(message) else _in_clear(message, context, evaluated)


def trained(message: Message, context: Context) -> Update:
    """The update of a client's local work, clipped and with noise where the run wants privacy."""
    share = float(message.content[CONFIG][SHARE])
    _consent(message, context, share)
    settings, local = _local(message, context)
    base = from_record(message.content[ARRAYS])
    update = local.train(base, _round_of(message))
    if not settings.private:
        return update
    mechanism = Mechanism(settings.dp_max_norm, settings.dp_sigma, settings.dp_mode)
    return Update(mechanism.on_client(update.arrays, base, SystemNoise(), share), 1, update.metrics)  # with noise all weigh the same


def _consent(message: Message, context: Context, share: float | None = None) -> None:
    """Raises InputError, before any work, where a request does not keep to what the node's owner insists on. share: None: no update is."""
    settings = settings_of(context)
    noise = None if share is None else settings.dp_sigma * share if settings.dp_mode == "client" else 0.0
    why = Consent.of(context.node_config).refused(secure=is_secure(message), noise=noise)
    if why is not None:
        raise InputError(why)


def evaluated(message: Message, context: Context) -> Update:
    """Metrics of the arrays that were sent. In a secure round these come as bytes, and the update has none: only metrics are summed."""
    _consent(message, context)
    settings, local = _local(message, context)
    if not is_secure(message):
        update = local.evaluate(from_record(message.content[ARRAYS]))
    else:
        update = local.evaluate(unpacked(message.content[MODEL]))
        update = Update(from_record(message.content[ARRAYS]), update.examples, update.metrics)
    return Update(update.arrays, 1 if settings.private else update.examples, update.metrics)


def _in_clear(message: Message, context: Context, work: Any) -> Message:
    settings, node = settings_of(context), node_of(context)
    update = work(message, context)
    return Message(content_of(update, node.partition, _who(settings, node)[VERSION]), reply_to=message)


def _local(message: Message, context: Context) -> tuple[Settings, Local]:
    settings, node = settings_of(context), node_of(context)
    return settings, MODELS[settings.model].local(settings, node, _facts(message))


def _facts(message: Message) -> dict[str, Any]:
    return json.loads(str(message.content[CONFIG][FACTS]))


def _who(settings: Settings, node: Node) -> dict[str, Any]:
    return {PARTITION: node.partition, VERSION: settings.client_version or package_version()}


def packed(arrays: dict[str, np.ndarray]) -> ConfigRecord:
    """Arrays as bytes, for a secure round whose one ArrayRecord is what is summed."""
    from safetensors.numpy import save

    return ConfigRecord({"safetensors": save({name: np.asarray(array, order="C") for name, array in arrays.items()})})


def unpacked(record: ConfigRecord) -> dict[str, np.ndarray]:
    """The arrays of `packed`."""
    from safetensors.numpy import load

    return load(bytes(record["safetensors"]))
