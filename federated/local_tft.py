"""The Temporal Fusion Transformer in a federation. Vocabulary and class weights are the run's, so that shapes and losses agree; scales are
each client's own, of its training rows, and never leave it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from federated.bars import group_count, own_panel, paths_of, stamps
from federated.settings import Settings, names
from federated.task import PIECES, Local, Node, Stage, Weights, local_settings
from federated.update import table
from finetune.data.panel import Panel
from finetune.engine.config import load_config
from kronos.errors import InputError
from tft.config import TftConfig
from tft.losses import BOUNDS
from tft.task import TftTask
from tft.training import Prepared, cut_windows, open_data, prepare, target_losses
from tft.vocabulary import Vocabulary

_CUT_OF_ALL = ("split", "train_until")  # of a manifest: where training ends by the bars of all


def check(settings: Settings) -> None:
    """Raises InputError for whatever is wrong with the model's YAML and can be told without bars."""
    _config(settings)


def hello(settings: Settings, node: Node) -> dict[str, Any]:
    """What a node tells of itself: windows, names, codes, and how many training labels are positive (for the run's class weights)."""
    config = _config(settings)
    name, panel, manifest, whole = _own_panel(settings, node)
    losses = target_losses(config, panel, manifest)
    data = cut_windows(config, panel, manifest, losses, say=_quiet)
    labels = data.train.targets()  # [N, targets]
    counts = {
        target: [int(np.nansum(labels[:, k] == 1)), int((~np.isnan(labels[:, k])).sum())]
        for k, (target, loss) in enumerate(losses.items())
        if loss.kind == "bce" and loss.pos_weight is None
    }
    series = [[info.symbol, info.period] for info in panel.series]
    told = {"name": name, "train": len(data.train), "val": len(data.val), "series": series, PIECES: not whole}
    return {**told, "vocabulary": data.vocabulary.as_dict(), "labels": counts, **_labelling(panel, manifest, losses)}


def _labelling(panel: Panel, manifest: dict[str, Any], targets: Iterable[str]) -> dict[str, Any]:
    """How the labels were made: definitions and thresholds of these targets, as far as they are noted, for the client's own series."""
    definitions, thresholds = manifest.get("targets", {}), manifest.get("thresholds", {})
    own = [f"{info.symbol} {info.period}" for info in panel.series]
    return {
        "targets": {name: definitions[name] for name in targets if name in definitions},
        "thresholds": {name: {s: thresholds[name][s] for s in own if s in thresholds[name]} for name in targets if name in thresholds},
    }


def heard(told: dict[str, Any]) -> None:
    """Raises KeyError, TypeError or ValueError for a hello that `facts` cannot read."""
    vocabulary = told["vocabulary"]
    columns = [(vocabulary["symbols"], str), (vocabulary["periods"], str)]
    columns += [(values, int) for values in table(vocabulary["categories"]).values()]
    if not all(isinstance(values, list) and all(isinstance(value, kind) for value in values) for values, kind in columns):
        raise TypeError("the vocabulary is no lists of names and categories")
    for ones, labels in table(told["labels"]).values():
        if not (isinstance(ones, int) and isinstance(labels, int) and 0 <= ones <= labels < 1 << 53):
            raise ValueError(f"{ones} positive of {labels} labels")
    for how in table(told["targets"]).values():
        table(table(how).get("horizon", {}))
    for thresholds in table(told["thresholds"]).values():
        table(thresholds)


def facts(settings: Settings, hellos: list[dict[str, Any]]) -> dict[str, Any]:
    """Vocabulary and class weights of the run. Raises InputError where no client has a class, or labels of two are not made alike."""
    _check_labels(hellos)
    of = [told["vocabulary"] for told in hellos]
    vocabulary = {
        "symbols": names(settings.symbols) or sorted({name for v in of for name in v["symbols"]}),
        "periods": names(settings.periods) or sorted({name for v in of for name in v["periods"]}),
        "categories": {column: sorted({value for v in of for value in v["categories"].get(column, [])}) for column in of[0]["categories"]},
    }
    positives: Counter[str] = Counter()
    known: Counter[str] = Counter()
    for told in hellos:
        for target, (ones, labels) in told["labels"].items():
            positives[target] += ones
            known[target] += labels
    lacking = [target for target in known if not 0 < positives[target] < known[target]]
    if lacking:
        raise InputError(f"targets: {', '.join(lacking)} have one class only over all clients; leave them out, or change their definition")
    weights = {target: float(np.clip((known[target] - positives[target]) / positives[target], *BOUNDS)) for target in sorted(known)}
    return {"vocabulary": vocabulary, "positive": weights}


def _check_labels(hellos: list[dict[str, Any]]) -> None:
    """Raises InputError where two clients mean different things by one label: its definition, its horizon, the threshold of a series."""
    seen: dict[tuple[str, ...], tuple[Any, str]] = {}
    for told in hellos:
        for target, how in told["targets"].items():
            facts: dict[tuple[str, ...], Any] = {(target,): [how.get("name"), how.get("parameters")]}
            facts |= {(target, "horizon of", period): bars for period, bars in how.get("horizon", {}).items()}
            facts |= {(target, "threshold of", series): value for series, value in told["thresholds"].get(target, {}).items()}
            for key, value in facts.items():
                former, who = seen.setdefault(key, (value, told["name"]))
                if former != value:
                    raise InputError(
                        f"targets: {' '.join(key)} is {former} for {who} and {value} for {told['name']}, so that one label would mean two "
                        "things; make the data with the same targets section, and targets.thresholds: the targets.json of one client"
                    )


def describe(settings: Settings, node: Node, facts: dict[str, Any]) -> dict[str, Any]:
    """The model's description: what TftTask takes, but for the scales, which are the client's alone."""
    config = dict(_prepared(settings, node, facts).task.config)
    return {"task": {**config, "facts": {**config["facts"], "scales": {}}}}


def weights(settings: Settings, facts: dict[str, Any]) -> Weights:
    """The server's model, with random weights from the run's seed. facts: with "task", which a client described."""
    torch.manual_seed(settings.seed)
    return _weights(TftTask(**facts["task"]))


def local(settings: Settings, node: Node, facts: dict[str, Any]) -> Local:
    """A client over its own partition. Raises InputError if that has no window."""
    made = _prepared(settings, node, facts)
    device = made.config.device
    torch.set_num_threads(device.cpu_threads or torch.get_num_threads())
    base = made.settings(device.pick())
    own = local_settings(base, settings, batch_size=base.batch_size)
    return Local(settings, node, _weights(made.task), [Stage("tft", lambda: made.task, made.splits, own, score="val_composite_score")])


def groups(settings: Settings) -> int:
    """How many partitions the bars have."""
    return group_count(settings, _read(_config(settings).data_path, settings, Node(0, 1))[0])


def _weights(task: TftTask) -> Weights:
    plain = json.loads(json.dumps({key: value for key, value in task.config.items() if key != "facts"}))
    return Weights({"tft": task}, task.save, {"tft": plain})


def _prepared(settings: Settings, node: Node, facts: dict[str, Any]) -> Prepared:
    _, panel, manifest, _ = _own_panel(settings, node)
    vocabulary = Vocabulary.from_dict(facts["vocabulary"])
    return prepare(_config(settings), panel, manifest=manifest, vocabulary=vocabulary, positive=facts["positive"], say=_quiet)


def _own_panel(settings: Settings, node: Node) -> tuple[str, Panel, dict[str, Any], bool]:
    """Name, bars and manifest of a client, and whether it has whole series."""
    config = _config(settings)
    panel, manifest = _read(config.data_path, settings, node)
    name, own = own_panel(settings, panel, node, run=config.block_length if config.shared_rows else 1)
    whole = _whole_series(panel, own)
    return name, own, manifest if whole else {key: manifest[key] for key in manifest if key not in _CUT_OF_ALL}, whole


def _whole_series(panel: Panel, own: Panel) -> bool:
    """Whether a client has whole series. Pieces of some split their own time: where training on all ends is beyond most of them."""
    rows = dict(zip(panel.series, np.diff(panel.offsets).tolist(), strict=True))
    return all(rows[info] == own_rows for info, own_rows in zip(own.series, np.diff(own.offsets).tolist(), strict=True))


def _read(default: str, settings: Settings, node: Node) -> tuple[Panel, dict[str, Any]]:
    paths = paths_of(node, [default])
    if len(paths) != 1:
        raise InputError(f"data-path names {len(paths)} files; the transformer takes one fused panel (tft/data_fusion.py makes it)")
    if not Path(paths[0]).exists():
        raise InputError(
            f"data-path: {paths[0]} is not there; make it: run tft/indicating.py, tft/target_config.py and tft/data_fusion.py, each with "
            "--config configs/tft/demo_data.yaml (or your own)"
        )
    return _opened(str(settings.yaml), paths[0], stamps(paths))


@lru_cache(maxsize=1)
def _opened(yaml: str, path: str, stamps: tuple[tuple[int, int], ...]) -> tuple[Panel, dict[str, Any]]:
    return open_data(load_config(TftConfig, yaml, [f"data_path={json.dumps(path)}"]))


def _config(settings: Settings) -> TftConfig:
    rate = settings.learning_rate
    return _loaded(str(settings.yaml), settings.data_path, settings.seed, settings.batch_size, rate)


@lru_cache(maxsize=4)
def _loaded(yaml: str, data_path: str, seed: int, batch_size: int, rate: float) -> TftConfig:
    own = [f"seed={seed}", f"batch_size={batch_size}"]
    own += [f"data_path={json.dumps(data_path)}"] if data_path else []
    own += [f"lr={rate}"] if rate else []
    return load_config(TftConfig, yaml, own)


def _quiet(text: str) -> None:
    """What a client's own preparation says is of its bars: it is not told."""
