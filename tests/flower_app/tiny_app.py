"""The mean of the clients' partition numbers, round by round: a run that needs no model, for drills with real processes."""

import json
import time
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

server = ServerApp()
client = ClientApp()


@client.train()
def train(message: Message, context: Context) -> Message:
    partition, config = int(context.node_config["partition-id"]), context.run_config
    if config["fail"] == "clients":
        raise RuntimeError("this client was told to fail")
    if partition == config["slow-partition"] and message.content["config"]["round"] == 1:
        Path(config["out"]).with_suffix(".slow").touch()
        time.sleep(float(config["slow-s"]))
    content = {"arrays": ArrayRecord({"w": Array(np.full(8, partition, np.float32))}), "config": ConfigRecord({"partition-id": partition})}
    return Message(RecordDict(content), reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    config, history = context.run_config, []
    if config["fail"] == "server":
        raise RuntimeError("this server was told to fail")
    for server_round in range(1, int(config["rounds"]) + 1):
        while len(list(grid.get_node_ids())) < config["wait-for"]:
            time.sleep(1)
        content = RecordDict({"config": ConfigRecord({"round": server_round})})
        asked = [
            Message(content, dst_node_id=node, message_type="train", group_id=str(server_round)) for node in sorted(grid.get_node_ids())
        ]
        answers = [reply for reply in grid.send_and_receive(asked, timeout=60) if reply.has_content()]
        if not answers:
            raise RuntimeError(f"round {server_round}: no valid reply of {len(asked)}")
        partitions = sorted(int(reply.content["config"]["partition-id"]) for reply in answers)
        mean = float(np.mean([reply.content["arrays"]["w"].numpy().mean() for reply in answers]))
        history.append({"round": server_round, "asked": len(asked), "survivors": partitions, "mean": mean})
        print(f"round {server_round}: {len(asked)} asked, survivors {partitions}, mean {mean}", flush=True)
        if config["out"]:
            Path(config["out"]).write_text(json.dumps(history))
