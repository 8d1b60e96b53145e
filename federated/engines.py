"""The two ways to simulate: all clients in this process, or Flower's own SuperLink with Ray. Both end with a status that can be trusted."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from federated.home import CONNECTION, begin, make_home, stop
from federated.settings import Settings, run_config
from finetune.engine.command import EXIT_FAULT
from finetune.engine.files import ensure_writable_folder, read_json
from kronos.errors import InputError

APP = Path(__file__).resolve().parent


def in_process(settings: Settings) -> None:
    """Clients one after the other in this process. Raises what `rounds.federate` raises."""
    from federated.client_app import app
    from federated.local_grid import LocalGrid
    from federated.rounds import federate

    clients = clients_of(settings)
    print(f"process-local: {clients} clients take turns in this process; their bars are kept apart by the code alone", flush=True)
    federate(LocalGrid(app, clients, run_config(settings)), settings)


def with_ray(settings: Settings) -> int:
    """`flwr run` with a Flower home and a SuperLink of our own, started in an empty folder and ended with the run. Returns the exit code.

    flwr itself exits with 0 for a failed run: the code comes from the run's status and from status.json.
    """
    folder = settings.folder
    home, work = folder / "flwr-home", ensure_writable_folder(folder / "flwr-home" / "work")
    own = make_home(home, clients_of(settings), cpus=1, gpus=0)
    environment = {**os.environ, **own}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', '')}"
    (folder / "status.json").unlink(missing_ok=True)  # what stands there later is this run's
    command = ["flwr", "run", str(APP), CONNECTION, "--stream", "--run-config", as_text(run_config(settings))]
    try:
        begin(own, work)
        code = subprocess.run(command, env=environment, cwd=work, check=False).returncode
        listed = subprocess.run(
            ["flwr", "ls", CONNECTION, "--format", "json"], env=environment, cwd=work, check=False, capture_output=True, text=True
        )
        flower = _last_status(listed.stdout)
    finally:
        stop(home)
    return verdict(folder, code, flower)


def verdict(folder: Path, code: int, flower: str) -> int:
    """The exit code of a run that Flower says has ended as `flower`. Raises InputError with the run's own reason if it failed."""
    ours: dict[str, Any] = read_json(folder / "status.json") or {}
    if code == 0 and flower.startswith("finished:completed") and ours.get("state") == "done":
        return 0
    if ours.get("exit_code") == 2:
        raise InputError(str(ours["error"]))
    print(f"the run failed: flwr ended with {code}, its status is {flower or 'unknown'}, ours is {ours.get('state', 'not written')}; "
          f"see {folder / 'flwr-home' / 'local-superlink' / 'superlink.log'}", file=sys.stderr)  # fmt: skip
    return int(ours.get("exit_code") or EXIT_FAULT)


def clients_of(settings: Settings) -> int:
    """num-clients, or one per group of the bars. Raises InputError for bars that cannot be read."""
    from federated.client_app import MODELS

    MODELS[settings.model].check(settings)
    return settings.num_clients or MODELS[settings.model].groups(settings)


def as_text(config: dict[str, Any]) -> str:
    """A run-config as `flwr run --run-config` takes it. Raises InputError for a text it has no way to write."""
    parts = []
    for name, value in config.items():
        if isinstance(value, str) and '"' in value:
            raise InputError(f"{name}={value!r}: flwr takes no quotation mark in a value")
        parts.append(f"{name}={json.dumps(value, ensure_ascii=False)}")
    return " ".join(parts)


def _last_status(text: str) -> str:
    """The status of the newest run that `flwr ls --format json` lists, "" if it cannot be told."""
    try:
        runs = json.loads(text[text.index("{") :])["runs"]
    except (ValueError, KeyError):
        logging.getLogger(__name__).warning("flwr ls told nothing: %s", text.strip()[:200])
        return ""
    return str(max(runs, key=lambda run: str(run.get("created-at") or run.get("timestamps", "")))["status"]) if runs else ""
