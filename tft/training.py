"""A training run from its configuration: panel, vocabulary, scales, windows and task made ready; and a finished run opened again."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from finetune.data.panel import Panel
from finetune.engine.config import load_config
from finetune.engine.files import read_json
from finetune.engine.settings import FitSettings
from finetune.engine.windows import Source, Splits
from kronos.errors import InputError, MissingFileError
from tft.config import TftConfig, extra_file
from tft.indicators import nearest
from tft.losses import TargetLoss, read_targets, with_training_weights
from tft.metrics import CLASSIFICATION, REGRESSION
from tft.run_folder import CONFIG_NAME, MANIFEST_NAME, run_of, weights_of
from tft.scales import Scales
from tft.target_panel import SPLIT_KEYS
from tft.task import TftTask, load_task
from tft.vocabulary import Vocabulary
from tft.window_rows import LAG
from tft.windows import SplitRule, TftWindows, make_windows

Say = Callable[[str], Any]
_CHUNK = 1 << 16  # rows looked at together
_SHOWN = 5  # columns that a message names
_SMALLER = ("loss", "loss_for_ckpt", "rmse", "mae")  # metrics of which less is better
_DEFAULT_LOSS = {"class": "WeightedBCE", "real": "SmoothL1"}


@dataclass
class Prepared:
    """A configuration with its bars read, its windows cut and its task made.

    manifest: what the data commands noted about the panel (horizons, calendar, thresholds). data: the windows with all that was made of
    the panel. mode: whether less or more of config.monitor is better.
    """

    config: TftConfig
    panel: Panel
    manifest: dict[str, Any]
    task: TftTask
    data: TftWindows
    mode: Literal["min", "max"]

    @property
    def windows(self) -> dict[str, Source]:
        """One window per item, every window: "train", "val" and "test"; the last may be empty."""
        return {"train": self.data.train, "val": self.data.val, "test": self.data.test}

    @property
    def splits(self) -> Splits:
        """What `fit` trains on: windows, or blocks of them where rows are shared."""
        return self.data.in_blocks(self.config.block_length) if self.config.shared_rows else self.data.splits

    @property
    def vocabulary(self) -> Vocabulary:
        return self.data.vocabulary

    @property
    def scales(self) -> Scales:
        """Mean and deviation of each (symbol, period) that regression targets, and inputs where asked for, were standardised with."""
        return self.data.scales

    @property
    def left_out(self) -> list[str]:
        """Groups that are too short for a window."""
        return self.data.left_out

    def settings(self, device: str = "cpu") -> FitSettings:
        return self.config.fit_settings(device, self.mode)


def prepare(
    config: TftConfig,
    panel: Panel | None = None,
    *,
    manifest: Mapping[str, Any] | None = None,
    vocabulary: Vocabulary | None = None,
    scales: Scales | None = None,
    positive: Mapping[str, float] | None = None,
    say: Say = print,
) -> Prepared:
    """Everything that training needs, from `config` and the data it names, or from `panel` with its `manifest`.

    vocabulary, scales, positive (weight of a classification's positives, by target): used as they are where given, so that a federated
    client has the same shapes and losses as all others; its own rows then need not hold both classes or vary in every column.
    Raises InputError for whatever is wrong with configuration or data.
    """
    shared = vocabulary is not None or positive is not None
    if panel is None:
        panel, manifest = open_data(config)
    manifest = dict(manifest or {})
    losses = target_losses(config, panel, manifest)
    composite = extra_file(config.composite_score)
    periods = sorted({info.period for info in panel.series})
    mode = better(config.monitor, config.monitor_mode, losses, periods, bool(composite))
    data = cut_windows(config, panel, manifest, losses, vocabulary=vocabulary, scales=scales, say=say)
    if not shared:
        refuse_constant(panel, (*data.columns.past, *data.columns.known), data.cuts[0])
    losses = _given_weights(losses, positive) if positive is not None else with_training_weights(losses, data.train.targets(), list(losses))
    torch.manual_seed(config.seed)  # the same first weights on every rank and in every run
    task = TftTask(
        model_sizes(config, data),
        losses,
        data.vocabulary.period_names,
        uncertainty=config.uncertainty_weights,
        stages=extra_file(config.weights_config),
        composite=composite,
        facts=_facts(config, data, manifest, losses),
    )
    task.say = say
    if task.composite is not None:
        task.composite.tell_unknown(say)
    return Prepared(config, panel, manifest, task, data, mode)


def load_run(run_folder: str | Path, data_path: str | None = None, *, checkpoint: str = "best", say: Say = print) -> Prepared:
    """A run again, over its own data or another path's, with the weights of checkpoints/<checkpoint> in an evaluating task.

    run_folder: of the run, or of one of its checkpoints, which then is the one. Columns, vocabulary, scales and the moments that end
    training and validation are the run's own, so that no row of other data that it may have learned from counts as validation. The path
    wins over TFM_DATA_PATH, which wins over the run's. Raises InputError or MissingFileError naming what is missing or does not fit.
    """
    folder, named = run_of(Path(run_folder)), Path(run_folder).parent.name == "checkpoints"
    file = folder / "configs" / CONFIG_NAME
    if not file.is_file():
        raise MissingFileError(
            f"{run_folder}: is no run of train_multi_tft.py ({file} is missing); give a folder such as runs/train_multi_tft-..."
        )
    config = load_config(TftConfig, file, [f"data_path={data_path}"] if data_path else [])
    task = load_task(weights_of(folder, Path(run_folder).name if named and checkpoint == "best" else checkpoint))
    facts = task.config["facts"]
    lags = [name + LAG for name in config.lagged_targets]
    columns = {kind: [name for name in names if name not in lags] for kind, names in facts["columns"].items()}
    config = config.model_copy(update={"reals": columns["past"] + columns["known"], "categoricals": columns["categorical"]})
    panel, manifest = open_data(config, columns)
    _refuse_other_columns(config.data_path, panel, columns)
    if "targets" not in manifest:  # a table: what is known of the targets is what the run was told
        manifest = {**manifest, **(read_json(folder / "configs" / MANIFEST_NAME) or {})}
    data = cut_windows(
        config,
        panel,
        manifest,
        task.losses.losses,
        vocabulary=Vocabulary.from_dict(facts["vocabulary"]),
        scales=Scales.from_dict(facts["scales"]),
        cuts=tuple(facts["cuts"]),
        say=say,
    )
    task.say = say
    return Prepared(config, panel, manifest, task, data, better(config.monitor, "auto", task.losses.losses, task.periods, True))


def _refuse_other_columns(path: str, panel: Panel, trained: Mapping[str, Sequence[str]]) -> None:
    """Raises InputError for data that lack a column that a run was trained on, or have it of another kind. More columns are no harm."""
    kinds = {column.name: column.kind for column in panel.columns}
    wanted = {name: kind for kind, names in trained.items() for name in names}
    missing = [name for name in wanted if name not in kinds]
    moved = [f"{name!r} is {kinds[name]}, not {kind}" for name, kind in wanted.items() if kinds.get(name, kind) != kind]
    if missing or moved:
        near = nearest(missing[0], kinds) if missing else ""
        lacks = [f"has no column {', '.join(map(repr, missing[:_SHOWN]))}{near}"] if missing else []
        raise InputError(
            f"{path}: {'; '.join([*lacks, *moved[:_SHOWN]])}; the run was trained on {len(wanted)} columns: make the data as for training"
        )


def open_data(config: TftConfig, kinds: Mapping[str, Sequence[str]] | None = None) -> tuple[Panel, dict[str, Any]]:
    """The panel that config.data_path names, and its manifest. Raises InputError or MissingFileError."""
    from tft.long_tables import open_dataset  # pyarrow: only where data is read

    kinds = kinds or {}
    categorical = [name for name in kinds.get("categorical", config.categoricals) if name != "all"]
    folder = Path(config.data_path).is_dir()
    panel, manifest = open_dataset(config.data_path, **({} if folder else {"known": kinds.get("known", ()), "categorical": categorical}))
    if panel.targets is None or not panel.target_names:
        raise InputError(f"{config.data_path}: has no targets; make them first: python tft/target_config.py, then tft/data_fusion.py")
    return panel, manifest


def target_losses(config: TftConfig, panel: Panel, manifest: Mapping[str, Any]) -> dict[str, TargetLoss]:
    """Losses by target in the order of the configuration. Raises InputError with all unknown targets and losses."""
    if isinstance(config.targets, dict):
        return read_targets(config.targets, panel.target_names)
    named = [name for wanted in config.targets for name in (panel.target_names if wanted == "all" else [wanted])]
    noted = manifest.get("targets", {})
    chosen = {}
    for name in dict.fromkeys(named):
        kind = noted.get(name, {}).get("kind") or _kind_of(panel, name)
        chosen[name] = _DEFAULT_LOSS[kind]
    return read_targets(chosen, panel.target_names)


def _kind_of(panel: Panel, target: str) -> str:
    """What labels look like: only 0 and 1 are classes."""
    if target not in panel.target_names:
        return "real"  # read_targets tells of it
    labels = panel.targets[:, panel.target_names.index(target)]
    return "class" if np.isin(labels[~np.isnan(labels)], (0, 1)).all() else "real"


def cut_windows(
    config: TftConfig,
    panel: Panel,
    manifest: Mapping[str, Any],
    losses: Mapping[str, TargetLoss],
    *,
    vocabulary: Vocabulary | None = None,
    scales: Scales | None = None,
    cuts: tuple[int, int] | None = None,
    say: Say = print,
) -> TftWindows:
    """The windows that a configuration asks of a panel. Raises what `make_windows` raises."""
    return make_windows(
        panel,
        manifest,
        targets=list(losses),
        real_targets=[name for name, loss in losses.items() if not loss.classification],
        encoder=config.max_encoder_length,
        prediction=config.max_prediction_length,
        rule=SplitRule(**{name: getattr(config, name) for name in SPLIT_KEYS}),
        focus_period=tuple(config.focus_period),
        reals=None if config.reals == ["all"] else config.reals,
        categoricals=None if config.categoricals == ["all"] else config.categoricals,
        past_targets=config.lagged_targets,
        scale_inputs=config.standardise,
        horizon=config.horizon or None,
        vocabulary=vocabulary,
        scales=scales,
        cuts=cuts,
        say=say,
    )


def refuse_constant(panel: Panel, names: Sequence[str], train_end: int) -> None:
    """Raises InputError naming inputs with one value in all rows before train_end (ns UTC): they tell a model nothing."""
    place = {column.name: k for k, column in enumerate(panel.columns)}
    columns = [place[name] for name in names if name in place]  # lagged targets are no columns of the panel
    low, high = np.full(len(columns), np.inf), np.full(len(columns), -np.inf)
    rows = 0
    for first in range(0, panel.n_rows, _CHUNK):
        chosen = panel.features[first : first + _CHUNK][np.asarray(panel.times[first : first + _CHUNK]) < train_end][:, columns]
        if len(chosen):
            low, high, rows = np.minimum(low, chosen.min(0)), np.maximum(high, chosen.max(0)), rows + len(chosen)
    constant = [k for k in range(len(columns)) if rows and low[k] == high[k]]
    if constant:
        shown = ", ".join(f"{panel.columns[columns[k]].name} = {low[k]:g}" for k in constant[:_SHOWN])
        more = f" and {len(constant) - _SHOWN} more" if len(constant) > _SHOWN else ""
        raise InputError(
            f"{len(constant)} columns have one value in all {rows:,} training rows and tell a model nothing: {shown}{more}; "
            "take them out of the data (features.constant: drop), or name the others in reals"
        )


def _given_weights(losses: Mapping[str, TargetLoss], positive: Mapping[str, float]) -> dict[str, TargetLoss]:
    missing = [name for name, loss in losses.items() if loss.kind == "bce" and loss.pos_weight is None and name not in positive]
    if missing:
        raise InputError(f"positive weights are given, but none for {', '.join(missing)}; give one for each target with WeightedBCE")
    return {
        name: replace(loss, pos_weight=float(positive[name])) if loss.kind == "bce" and loss.pos_weight is None else loss
        for name, loss in losses.items()
    }


def model_sizes(config: TftConfig, data: TftWindows) -> dict[str, Any]:
    """Arguments of `TftSizes` but for `outputs`."""
    return {
        **data.sizes,
        "hidden": config.hidden_size,
        "heads": config.attention_head_size,
        "lstm_layers": config.lstm_layers,
        "dropout": config.dropout,
        "hidden_continuous": config.hidden_continuous_size,
    }


def _facts(config: TftConfig, data: TftWindows, manifest: Mapping[str, Any], losses: Mapping[str, TargetLoss]) -> dict[str, Any]:
    """What users of the weights need besides; part of a checkpoint's identity."""
    columns = {name: list(getattr(data.columns, name)) for name in ("past", "known", "categorical")}
    horizons = {name: manifest.get("targets", {}).get(name, {}).get("horizon", {}) for name in losses}
    return {
        "encoder": config.max_encoder_length,
        "prediction": config.max_prediction_length,
        "columns": columns,
        "cuts": list(data.cuts),
        "vocabulary": data.vocabulary.as_dict(),
        "scales": data.scales.as_dict(),
        "horizons": horizons,
        "calendar": manifest.get("calendar", {}),
        "shared_rows": config.block_length if config.shared_rows else 0,
    }


def better(monitor: str, wanted: str, losses: Mapping[str, TargetLoss], periods: Sequence[str], composite: bool) -> Literal["min", "max"]:
    """Whether less or more of the monitored metric is better, as `monitor_mode` wants it.

    Raises InputError if validation cannot give that metric, or if the wish would keep the worst weights.
    """
    known = {"loss", "loss_for_ckpt"} | ({"composite_score"} if composite else set())
    for target, loss in losses.items():
        for metric in (*(CLASSIFICATION if loss.classification else REGRESSION), "loss"):
            known |= {f"{target}_{metric}"} | {f"{target}_{metric}@{period}" for period in periods if period}
    plain = monitor.removeprefix("val_")
    if plain not in known:
        near = difflib.get_close_matches(plain, sorted(known), 1)
        hint = f"; did you mean val_{near[0]}?" if near else "; there are val_loss, val_loss_for_ckpt, val_<target>_<metric>[@period]"
        missing = "; composite_score names no file" if plain == "composite_score" else ""
        raise InputError(f"monitor: {monitor!r} is not measured in validation{missing or hint}")
    natural: Literal["min", "max"] = "min" if plain.split("@")[0].endswith(_SMALLER) else "max"
    if wanted not in ("auto", natural):
        raise InputError(f"monitor_mode: {wanted} would keep the worst weights by {monitor}; use {natural} or auto")
    return natural
