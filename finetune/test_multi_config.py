"""Check every registered configuration: syntax, imports, loading, differences, folders. A command, and a file that pytest collects."""

import importlib
import os
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

from finetune.config_manager import ConfigManager
from finetune.engine.command import command_parser, run_command
from finetune.engine.yaml_text import read_yaml
from kronos.errors import InputError

FOLDER = Path(__file__).resolve().parent
NEEDED = ("multi_config", "config_manager", "prepare_kronos_data", "train_tokenizer_multi", "train_predictor_multi", "multi_model_trainer")
_NAMES_AND_FOLDERS = ("experiment.", "model_paths.", "data.data_path", "timeframe.panel")


def test_every_file_is_valid_yaml_and_every_command_valid_python():
    paths = ConfigManager().paths
    assert paths, f"there is no model in {ConfigManager().folder}"
    for path in paths.values():
        read_yaml(path)
    for path in FOLDER.glob("*.py"):
        compile(path.read_text(encoding="utf-8"), str(path), "exec")


def test_everything_that_training_a_model_needs_can_be_imported():
    for name in NEEDED:
        importlib.import_module(f"finetune.{name}")


def test_every_registered_configuration_loads_and_says_what_it_is():
    for name, config in ConfigManager().validate().items():
        info = config.get_model_info()
        assert info["name"] == name and info["effective_batch"] >= 1 and info["comet_tags"], info


def test_no_two_models_are_the_same():
    manager = ConfigManager()
    for first, second in combinations(manager.names(), 2):
        differing = {row.key for row in manager.diff(first, second)} - {
            "experiment.name",
            "experiment.description",
            "experiment.comet_tags",
        }
        told = f"{first} and {second} differ in no more than names and folders; take one away"
        assert any(not key.startswith("model_paths.") and not key.endswith(("data_path", ".panel")) for key in differing), told


def test_every_model_has_a_folder_of_its_own_that_can_be_written():
    for name, config in ConfigManager().validate().items():
        folder = Path(config.model_paths.base_save_path).absolute()
        there = next(place for place in (folder, *folder.parents) if place.exists())
        assert there.is_dir() and os.access(there, os.W_OK), f"{name}: {there} cannot be written to; set KRONOS_OUTPUT_PATH"


def main() -> None:
    command_parser(__doc__ or "", ["python finetune/test_multi_config.py"]).parse_args()
    failed = [name for name, check in _checks() if not _passes(name, check)]
    if failed:
        raise InputError(f"{len(failed)} of {len(_checks())} checks failed: {', '.join(failed)}")
    print(f"{len(_checks())} checks of {len(ConfigManager().names())} models passed")


def _checks() -> list[tuple[str, Callable[[], None]]]:
    return [(name.removeprefix("test_").replace("_", " "), check) for name, check in globals().items() if name.startswith("test_")]


def _passes(name: str, check: Callable[[], None]) -> bool:
    try:
        check()
    except (AssertionError, InputError, ImportError, SyntaxError) as error:
        print(f"FAILED  {name}: {error}")
        return False
    print(f"ok      {name}")
    return True


if __name__ == "__main__":
    run_command(main)
