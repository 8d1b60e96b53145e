"""From what a user asks for to a finished multi-model run: the plan, its picture in words, the run, the report."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune.clashes import invalid
from finetune.config_manager import ConfigManager
from finetune.engine.advice import without_gpu
from finetune.engine.command import EXIT_DONE, EXIT_FAULT
from finetune.engine.errors import InputError, Interrupted
from finetune.jobs import Job, Plan, plan
from finetune.jobs_costs import Cost, cost_of, too_large
from finetune.jobs_machine import Machine, free_gib, this_machine
from finetune.jobs_run import GRACE_S, Runner, Slot, command_of, slots
from finetune.jobs_state import LOGS, RunState, folder_to_resume, locked, new_folder
from finetune.jobs_table import display

_SLOW_PARAMETERS = 4_000_000  # from Kronos-mini on, a CPU is slow


@dataclass(frozen=True)
class Wish:
    """What is asked for. models: names or paths; none: all registered. time_limit_s: of each job; 0: none."""

    models: tuple[str, ...] = ()
    stage: str = "all"
    mode: str = "sequential"
    workers: int = 2
    resume: bool = False
    prepare: bool = False
    overrides: tuple[str, ...] = ()
    time_limit_s: float = 0.0
    grace_s: float = GRACE_S
    logs: Path = LOGS


@dataclass(frozen=True)
class Session:
    """A wish with its plan, its workers and its costs."""

    wish: Wish
    plan: Plan
    machine: Machine
    slots: Sequence[Slot]
    costs: Mapping[str, Cost | None]


def session_of(wish: Wish, manager: ConfigManager | None = None, machine: Machine | None = None) -> Session:
    """Load the configurations and plan. Raises InputError for anything wrong with them; starts and writes nothing."""
    if wish.workers < 1:
        raise InputError(f"--max-workers {wish.workers} is not a number of workers; give 1 or more")
    if wish.time_limit_s < 0 or wish.grace_s < 0:
        raise InputError("--time-limit-s and --grace-s are seconds; give 0 or more")
    manager = manager or ConfigManager()
    names = list(dict.fromkeys(wish.models)) or manager.names()
    if not names:
        raise InputError(f"there is no model in {manager.folder}; put a YAML file there, or name one by its path: --models my.yaml")
    configs, problems = manager.load_all(names, wish.overrides)
    if problems:
        raise invalid(problems)
    made = plan(list(configs.values()), wish.stage, overrides=wish.overrides, resume=wish.resume, prepare=wish.prepare)
    machine = machine or this_machine()
    places = slots(wish.mode, wish.workers, machine.gpus, machine.cores)
    ranks = max(1, len(places[0].gpus))
    costs = {
        job.name: cost_of(job, made.configs[job.model], ranks if job.on_gpu else 1, on_gpu=job.on_gpu and bool(machine.gpus))
        for job in made.jobs
    }
    return Session(wish, made, machine, places, costs)


# ---------------------------------------------------------------------- the plan in words


def plan_text(session: Session) -> str:
    """Order, GPUs, commands, windows, steps, memory and disk, what exists already, and what to do first."""
    made, wish = session.plan, session.wish
    todo, done = made.todo, len(made.jobs) - len(made.todo)
    workers = f"{len(session.slots)} at a time ({_places(session)})" if wish.mode == "parallel" else f"one at a time ({_places(session)})"
    work = f"{_number(len(made.configs), 'model')}, {_number(len(todo), 'job')} to run"
    head = f"{work}{f', {done} done already' if done else ''}, {wish.mode}: {workers}"
    lines = [head, f"this machine: {session.machine.shown}", ""]
    for number, job in enumerate(made.jobs, start=1):
        lines += _job_lines(number, job, session)
    return "\n".join([*lines, *_totals(session), *(f"first: {told}" for told in made.problems), *_hint(session)])


def _number(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _hint(session: Session) -> Iterator[str]:
    """Missing panels need no command each, and those whose source has grown are to be made again."""
    configs = session.plan.configs.values()
    if session.wish.prepare:
        return
    if any(config.needs_panel for config in configs):
        yield "with --prepare, multi_model_trainer.py makes these bars itself"
    for config in configs:
        if told := config.changed_source:
            yield f"note: {config.name}: {told} since its bars were made; --prepare makes them again"


def _places(session: Session) -> str:
    slot = session.slots[0]
    if slot.gpus:
        spare = len(session.machine.gpus) - sum(len(one.gpus) for one in session.slots)
        queue = " ; further workers queue" if session.wish.mode == "parallel" and session.wish.workers > len(session.slots) else ""
        return "GPU " + " | ".join(", ".join(one.gpus) for one in session.slots) + (f"; {spare} idle" if spare else "") + queue
    return f"CPU, {slot.threads} of {session.machine.cores} cores each" if slot.threads else f"CPU, {session.machine.cores} cores"


def _job_lines(number: int, job: Job, session: Session) -> Iterator[str]:
    after = f", after {', '.join(job.needs)}" if job.needs else ""
    yield f"{number:3}. {job.name}{after}: {'done, nothing to do' if job.done else job.exists or 'new'}"
    if cost := session.costs[job.name]:
        yield f"     {_cost_text(cost)}"
    if not job.done:
        yield f"     {shlex.join(['python', *command_of(job, session.slots[0])[1:]])}"


def _cost_text(cost: Cost) -> str:
    facts = []
    if cost.windows:
        about = "" if cost.exact else "about "
        facts.append(f"{about}{cost.windows[0]:,} training and {cost.windows[1]:,} validation windows")
    else:
        facts.append(cost.note or "windows are known once the bars are read")
    work = cost.work
    steps = f"{'' if cost.exact else 'about '}{work.steps:,} steps × " if work.steps else ""
    facts.append(f"{steps}{work.epochs} epochs of batch {work.batch}")
    facts.append(f"{cost.parameters:,} parameters" if cost.parameters else "parameters are known once the weights are downloaded")
    if cost.memory_gib is not None:
        facts.append(f"about {cost.memory_gib:.1f} GiB memory")
    if cost.disk_gib is not None:
        facts.append(f"{_size(cost.disk_gib)} disk")
    return "; ".join(facts)


def _size(gib: float) -> str:
    return f"{gib:.2f} GiB" if gib >= 0.01 else f"{1024 * gib:.1f} MiB"


def _totals(session: Session) -> Iterator[str]:
    """Disk in all, and advice where memory or disk will not do."""
    costs = {job.name: cost for job in session.plan.todo if (cost := session.costs[job.name])}
    disk = sum(cost.disk_gib or 0 for cost in costs.values())
    places = {config.model_paths.base_path for config in session.plan.configs.values()}
    free = min(map(free_gib, places), default=0.0)
    yield ""
    yield f"disk: about {_size(disk)}, {free:.1f} GiB free" + (
        "; NOT ENOUGH: free some, or set model_paths.base_path" if disk > free else ""
    )
    machine, workers = session.machine, len(session.slots)
    for job in session.plan.todo:
        if cost := costs.get(job.name):
            on_gpu = job.on_gpu and bool(machine.gpus)
            room = machine.gpu_gib if on_gpu else machine.memory_gib / workers
            where = "each GPU" if on_gpu else f"each of {workers} workers" if workers > 1 else "this machine"
            if told := too_large(session.plan.configs[job.model], cost, room, where):
                yield f"memory: {job.stage} of {told}"
    largest = max(costs.items(), key=lambda item: item[1].parameters or 0, default=None)
    if largest and not machine.gpus and (largest[1].parameters or 0) >= _SLOW_PARAMETERS:
        config = session.plan.configs[next(job.model for job in session.plan.jobs if job.name == largest[0])]
        yield f"note: {without_gpu(config.training, largest[1].parameters or 0)}"


# ---------------------------------------------------------------------- the run


def run_session(session: Session) -> int:
    """Run the plan, show how it goes, write the report; the exit code. Raises InputError before anything starts, Interrupted at the end.

    A second trainer that wants one of the same folders is refused.
    """
    from finetune.multi_report import write_report  # matplotlib takes a second

    wish, made = session.wish, session.plan
    if made.problems:
        told = [*made.problems, *_hint(session)]
        raise InputError("before training:" + "".join(f"\n- {one}" for one in told) if len(told) > 1 else told[0])
    for told in _hint(session):
        print(told, flush=True)
    jobs, configs = made.jobs, made.configs
    with locked(Path(configs[job.model].model_paths.base_save_path) for job in made.todo) as locks:
        folder = (folder_to_resume(jobs, wish.logs) if wish.resume else None) or new_folder(wish.logs)
        state = RunState(folder, jobs, mode=wish.mode, workers=wish.workers, resume=wish.resume)
        work = {name: cost.work for name, cost in session.costs.items() if cost}
        shown = display(jobs, state, work)
        runner = Runner(
            jobs,
            session.slots,
            state,
            shown,
            time_limit_s=wish.time_limit_s,
            grace_s=wish.grace_s,
            keep_open=[file.fileno() for file in locks],
        )
        try:
            code = runner.run()
        finally:
            shown.close()
        report = write_report(configs, state, wish.logs)
    print(f"report: {report}\nlogs: {folder}", flush=True)
    if code not in (EXIT_DONE, EXIT_FAULT):
        raise Interrupted("interrupted: what ran has saved; the same command with --resume does the rest")
    return code
