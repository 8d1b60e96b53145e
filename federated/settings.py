"""What a federated run can be told: the run-config of federated/pyproject.toml, key by key.

Flower hands it over as one flat mapping of kebab-case keys. `read_settings` checks it, all mistakes in one message. `run_config_toml`
is the section of pyproject.toml; a test compares them, so that every key stands there with its meaning.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from federated.secure.settings import MIN_CLIENTS
from federated.units import parse_bandwidth, parse_duration
from finetune.engine.config import Section, describe_keys, key
from finetune.engine.files import write_text
from kronos.errors import InputError

ROOT = Path(__file__).resolve().parents[1]  # relative paths of a run-config start here: Flower's processes run in folders of their own
NEED_SINGLE_UPDATES = ("median", "trimmed-mean", "krum")
_CONFIGS = {"kronos": "configs/federated/kronos.yaml", "tft": "configs/federated/tft.yaml"}


class Settings(Section):
    """A run-config. Keys have underscores here and hyphens outside."""

    model: Literal["kronos", "tft"] = key("kronos", "what is trained")
    model_config_path: str = key("", "YAML of the model and its training; empty: configs/federated/kronos.yaml or tft.yaml")
    kronos_part: Literal["both", "tokenizer", "predictor"] = key(
        "both",
        "what of Kronos is trained; predictor needs a trained tokenizer; both: one after the other, and the newest is best",
    )
    data_path: str = key("", "bars: CSV files with commas between them, a panel folder, arch:sp500; empty: those of the model's YAML")
    symbols: str = key("", "only these symbols, with commas between them, which are also the vocabulary; empty: all that clients have")
    periods: str = key("", "only these periods, such as 1h,4h; empty: all")
    partitions: Literal["symbol-period", "symbol", "exchange", "dirichlet", "iid", "node"] = key(
        "symbol-period", "who gets which bars; iid: all bars, and a random share of the windows; node: each node has its own data-path"
    )
    dirichlet_alpha: float = key(0.5, "dirichlet: how unequal the shares are; small: one client has most of a series", gt=0)
    num_clients: int = key(0, "how many partitions; 0: as many as there are nodes", ge=0, le=100_000)

    num_server_rounds: int = key(3, "rounds", ge=1, le=1_000_000)
    fraction_fit: float = key(1.0, "share of the clients asked to train in a round", gt=0, le=1)
    fraction_evaluate: float = key(1.0, "share asked to evaluate the new global model; 0: nobody", ge=0, le=1)
    min_fit_clients: int = key(1, "at least so many are asked to train", ge=1)
    min_evaluate_clients: int = key(1, "at least so many are asked to evaluate", ge=1)
    min_available_clients: int = key(1, "the run waits until so many nodes are there", ge=1)
    round_timeout_s: float = key(3600.0, "seconds to wait for nodes, and for the replies of a round; later ones do not count", gt=0)
    strategy: Literal["fedavg", "fedprox", "fedadam", "fedyogi", "median", "trimmed-mean", "krum"] = key(
        "fedavg", "how updates become the next global model"
    )
    proximal_mu: float = key(0.01, "fedprox: weight of μ/2 · ‖w - global‖² in a client's loss", ge=0)
    server_learning_rate: float = key(0.01, "fedadam, fedyogi: the server's learning rate", gt=0)
    trim_fraction: float = key(0.2, "trimmed-mean: share cut off at each end, at least one client", gt=0, lt=0.5)
    malicious_clients: int = key(1, "krum: so many of the clients may be hostile", ge=0)
    max_update_norm: float = key(0.0, "a client whose weights moved further than this (L2) is left out; 0: no limit", ge=0)
    outlier_factor: float = key(
        100.0, "a client whose weights moved this many times as far as the round's median is left out; 0: never", ge=0
    )

    local_epochs: int = key(1, "epochs of a client's work in a round", ge=1, le=10_000)
    batch_size: int = key(32, "windows per optimiser step of a client", ge=1, le=1_000_000)
    learning_rate: float = key(0.0, "a client's learning rate; 0: the model's YAML", ge=0, le=1)
    optimiser: Literal["adamw", "sgd"] = key("adamw", "a client's optimiser, fresh in each round")
    schedule: Literal["constant", "onecycle", "cosine", "linear"] = key("constant", "course of the learning rate inside a round")
    num_workers: int = key(0, "threads that prepare a client's batches", ge=0, le=256)
    seed: int = key(42, "seed of everything random but masks, keys and noise", ge=0, le=2**31 - 1)
    run_folder: str = key("outputs/federated/run", "where checkpoints, records and pictures go")
    checkpoint_every_rounds: int = key(1, "keep the global weights of every n-th round; 0: best and last only", ge=0)
    resume: bool = key(False, "go on from the run folder's last round")

    secure: bool = key(False, "secure aggregation: the server sees sums, never one client's update")
    secure_threshold: float = key(0.66, "secure: share of those asked that must be left at every stage, else the round halts", gt=0.5, le=1)
    clip_range: float = key(0.0, "secure: bound of a weight's change in a round that fits the code; 0: from the global weights", ge=0)
    dp_max_norm: float = key(1.0, "differential privacy: a client's whole update is scaled down to this norm (L2)", gt=0)
    dp_sigma: float = key(0.0, "noise as a multiple of dp-max-norm; 0: no differential privacy", ge=0)
    dp_mode: Literal["client", "server"] = key("client", "who adds the noise: each client before upload, or the server")
    dp_epsilon: float = key(0.0, "stop before ε exceeds this; 0: only report it", ge=0)
    dp_delta: float = key(1e-5, "δ at which ε is told", gt=0, lt=1)
    p_drop: float = key(0.0, "network emulation: chance that a client's reply is lost", ge=0, le=1)
    max_latency: str = key("0ms", "network emulation: largest delay, such as 200ms")
    latency_jitter: str = key("0ms", "network emulation: added to each delay, uniform from 0 to this")
    bandwidth_limit: str = key("", "network emulation: upload and download, such as 50mbps; empty: no limit")
    client_version: str = key("", "version a client says it has; empty: that of its installed package")
    expected_version: str = key("", "version the server wants; empty: that of its installed package")

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.secure and self.strategy in NEED_SINGLE_UPDATES:
            yield (
                "strategy",
                (
                    f"is {self.strategy}, which looks at single updates, and secure hides them; use fedavg, fedprox, fedadam or fedyogi "
                    "(there dp-max-norm bounds what one client can do), or secure=false"
                ),
            )
        if self.secure and self.fraction_fit < 1 and self.min_fit_clients < MIN_CLIENTS:
            yield (
                "min-fit-clients",
                f"is below {MIN_CLIENTS}, and secure asks no fewer: the mean of two tells each the other's update; raise it",
            )
        if self.dp_sigma == 0 and self.dp_epsilon > 0:
            yield "dp-epsilon", f"is {self.dp_epsilon:g}, but dp-sigma is 0: without noise there is no ε to keep below it; give dp-sigma"
        if self.dp_sigma > 0 and self.strategy in NEED_SINGLE_UPDATES:
            yield "strategy", f"is {self.strategy}, whose sensitivity to one client is not known; with dp-sigma use fedavg or fedprox"
        for name, parse in (("max_latency", parse_duration), ("latency_jitter", parse_duration), ("bandwidth_limit", parse_bandwidth)):
            try:
                parse(getattr(self, name), outside(name))
            except InputError as error:
                yield "", str(error)

    @property
    def private(self) -> bool:
        """Whether noise is added, in which case every client has the same weight."""
        return self.dp_sigma > 0

    @property
    def folder(self) -> Path:
        return absolute(self.run_folder)

    @property
    def yaml(self) -> Path:
        """The model's YAML file."""
        return absolute(self.model_config_path or _CONFIGS[self.model])


def names(text: str) -> list[str]:
    """What stands between the commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def absolute(path: str) -> Path:
    """A path of a run-config: as it is, or below the folder that holds federated/."""
    return ROOT / Path(path).expanduser()


def absolute_paths(text: str) -> list[str]:
    """A data-path as a list: `arch:` names as they are, paths made absolute."""
    return [path if path.startswith("arch:") else str(absolute(path)) for path in names(text)]


def package_version() -> str:
    """Version of what is installed here; what client-version and expected-version stand for when they are empty."""
    try:
        return version("kronos-trainer")
    except PackageNotFoundError:  # run from a checkout that was not installed
        return "unknown"


def read_settings(run_config: Mapping[str, Any]) -> Settings:
    """Settings from a flat mapping with kebab-case keys. Raises InputError with everything that is wrong with it."""
    known = {outside(name): name for name in Settings.model_fields}
    unknown = [
        f"{name}: there is no such key" + "".join(f"; did you mean {near}?" for near in difflib.get_close_matches(name, known, 1))
        for name in run_config
        if name not in known
    ]
    try:
        settings = Settings.model_validate({known[name]: value for name, value in run_config.items() if name in known})
    except ValidationError as error:
        raise InputError("run-config: " + "; ".join([*unknown, *_told(error, run_config)])) from None
    if unknown:
        raise InputError("run-config: " + "; ".join(unknown))
    return settings


def _told(error: ValidationError, given: Mapping[str, Any]) -> Iterator[str]:
    for fault in error.errors():
        context = fault.get("ctx") or {}
        if "problems" in context:
            yield from (f"{name} {text}".strip() for name, text in context["problems"])
        else:
            name = outside(str(fault["loc"][0]))
            wanted = next(row.type for row in describe_keys(Settings) if outside(row.key) == name)
            yield f"{name}={given.get(name)!r}: expected {wanted}"


def outside(name: str) -> str:
    """A key's name in the run-config."""
    return "model-config" if name == "model_config_path" else name.replace("_", "-")


def run_config(settings: Settings) -> dict[str, Any]:
    """Settings as Flower hands them over."""
    return {outside(name): value for name, value in settings}


def run_config_toml() -> str:
    """[tool.flwr.app.config] with every key at its default and its meaning before it."""
    lines = ["[tool.flwr.app.config]"]
    for name, row in zip(Settings.model_fields, describe_keys(Settings), strict=True):
        default = Settings.model_fields[name].default
        lines += [f"# {row.description} [{row.type}]", f"{outside(name)} = {json.dumps(default, ensure_ascii=False)}"]
    return "\n".join(lines) + "\n"


def write_run_config() -> None:
    """Write the section of federated/pyproject.toml anew, after a key was added or changed."""
    path = ROOT / "federated" / "pyproject.toml"
    write_text(path, path.read_text(encoding="utf-8").split("[tool.flwr.app.config]")[0] + run_config_toml())
