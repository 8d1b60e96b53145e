"""What a node's owner decides, whatever the server's run-config says."""

from pathlib import Path

import federated_tiny as tiny
import pytest

from federated import rounds
from finetune.engine.files import read_json_lines
from kronos.errors import InputError

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture(scope="module")
def yaml(tmp_path_factory) -> Path:
    return tiny.write_yaml(tmp_path_factory.mktemp("bars"))


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


def test_a_node_that_insists_on_secure_aggregation_and_on_noise_works_for_a_run_that_has_both(yaml, tmp_path):
    asked = tiny.settings(yaml, tmp_path / "run", num_server_rounds=1, secure=True, dp_sigma=1.0)
    grid = tiny.grid(asked)
    grid._contexts[2].node_config.update({"require-secure": True, "min-dp-noise": 0.5})
    rounds.federate(grid, asked)
    assert read_json_lines(tmp_path / "run" / "rounds.jsonl")[0]["answered"] == [0, 1, 2]
