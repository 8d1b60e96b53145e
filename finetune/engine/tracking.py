"""A run's folder: what was asked for, what happened step by step, how it ended.

    {folder}/config.yaml     the settings as resolved, without secrets
    {folder}/metrics.jsonl   one line per logged step: {"step", "epoch", "split", "time_s", name: number or null ...}
    {folder}/tensorboard/    the same numbers as TensorBoard events, tags "split/name"
    {folder}/status.json     {"state": running | done | interrupted | failed, "exit_code", "wall_time_s", ...}: launchers read it
    {folder}/.run.lock       held while the run lives, so that no second one writes here
    {folder}/curves.png      loss and learning rate, drawn at the end
    {folder}/summary.json    the result with versions, git commit and wall time
    {logs}/{name}.log        every line that was said, with its time
    {logs}/*.zip             Comet's offline archive, where it is asked for and cannot be reached

Only rank 0 writes; on the others every method returns at once.
"""

import errno
import json
import re
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from tqdm import tqdm

from finetune.engine import provenance
from finetune.engine.board import Board
from finetune.engine.comet import CometLog, CometSettings, open_comet
from finetune.engine.config import to_yaml
from finetune.engine.errors import InputError, Interrupted
from finetune.engine.files import (
    LineFile,
    ensure_writable_folder,
    explained,
    jsonable,
    overwrite_json,
    read_json,
    read_json_lines,
    remove_leftovers,
    write_json,
    write_text,
)
from finetune.engine.locks import hold, release

__all__ = ["CometSettings", "Run"]

_EXIT_CODES = {"running": None, "done": 0, "interrupted": 75, "failed": 1}
_LONGEST_ERROR = 1000  # characters; what is written over a short file must fit into the block that it has
_RESERVED = frozenset({"step", "epoch", "split", "time_s"})
_SECRET = re.compile(r"(^|_)(api_?key|token|secret|password|passwd|credentials?)$", re.IGNORECASE)


class Run:
    """Writes one stage's run folder. Made by `Run.create`; in a `with` block a failure is recorded and the files are closed."""

    def __init__(self, folder: Path, *, best: Path, logs: Path, name: str, is_main: bool) -> None:
        self.folder, self.best, self.logs, self.name = folder, best, logs, name
        self.checkpoints = folder / "checkpoints"
        self.is_main = is_main
        self.state = "running"
        self._metrics: LineFile | None = None
        self._log_file: LineFile | None = None
        self._board: Any = None  # a Board once the first numbers come, False if it is not installed
        self._purge_step: int | None = None
        self._comet: CometLog | None = None
        self._lock: IO[str] | None = None
        self._before_s = 0.0  # wall time of the former starts of a resumed run
        self._started_s = time.monotonic()

    @classmethod
    def create(
        cls,
        folder: Path,
        *,
        config: Mapping[str, Any],
        is_main: bool,
        resume: bool,
        name: str,
        best: Path | None = None,
        logs: Path | None = None,
        comet: CometSettings | None = None,
    ) -> "Run":
        """Opens the run folder (made if missing) and writes config.yaml and status "running".

        resume: goes on with the files that are there; `rewind` then drops what lies after the checkpoint. Without it the former run's
            files of this stage are removed first, so that two runs never mix; anything that a Run did not write is left alone.
        name: of the stage ("tokenizer"); names its log file.
        config: as resolved; keys that look like secrets (api_key, token, password ...) are left out, fractions (dropout.token) are not.
        Raises InputError if a folder cannot be written to, or, naming who, if another run is writing there: the folder is this one's until
        it is closed or its process ends.
        """
        folder = Path(folder)
        run = cls(folder, best=Path(best or folder / "best_model"), logs=Path(logs or folder / "logs"), name=name, is_main=is_main)
        if not is_main:
            return run
        run._lock = hold(ensure_writable_folder(folder))
        try:
            run._open(_without_secrets(jsonable(dict(config))), resume, comet)
        except BaseException:
            run.close()
            raise
        return run

    def _open(self, config: Mapping[str, Any], resume: bool, comet: CometSettings | None) -> None:
        ensure_writable_folder(self.logs)
        for place in (self.folder, *self.folder.rglob("*/"), self.best, self.logs):
            remove_leftovers(place)
        if resume:
            self._before_s = self._former_wall_time_s()
            self._rewrite_metrics(read_json_lines(self._metrics_path))  # drops a torn last line, so that the next one starts on its own
        else:
            self._remove_former_files()
        write_text(self.folder / "config.yaml", to_yaml(config))
        self._log_file = LineFile(self._log_path)
        self.status("running")
        if comet is not None:
            self._open_comet(comet, config)

    def log(self, step: int, epoch: int, split: str, values: Mapping[str, Any]) -> None:
        """Records numbers of one optimiser step; non-finite ones are null in metrics.jsonl. split: "train" or "val".

        Raises InputError if the disk is full.
        """
        if not self.is_main:
            return
        numbers = {key: float(value) for key, value in values.items()}
        assert _RESERVED.isdisjoint(numbers), f"{_RESERVED & numbers.keys()} are the line's own keys"
        line = {"step": int(step), "epoch": epoch, "split": split, "time_s": round(self.wall_time_s, 3), **numbers}
        if self._metrics is None:
            self._metrics = LineFile(self._metrics_path)
        self._metrics.line(_json_line(line))
        if self._board is None:
            self._open_board()
        if self._board:
            self._board.numbers({f"{split}/{key}": value for key, value in numbers.items()}, step)
        if self._comet is not None:
            self._comet.log(step, epoch, split, numbers)

    def picture(self, name: str, figure: Any, step: int) -> None:
        """A matplotlib figure for TensorBoard, tag `name`. Raises InputError if the disk is full."""
        if self.is_main and self._board:
            self._board.picture(name, figure, step)

    def rewind(self, step: int, epoch: int | None = None) -> None:
        """On resume: forgets every number of a step later than `step`, the one of the checkpoint that training goes on from.

        epoch: the one that training is in, from 0; its validation and later ones will come again, even at this very step.
        """
        if not self.is_main:
            return
        self._close_metrics()

        def kept(line: dict[str, Any]) -> bool:
            again = epoch is not None and line.get("split") == "val" and line.get("epoch", 0) >= epoch
            return line.get("step", 0) <= step and not again

        self._rewrite_metrics([line for line in read_json_lines(self._metrics_path) if kept(line)])
        self._close_board()
        self._purge_step = step + 1  # TensorBoard hides older events from this step on

    def say(self, text: str) -> None:
        """One line for the user: on stdout, above a progress bar if there is one, and with its time in the log file."""
        if not self.is_main:
            return
        try:
            tqdm.write(text)
            sys.stdout.flush()  # a pipe or a file would otherwise show it much later
        except OSError as error:
            if error.errno != errno.EIO:  # the terminal was closed this very moment; SIGHUP says what that means
                raise
        self.note(text)

    def note(self, text: str) -> None:
        """A line for the log file only."""
        if self.is_main and self._log_file is not None:
            self._log_file.line(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {text}")

    def status(self, state: str, *, in_place: bool = False, **fields: Any) -> None:
        """Writes status.json. state: running, done, interrupted or failed; `exit_code` follows from it unless given in `fields`.

        in_place: where no new file can be made (full disk, folder without permission), writes over the one that is there.
        """
        assert state in _EXIT_CODES, state
        if self.is_main:
            own = {"state": state, "exit_code": _EXIT_CODES[state], "name": self.name, "wall_time_s": round(self.wall_time_s, 3)}
            path, value = self.folder / "status.json", {**own, "updated": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **fields}
            try:
                write_json(path, value)
            except InputError:
                if not in_place or not path.exists():
                    raise
                overwrite_json(path, value)
        self.state = state

    def finish(self, summary: Mapping[str, Any], state: str = "done", **fields: Any) -> None:
        """Draws curves.png, writes summary.json and the final status, and closes everything. `fields` go into status.json."""
        if self.is_main:
            from finetune.engine.curves import draw_curves  # matplotlib takes a second to import, on every rank, and only this needs it

            self._close_metrics()
            draw_curves(self.folder / "curves.png", {self.name: self._metrics_path})
            facts = {"name": self.name, "state": state, **summary, "versions": provenance.versions(), "git": provenance.git_state()}
            write_json(self.folder / "summary.json", {**facts, "wall_time_s": round(self.wall_time_s, 3)})
        self.status(state, **fields)
        self.close()

    def close(self) -> None:
        """Flushes and closes every file, ends Comet and lets the folder go; may be called twice. The status stays as it is."""
        with ExitStack() as closing:  # each is closed even if another cannot be
            closing.callback(self._unlock)  # last of all
            closing.callback(self._close_log)
            closing.callback(self._close_comet)
            closing.callback(self._close_board)
            closing.callback(self._close_metrics)

    @property
    def wall_time_s(self) -> float:
        """Seconds spent on this run so far, former starts of a resumed one included (also the part of theirs that was lost)."""
        return self._before_s + time.monotonic() - self._started_s

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None and self.state == "running":
            self._record_failure(error)
        if error is None:
            self.close()
            return
        with suppress(InputError):
            self.close()

    def _record_failure(self, error: BaseException) -> None:
        """In the log and the status, as far as the disk lets us: the error on its way up tells the user why."""
        text = (str(error).strip() or type(error).__name__).splitlines()[0]
        with suppress(InputError):
            self.note(f"{type(error).__name__}: {text}")
        stopped = isinstance(error, Interrupted | KeyboardInterrupt)
        code = 75 if isinstance(error, Interrupted) else 130 if stopped else 2 if isinstance(error, InputError) else 1
        told = {} if stopped else {"error": text[:_LONGEST_ERROR]}
        with suppress(InputError):
            self.status("interrupted" if stopped else "failed", exit_code=code, in_place=True, **told)

    @property
    def _metrics_path(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def _log_path(self) -> Path:
        return self.logs / f"{self.name}.log"

    @property
    def _comet_path(self) -> Path:
        return self.logs / f"{self.name}.comet.json"

    def _former_wall_time_s(self) -> float:
        """From the last logged line or the last status, whichever came later: a killed run wrote no farewell."""
        times = [line.get("time_s") for line in read_json_lines(self._metrics_path)]
        times.append((read_json(self.folder / "status.json") or {}).get("wall_time_s"))
        return max((float(value) for value in times if isinstance(value, int | float)), default=0.0)

    def _remove_former_files(self) -> None:
        former = [self.folder / name for name in ("metrics.jsonl", "curves.png", "summary.json", "status.json", "config.yaml")]
        former += [self._log_path, self._comet_path, *(self.folder / "tensorboard").glob("events.out.tfevents.*")]
        for path in former:
            with explained(path, "cannot remove"):
                path.unlink(missing_ok=True)

    def _rewrite_metrics(self, lines: list[dict[str, Any]]) -> None:
        if self._metrics_path.exists():
            write_text(self._metrics_path, "".join(_json_line(line) + "\n" for line in lines))

    def _open_board(self) -> None:
        try:
            self._board = Board(self.folder / "tensorboard", self._purge_step)
        except ImportError:
            self._board = False
            self.say("TensorBoard is not installed (pip install tensorboard): no event files; metrics.jsonl holds the same numbers")

    def _open_comet(self, settings: CometSettings, parameters: Mapping[str, Any]) -> None:
        key = (read_json(self._comet_path) or {}).get("experiment_key")
        self._comet = open_comet(settings, self.logs, self.name, self.say, resume_key=key)
        if self._comet is not None:
            write_json(self._comet_path, {"experiment_key": self._comet.key})
            self._comet.parameters(parameters)

    def _close_metrics(self) -> None:
        metrics, self._metrics = self._metrics, None
        if metrics is not None:
            metrics.close()

    def _close_board(self) -> None:
        board, self._board = self._board, None
        if board:
            board.close()

    def _close_comet(self) -> None:
        comet, self._comet = self._comet, None
        if comet is not None:
            comet.end()

    def _close_log(self) -> None:
        log_file, self._log_file = self._log_file, None
        if log_file is not None:
            log_file.close()

    def _unlock(self) -> None:
        lock, self._lock = self._lock, None
        if lock is not None:
            release(lock)


def _json_line(line: Mapping[str, Any]) -> str:
    return json.dumps(jsonable(dict(line)), ensure_ascii=False, allow_nan=False)


def _without_secrets(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_secrets(item) for key, item in value.items() if isinstance(item, float) or not _SECRET.search(key)}
    if isinstance(value, list):
        return [_without_secrets(item) for item in value]
    return value
