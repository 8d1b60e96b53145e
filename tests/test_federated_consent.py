"""What a node's owner decides, whatever the server's run-config says."""

import federated_tiny as tiny
import pytest

from federated import rounds
from federated.secure.client import RECORD
from finetune.engine.files import read_json_lines
from kronos.errors import InputError

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.mark.parametrize(
    "insists, run, told",
    [
        ({"require-secure": True}, {}, "require-secure"),
        ({"min-dp-noise": 0.5}, {"dp_sigma": 0.25}, "min-dp-noise"),
        ({"min-dp-noise": 0.5}, {"dp_sigma": 1.0, "dp_mode": "server"}, "min-dp-noise"),
    ],
)
def test_a_node_whose_owner_insists_on_privacy_does_no_work_for_a_run_that_gives_less(yaml, tmp_path, insists, run, told):
    asked = tiny.settings(yaml, tmp_path / "run", num_server_rounds=1, **run)
    grid = tiny.grid(asked)
    grid._contexts[2].node_config.update(insists)  # the second node's owner
    rounds.federate(grid, asked)
    line = read_json_lines(tmp_path / "run" / "rounds.jsonl")[0]
    assert line["answered"] == [0, 2] and told in line["failed"]["1"]
    assert (1 in line["evaluated"]) == ("require-secure" not in insists), "a loss in clear tells of its bars too"


def test_a_node_with_bars_of_its_own_reads_no_file_that_a_server_names(yaml, tmp_path):
    asked = tiny.settings(yaml, tmp_path / "run", partitions="node", num_server_rounds=1)
    grid = tiny.grid(asked, 2)
    for context in grid._contexts.values():
        context.node_config["data-path"] = str(yaml.parent / "panel")
    with pytest.raises(InputError, match="no node answered"):
        rounds.federate(grid, asked)
    grid._contexts[2].node_config["model-config"] = str(yaml)
    line = read_json_lines(rounds.federate(grid, asked) / "rounds.jsonl")[0]
    assert line["answered"] == [1]


@pytest.mark.parametrize("least, stages", [(6, {}), (5, {"masked_input": 1})])
def test_a_node_leaves_a_secure_round_of_fewer_clients_than_its_owner_wants_and_the_others_go_on(yaml, tmp_path, caplog, least, stages):
    asked = tiny.settings(yaml, tmp_path / "run", num_server_rounds=1, secure=True, secure_threshold=0.51, kronos_part="tokenizer")
    grid = tiny.grid(asked, 5)
    grid._contexts[2].node_config["min-secure-clients"] = least
    reach = grid.send_and_receive

    def send(messages, timeout=None):  # the first node is lost where it should send its vector
        messages = list(messages)
        stage = messages[0].content.get(RECORD, {}).get("stage")
        return [reply for reply in reach(messages, timeout=timeout) if stages.get(stage) != reply.metadata.src_node_id]

    grid.send_and_receive = send
    line = read_json_lines(rounds.federate(grid, asked) / "rounds.jsonl")[0]
    assert 1 in line["answered"] if stages else line["answered"] == [0, 2, 3, 4]
    assert line["stages"] == ({"masked_input": [0], "agree": [1]} if stages else {"setup": [1]})
    stage, clients = ("agree", 4) if stages else ("setup", 5)
    assert f"this client leaves the round: few: {clients} clients in stage {stage}, and its owner wants {least}" in caplog.text
    assert f"client 2 is lost in stage {stage}: its owner takes part only with more clients (min-secure-clients" in caplog.text
    assert stages or line["failed"]["1"].startswith("lost in stage setup: its owner takes part only with more clients")
    assert "Traceback" not in caplog.text


def test_owners_who_want_more_clients_than_there_are_end_the_run_with_what_they_want(yaml, tmp_path):
    asked = tiny.settings(yaml, tmp_path / "run", secure=True)
    grid = tiny.grid(asked, 3)
    for context in grid._contexts.values():
        context.node_config["min-secure-clients"] = 4
    with pytest.raises(InputError, match=r"round 1: secure aggregation halted in stage setup: .*\(min-secure-clients in its node-config\)"):
        rounds.federate(grid, asked)


def test_an_owners_key_that_cannot_be_read_is_told_before_anything_runs(yaml, tmp_path, capsys):
    asked = tiny.settings(yaml, tmp_path / "run", num_server_rounds=1, secure=True, kronos_part="tokenizer")
    grid = tiny.grid(asked, 4)
    grid._contexts[2].node_config["min-secure-clients"] = "many"
    assert read_json_lines(rounds.federate(grid, asked) / "rounds.jsonl")[0]["asked"] == [0, 2, 3]
    assert "left out: node-config: min-secure-clients is 'many'; expected a whole number of at least 2" in capsys.readouterr().out


def test_why_a_node_refuses_within_a_secure_round_is_in_the_servers_log(yaml, tmp_path, caplog):
    asked = tiny.settings(yaml, tmp_path / "run", num_server_rounds=1, secure=True, kronos_part="tokenizer")
    grid = tiny.grid(asked, 4)
    grid._contexts[2].node_config["min-dp-noise"] = 0.5
    assert read_json_lines(rounds.federate(grid, asked) / "rounds.jsonl")[0]["answered"] == [0, 2, 3]
    assert "client 2 ended with an error: InputError: this node adds noise of at least 0.5 times" in caplog.text


def test_a_node_that_insists_on_secure_aggregation_and_on_noise_works_for_a_run_that_has_both(yaml, tmp_path):
    asked = tiny.settings(yaml, tmp_path / "run", num_server_rounds=1, secure=True, dp_sigma=1.0)
    grid = tiny.grid(asked)
    grid._contexts[2].node_config.update({"require-secure": True, "min-dp-noise": 0.5})
    rounds.federate(grid, asked)
    assert read_json_lines(tmp_path / "run" / "rounds.jsonl")[0]["answered"] == [0, 1, 2]
