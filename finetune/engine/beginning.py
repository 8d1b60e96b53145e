"""Whether a start goes on or begins anew, decided once for all stages of an output folder and written down before anything is touched.

    {base}/started.json   {"launch": who began, "set_aside": folders whose former checkpoints are still to be put aside}

A run that begins anew puts the former checkpoints of all its stages aside before its first step: were each stage to do so at its own turn,
a run killed in the first stage and resumed would meet the former run's checkpoint in the second. The note makes that one act: what a
killed process left undone is done by the next one. Workers that torchrun restarts go on by themselves, as if with --resume, but only from
what their own launch has begun.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import psutil

from kronos.errors import InputError

from .checkpoint import set_aside
from .distributed import World
from .files import read_json, write_json

NOTE = "started.json"


def goes_on(base: Path, runs: Sequence[Path], *, resume: bool, world: World) -> bool:
    """Whether training goes on from the last checkpoints in `runs` (run folders below `base`); if not, those are put aside.

    resume: what the user asked for. Every rank must call this. Raises InputError if `base` cannot be written to.
    """
    return world.on_main(lambda: _decide(base, runs, resume))


def begin(base: Path) -> None:
    """Note that this launch begins the run in `base`, a folder of its own. Raises InputError if it cannot be written to."""
    write_json(base / NOTE, {"launch": _launch(), "set_aside": []})


def restarted_in(base: Path) -> bool:
    """Whether this process is a worker that torchrun restarted, of the very launch that began the run in `base`."""
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    return restarted and (read_json(base / NOTE) or {}).get("launch") == _launch()


def _decide(base: Path, runs: Sequence[Path], resume: bool) -> bool:
    note, launch = read_json(base / NOTE) or {}, _launch()
    resume = resume or restarted_in(base)
    undone = _below(base, note.get("set_aside", []))
    if not resume:
        undone += [name for name in (os.path.relpath(run, base) for run in runs) if name not in undone]
        write_json(base / NOTE, {"launch": launch, "set_aside": undone})
    for name in undone:
        set_aside(base / name / "checkpoints")
    if undone:
        write_json(base / NOTE, {"launch": launch, "set_aside": []})
    return resume


def _below(base: Path, names: object) -> list[str]:
    """The folders that a note names, if all lie below `base`: what is set aside may replace what was set aside before."""
    listed = names if isinstance(names, list) else [names]
    for name in listed:
        if not isinstance(name, str) or not name or os.path.isabs(name) or ".." in Path(name).parts or "\0" in name:
            raise InputError(f"{base / NOTE}: set_aside names {name!r}, which is no folder of this run: remove the file")
    return listed


def _launch() -> str:
    """What all restarts of one torchrun have in common and no other torchrun has; empty without torchrun."""
    run = os.environ.get("TORCHELASTIC_RUN_ID", "")
    return f"{run} {os.getppid()} {psutil.Process(os.getppid()).create_time():.2f}" if run else ""
