"""The graph of a multi-model training: jobs (a model's stage each), what each waits for, what is done already.

Who waits for whom follows from files: a job that reads the weights or the panel that another job writes waits for that one. So a predictor
waits for its tokenizer, and a model that starts from another model's weights waits for that model.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

from finetune.clashes import clashes, invalid
from finetune.data.panel_store import META_FILE
from finetune.data.resampling_settings import changed_settings
from finetune.engine.advice import memory_advice
from finetune.engine.errors import InputError, MissingFileError
from finetune.engine.files import read_json
from finetune.engine.places import MARKER, finished, newest_last
from finetune.multi_config import ModelConfig
from finetune.results import changes, find_tokenizer, place_of

Kind = Literal["prepare", "tokenizer", "predictor", "evaluate"]
KINDS: dict[str, tuple[Kind, ...]] = {  # --stage
    "all": ("tokenizer", "predictor", "evaluate"),
    "tokenizer": ("tokenizer",),
    "predictor": ("predictor", "evaluate"),
}
ROOT = Path(__file__).resolve().parents[1]
SCRIPTS: dict[Kind, str] = {
    "prepare": "prepare_kronos_data.py",
    "tokenizer": "train_tokenizer_multi.py",
    "predictor": "train_predictor_multi.py",
    "evaluate": "evaluate_multi.py",
}


@dataclass(frozen=True)
class Job:
    """One stage of one model, a process of its own.

    command: what follows `python`. folder: where it leaves metrics.jsonl, status.json and its result. needs: names of jobs it waits for.
    done: its result is there, it is not run. ranks: whether torchrun may give it several GPUs. cpu_threads: as configured, 0 is torch's
    choice. exists: what an earlier run left, in words. memory_advice: what to change where it needs too much.
    """

    model: str
    stage: str
    command: tuple[str, ...]
    folder: Path
    needs: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    resume: bool = False
    done: bool = False
    ranks: bool = True
    on_gpu: bool = False
    cpu_threads: int = 0
    exists: str = ""
    memory_advice: str = ""

    @property
    def name(self) -> str:
        return f"{self.model}-{self.stage}"


@dataclass(frozen=True)
class Plan:
    """Jobs in an order in which each comes after what it needs. problems: why it cannot be run yet, each with the command that helps."""

    jobs: tuple[Job, ...]
    configs: Mapping[str, ModelConfig]
    problems: tuple[str, ...] = ()

    @property
    def todo(self) -> list[Job]:
        return [job for job in self.jobs if not job.done]


@dataclass(frozen=True)
class _Draft:
    """A job with the files that tie it to others."""

    job: Job
    reads: tuple[Path, ...]
    writes: Path = field(default_factory=Path)


def plan(
    configs: Sequence[ModelConfig], stage: str = "all", *, overrides: Sequence[str] = (), resume: bool = False, prepare: bool = False
) -> Plan:
    """The jobs of these models. Reads no bars and builds no model.

    stage: a key of KINDS. overrides: --set of every job. resume: leave out what is done, and go on from checkpoints.
    prepare: also make the panels that are not there. Raises InputError: two models with one name or one folder, models that wait for each
    other.
    """
    if told := clashes(configs):
        raise invalid(told)
    by_name = {config.name: config for config in configs}
    drafts: dict[str, _Draft] = {}
    for config in configs:
        for kind in (*(("prepare",) if prepare else ()), *KINDS[stage]):
            if _is_wanted(config, kind) and not (kind == "prepare" and any(d.writes == _panel(config) for d in drafts.values())):
                draft = _draft(config, kind, tuple(overrides))
                drafts[draft.job.name] = draft
    jobs = _with_what_exists(_in_order(_tied(drafts.values())), by_name, resume)
    return Plan(tuple(jobs), by_name, tuple(_problems(jobs, by_name)))


def _is_wanted(config: ModelConfig, kind: Kind) -> bool:
    if kind == "prepare":
        return config.needs_panel or bool(config.changed_source)
    experiment = config.experiment
    return {
        "tokenizer": experiment.train_tokenizer,
        "predictor": experiment.train_basemodel,
        "evaluate": experiment.train_basemodel and (config.evaluation.enabled or config.report.macro),
    }[kind]


def _draft(config: ModelConfig, kind: Kind, overrides: tuple[str, ...]) -> _Draft:
    paths, experiment = config.model_paths, config.experiment
    bars = [_panel(config)] if config.is_prepared_from_source else []
    if kind == "prepare":
        bars, weights, folder, written = [], [], config.panel_folder.parent, _panel(config)
    elif kind == "tokenizer":
        weights = [paths.pretrained_tokenizer] if experiment.pre_trained_tokenizer else []
        folder, written = paths.folder("tokenizer"), Path(paths.best_model("tokenizer")).absolute()
    elif kind == "predictor":
        weights = [paths.finetuned_tokenizer, *([paths.pretrained_predictor] if experiment.pre_trained_predictor else [])]
        weights += [] if experiment.train_tokenizer else [paths.pretrained_tokenizer]
        folder, written = paths.folder("predictor"), Path(paths.best_model("predictor")).absolute()
    else:
        weights = [paths.finetuned_tokenizer, str(paths.best_model("predictor"))]
        folder = Path(paths.base_save_path, "evaluation")
        written = folder.absolute()
    on_gpu = kind != "prepare" and config.device.use_cuda and config.device.device in ("auto", "cuda")
    if on_gpu and config.device.device_id:
        overrides = (*overrides, "device.device_id=0")  # a worker sees only its own GPUs, counted from 0
    job = Job(
        model=config.name,
        stage=kind,
        command=(str(ROOT / "finetune" / SCRIPTS[kind]), "--config", config.reference),
        folder=folder,
        overrides=overrides,
        ranks=kind in ("tokenizer", "predictor"),
        on_gpu=on_gpu,
        cpu_threads=config.device.cpu_threads,
        memory_advice=memory_advice(config.training) if kind in ("tokenizer", "predictor") else "",
    )
    return _Draft(job, (*bars, *(Path(one).absolute() for one in weights)), written)


def _panel(config: ModelConfig) -> Path:
    return config.panel_folder.absolute()


def _tied(drafts: Iterable[_Draft]) -> list[Job]:
    """Jobs with their needs: the jobs that write what they read."""
    drafts = list(drafts)
    makers = {draft.writes: draft.job.name for draft in drafts}
    return [
        replace(draft.job, needs=tuple(dict.fromkeys(makers[path] for path in draft.reads if path in makers and path != draft.writes)))
        for draft in drafts
    ]


def _in_order(jobs: Sequence[Job]) -> list[Job]:
    """As given, but each after what it needs. Raises InputError if jobs wait for each other."""
    left, placed = list(jobs), {}
    while left:
        ready = next((job for job in left if all(need in placed for need in job.needs)), None)
        if ready is None:
            waits = "; ".join(f"{job.name} needs {', '.join(need for need in job.needs if need not in placed)}" for job in left)
            raise InputError(
                f"these jobs wait for each other: {waits}; start one of the models from other weights (model_paths.pretrained_*)"
            )
        left.remove(ready)
        placed[ready.name] = ready
    return list(placed.values())


# ---------------------------------------------------------------------- what an earlier run left


def _with_what_exists(jobs: Sequence[Job], configs: Mapping[str, ModelConfig], resume: bool) -> list[Job]:
    """Mark what is done. As make has it: a result older than what it was made from is made again, as is all that follows.

    So is one that was made, or begun, with other settings than the configuration's now (see `results`): the plan names each with its old
    and its new value. To go on with a stage in spite of changed settings, train it alone: train_*_multi.py --resume.
    """
    seen: dict[str, Job] = {}
    for job in jobs:
        config = configs[job.model]
        needs = [seen[name] for name in job.needs]
        whole, exists = _left_by_an_earlier_run(job, config)
        stale = _stale(job, config, needs) if exists else ""
        keep = resume or config.experiment.skip_existing
        done = keep and whole and not stale
        if job.stage == "prepare" or stale:
            exists = f"{exists}, but {stale}: made anew" if exists else ""
        elif exists and not done:
            exists += ", goes on from there" if resume else ", made anew (--resume keeps it)"
        can_go_on = resume and job.stage in ("tokenizer", "predictor") and not stale and all(need.done for need in needs)
        seen[job.name] = replace(job, done=done, resume=can_go_on, exists=exists)
    return list(seen.values())


def _left_by_an_earlier_run(job: Job, config: ModelConfig) -> tuple[bool, str]:
    """(whether the result is whole, what there is in words)."""
    if job.stage == "prepare":
        return False, "bars are there" if config.has_panel else ""
    if job.stage == "evaluate":
        there = all(file.is_file() for file in _reports(job, config))
        return there, "done" if there else ""
    if finished(place_of(config, job.stage)):
        return True, "done"
    last = newest_last(job.folder / "checkpoints")
    if last is None:
        return False, ""
    return False, f"stopped at step {(read_json(last / MARKER) or {}).get('step', 0):,}"


def _reports(job: Job, config: ModelConfig) -> list[Path]:
    """What an evaluation leaves."""
    wanted = {"macro.json": config.report.macro, "evaluation.json": config.evaluation.enabled}
    return [job.folder / name for name, is_wanted in wanted.items() if is_wanted]


def _stale(job: Job, config: ModelConfig, needs: Sequence[Job]) -> str:
    """Why an earlier result does not count any more, or an empty string."""
    for need in needs:
        if not need.done:
            return f"{need.name} comes first"
    if job.stage == "prepare":
        return "; ".join([*changed_settings(config), *filter(None, [config.changed_source])])
    if changed := _changed(job, config):
        return f"settings have changed ({'; '.join(changed)})"
    if job.stage in ("tokenizer", "predictor"):
        bars = ((read_json(job.folder / "summary.json") or {}).get("data") or {}).get("data")
        meta = read_json(config.panel_folder / META_FILE) if config.is_prepared_from_source else None
        if bars is not None and meta is not None and bars != meta.get("fingerprint"):
            return "the bars have changed"
    weights = (read_json(job.folder / "summary.json") or {}).get("weights") or {}
    made = min(_times(*_reports(job, config)), default=None) if job.stage == "evaluate" else _last_saved(job)
    for need in needs:
        if need.stage in weights:
            continue  # its very content was compared: a copied folder may have any times
        if made is not None and any(time > made for time in _times(need.folder / "best_model" / MARKER)):
            return f"{need.name} is newer"
    return ""


def _changed(job: Job, config: ModelConfig) -> list[str]:
    """The settings that are not those a result was made with, each with its old and its new value."""
    if job.stage == "evaluate":
        known = (read_json(job.folder / "evaluation.json") or {}).get("settings") or {}
        now = config.evaluation.model_dump()
        return [f"evaluation.{key}: {old} → {now[key]}" for key, old in known.items() if key in now and now[key] != old]
    return [str(one) for one in changes(config, job.stage, bars=not config.is_prepared_from_source)]


def _last_saved(job: Job) -> float | None:
    """When a training last saved something, in seconds since 1970."""
    last = newest_last(job.folder / "checkpoints")
    return max(_times(job.folder / "best_model" / MARKER, *([last / MARKER] if last else [])), default=None)


def _times(*files: Path) -> list[float]:
    return [file.stat().st_mtime for file in files if file.is_file()]


def _problems(jobs: Sequence[Job], configs: Mapping[str, ModelConfig]) -> Iterator[str]:
    """What is missing that no job of the plan makes."""
    prepared = {job.model for job in jobs if job.stage == "prepare"}
    to_come = {(job.folder / "best_model").absolute() for job in jobs if job.stage in ("tokenizer", "predictor")}
    told: set[str] = set()
    for job in jobs:
        for check in () if job.done else _checks(job, configs[job.model], prepared, to_come):
            try:
                check()
            except (InputError, MissingFileError) as error:
                if str(error) not in told:
                    told.add(str(error))
                    yield str(error)


def _checks(job: Job, config: ModelConfig, prepared: Container[str], to_come: Container[Path]) -> list[Callable[[], object]]:
    """What must hold before a job is begun. prepared: models whose bars the plan makes; to_come: weights that it makes."""
    if job.stage == "prepare":
        return [config.check_source]
    checks: list[Callable[[], object]] = [config.check_device]
    if job.model not in prepared and not any(need.endswith("-prepare") for need in job.needs):
        checks.append(config.check_data)
    if job.stage in ("tokenizer", "predictor"):
        checks.append(partial(config.check_weights, job.stage, to_come))
    if job.stage == "predictor" and not any(need.endswith("-tokenizer") for need in job.needs):
        checks.append(partial(find_tokenizer, config, lambda text: None))
    return checks
