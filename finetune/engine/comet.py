"""Comet tracking that can never stop a run: live where a key and the network are there, else an archive on disk and one line.

The comet_ml library retries an unreachable server for half a minute at the start and may wait for hours at the end, prompts for a key when
asked to log in, patches other libraries on import and prints a page of its own. So it is imported only when wanted, with all of that turned
off, the server is probed first, and every wait for it has a limit. The API key stays in comet_ml's own settings (COMET_API_KEY or
~/.comet.config): it is neither read into ours nor written anywhere.
"""

import logging
import math
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from finetune.engine.files import jsonable

PROBE_LIMIT_S = 5.0  # is the server there at all
START_LIMIT_S = 20.0  # making the experiment on it
END_LIMIT_S = 30.0  # sending what is left

# comet_ml reads these once, on import; what the user has set himself is kept
_LIBRARY_SETTINGS = {
    "COMET_DISABLE_AUTO_LOGGING": "1",  # no patching of torch, tensorboard, sklearn ...
    "COMET_DISABLE_ANNOUNCEMENT": "1",
    "COMET_ERROR_TRACKING_ENABLE": "false",  # no reports of errors to its makers
    "COMET_LOGGING_CONSOLE": "CRITICAL",
    "COMET_TIMEOUT_HTTP": "5",
    "COMET_TIMEOUT_API": "5",
    "COMET_TIMEOUT_CLEANING": "10",  # an hour by default
    "COMET_TIMEOUT_UPLOAD": "10",  # three hours by default
}

_T = TypeVar("_T")


@dataclass(frozen=True)
class CometSettings:
    """Where a run shows up in Comet."""

    project: str = "kronos"
    workspace: str | None = None  # None: the key's default workspace
    name: str = ""  # name of the experiment; empty: the run's name
    tags: tuple[str, ...] = ()


class CometLog:
    """One Comet experiment, live or offline. After a first failure it falls silent and says so once."""

    def __init__(self, experiment: Any, say: Callable[[str], None]) -> None:
        self._experiment = experiment
        self._say = say

    @property
    def key(self) -> str:
        """Comet's public id of the experiment: what a resumed run goes on with. Not a secret."""
        return self._experiment.get_key()

    def log(self, step: int, epoch: int, split: str, values: Mapping[str, float]) -> None:
        """Sends `values` as metrics `split/name`; non-finite ones are left out, Comet has no form for them."""
        finite = {f"{split}/{name}": float(value) for name, value in values.items() if math.isfinite(value)}
        self._guarded(lambda experiment: experiment.log_metrics(finite, step=step, epoch=epoch))

    def parameters(self, parameters: Mapping[str, Any]) -> None:
        """Sends the run's configuration."""
        self._guarded(lambda experiment: experiment.log_parameters(jsonable(dict(parameters))))

    def end(self) -> None:
        """Sends or archives what is left, waiting END_LIMIT_S seconds at most."""
        experiment, self._experiment = self._experiment, None
        if experiment is None:
            return
        done, error = _within(END_LIMIT_S, experiment.end)
        if error is not None:
            self._say(f"Comet: could not close the experiment ({_short(error)}); the run itself is not affected")
        elif not done:
            self._say(f"Comet: still sending after {END_LIMIT_S:.0f} s, given up; metrics.jsonl has it all")

    def _guarded(self, send: Callable[[Any], object]) -> None:
        if self._experiment is None:
            return
        try:
            send(self._experiment)
        except Exception as error:  # a foreign service must not stop hours of training
            self._say(f"Comet: logging failed ({_short(error)}); this run goes on without it")
            self._experiment = None


def open_comet(
    settings: CometSettings, folder: Path, name: str, say: Callable[[str], None], resume_key: str | None = None
) -> CometLog | None:
    """A live experiment, or an offline archive in `folder`, or None without comet_ml; says in one line which.

    Takes at most PROBE_LIMIT_S + START_LIMIT_S seconds and raises nothing. With `resume_key` a former experiment is gone on with.
    """
    for variable, value in _LIBRARY_SETTINGS.items():
        os.environ.setdefault(variable, value)
    try:
        import comet_ml
    except ImportError:
        say("Comet: use_comet is on but comet_ml is not installed (pip install comet-ml); this run is not sent to Comet")
        return None
    logging.getLogger("comet_ml").setLevel(logging.CRITICAL)  # COMET_LOGGING_CONSOLE comes too late where it was imported before us

    def start(online: bool) -> Any:
        return comet_ml.start(
            online=online,
            mode="get_or_create" if resume_key else "create",
            experiment_key=resume_key,
            project_name=settings.project,
            workspace=settings.workspace,
            experiment_config=_quiet_config(comet_ml, settings, folder, name),
        )

    experiment, reason = _start_online(comet_ml, start)
    if experiment is not None:
        say(f"Comet: live at {experiment.url}")
        return CometLog(experiment, say)
    try:
        experiment = start(online=False)
    except Exception as error:
        say(f"Comet: {reason}, and no offline archive could be made in {folder} ({_short(error)}); this run goes on without it")
        return None
    say(f"Comet: {reason}; this run is kept in an offline archive, to send it later: comet upload {folder / experiment.get_key()}*.zip")
    return CometLog(experiment, say)


def _start_online(comet_ml: Any, start: Callable[[bool], Any]) -> tuple[Any, str]:
    """(the live experiment, "") or (None, why there is none)."""
    if not comet_ml.get_config("comet.api_key"):
        return None, "no API key (COMET_API_KEY)"
    server = comet_ml.get_config("comet.url_override") or "https://www.comet.com/clientlib/"
    reachable, _ = _within(PROBE_LIMIT_S, lambda: _answers(server))
    if not reachable:
        return None, f"{server} cannot be reached"
    done, error = _within(START_LIMIT_S, lambda: start(True), abandoned=lambda late: late.end())
    if error is not None:
        return None, f"{server} refused ({_short(error)})"
    if not done:
        return None, f"{server} did not answer within {START_LIMIT_S:.0f} s"
    experiment = done[0]
    if not experiment.alive:  # comet_ml does not raise for a wrong key: it hands out an experiment that drops everything
        return None, f"{server} did not accept the experiment (is the API key right?)"
    return experiment, ""


def _answers(server: str) -> bool:
    """Whether anything at all answers there. `requests` because it honours the proxies that comet_ml will use."""
    import requests

    try:
        requests.head(server, timeout=PROBE_LIMIT_S)
    except requests.exceptions.SSLError:
        return True  # reachable; whether its certificate will do is for comet_ml's own settings
    return True


def _within(
    limit_s: float, call: Callable[[], _T], abandoned: Callable[[_T], object] | None = None
) -> tuple[tuple[_T] | None, Exception | None]:
    """Runs `call` in a daemon thread: ((result,), None), (None, its exception), or (None, None) once `limit_s` seconds are over.

    A call that comes back too late has its result handed to `abandoned`.
    """
    results: list[_T] = []
    errors: list[Exception] = []
    lock, state = threading.Lock(), {"late": False}

    def work() -> None:
        try:
            result = call()
            with lock:
                results.append(result)
                late = state["late"]
            if late and abandoned is not None:
                abandoned(result)
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=work, name="comet", daemon=True)
    thread.start()
    thread.join(limit_s)
    with lock:
        if results:
            return (results[0],), None
        state["late"] = True
    return None, errors[0] if errors else None


def _quiet_config(comet_ml: Any, settings: CometSettings, folder: Path, name: str) -> Any:
    """Only what we send ourselves: no source code, no command line, no host details, no captured output, no summary on the screen."""
    return comet_ml.ExperimentConfig(
        name=settings.name or name,
        tags=list(settings.tags),
        offline_directory=str(folder),
        display_summary_level=0,
        log_code=False,
        log_graph=False,
        parse_args=False,
        log_git_metadata=False,
        log_git_patch=False,
        log_env_details=False,
        auto_output_logging=False,
        auto_param_logging=False,
        auto_metric_logging=False,
        auto_log_co2=False,
    )


def _short(error: Exception) -> str:
    """One line of `error`, without the API key: comet_ml puts it into some of its messages."""
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else type(error).__name__
    import comet_ml

    key = comet_ml.get_config("comet.api_key")
    return (text.replace(key, "<API key>") if key else text)[:200]
