"""The scheduler with tiny commands in place of trainings: order, workers, GPUs, failures, limits, signals, locks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path

import pytest
from multi_tiny import job

from finetune.jobs import Job
from finetune.jobs_run import Runner, Slot, command_of, environment_of, last_lines, last_words, slots
from finetune.jobs_state import LOCK, RunState, folder_to_resume, locked, new_folder
from kronos.errors import InputError

NOTE = "import pathlib, sys, time; pathlib.Path('{0}').write_text(str(time.time()))"
SAVES = (
    "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: (print('saved', flush=True), sys.exit(75)))\n"
    "print('up', flush=True)\n"
)
posix = pytest.mark.skipif(os.name != "posix", reason="process groups")


class Lines:
    """A display that keeps what it is told."""

    def __init__(self):
        self.seen: list[tuple[str, str, str]] = []

    def changed(self, job: Job, state: str, reason: str) -> None:
        self.seen.append((job.name, state, reason))

    def said(self, text: str) -> None:
        self.seen.append(("", "said", text))

    def tick(self) -> None: ...


def run(tmp_path: Path, jobs: list[Job], places: list[Slot] | None = None, resume: bool = False, **options) -> tuple[int, RunState, Lines]:
    state, shown = RunState(tmp_path / "run", jobs, resume=resume), Lines()
    return Runner(jobs, places or [Slot()], state, shown, **options).run(), state, shown


def states(state: RunState) -> dict[str, str]:
    return {name: facts["state"] for name, facts in state.jobs.items()}


# ---- who waits, who runs


def test_a_predictor_starts_only_when_its_tokenizer_has_ended(tmp_path):
    first = job(tmp_path, "a", code="import time; time.sleep(0.4); " + NOTE.format(tmp_path / "tokenizer"))
    second = job(tmp_path, "a", "predictor", NOTE.format(tmp_path / "predictor"), (first.name,))
    code, state, _ = run(tmp_path, [first, second], [Slot(), Slot()])
    assert code == 0 and set(states(state).values()) == {"done"}
    assert float((tmp_path / "tokenizer").read_text()) < float((tmp_path / "predictor").read_text())


def test_two_workers_run_two_jobs_at_a_time_and_never_three(tmp_path):
    jobs = [job(tmp_path, name, code="import time; time.sleep(0.5)") for name in "abcd"]
    _, _, shown = run(tmp_path, jobs, [Slot(), Slot()])
    running, most = 0, 0
    for _, state, _ in shown.seen:
        running += {"running": 1, "done": -1}[state]
        most = max(most, running)
    assert most == 2


def test_a_failure_stops_only_what_depends_on_it_and_is_named_with_its_code_and_last_words(tmp_path):
    bad = job(tmp_path, "a", code="import sys; print('working'); print('error: no such bars', file=sys.stderr); sys.exit(2)")
    jobs = [
        bad,
        job(tmp_path, "a", "predictor", needs=(bad.name,)),
        job(tmp_path, "a", "evaluate", needs=("a-predictor",)),
        job(tmp_path, "b"),
        job(tmp_path, "b", "predictor", needs=("b-tokenizer",)),
    ]
    code, state, shown = run(tmp_path, jobs)
    assert code == 1
    assert states(state) == {
        "a-tokenizer": "failed",
        "a-predictor": "blocked",
        "a-evaluate": "blocked",
        "b-tokenizer": "done",
        "b-predictor": "done",
    }
    assert state.jobs["a-tokenizer"]["code"] == 2 and state.jobs["a-tokenizer"]["reason"] == "error: no such bars"
    assert ("a-predictor", "blocked", "needs a-tokenizer, which is failed") in shown.seen
    assert "working" in state.log(bad).read_text() and "fine" not in state.log(bad).read_text()


@posix
def test_a_worker_that_is_killed_is_a_failure_and_says_so(tmp_path):
    killed = job(tmp_path, "a", code="import os; os.kill(os.getpid(), 9)", memory_advice="batch_size 8")
    code, state, _ = run(tmp_path, [killed, job(tmp_path, "b")])
    assert code == 1 and states(state) == {"a-tokenizer": "failed", "b-tokenizer": "done"}
    assert state.jobs["a-tokenizer"]["code"] == -9
    told = "SIGKILL: killed from outside, or the machine ran out of memory; against that: batch_size 8"
    assert state.jobs["a-tokenizer"]["reason"] == told


def test_what_is_done_is_not_run_and_who_waits_for_it_starts(tmp_path):
    done = job(tmp_path, "a", code="raise SystemExit(3)", done=True)
    code, state, shown = run(tmp_path, [done, job(tmp_path, "a", "predictor", needs=(done.name,))])
    assert code == 0 and states(state)["a-predictor"] == "done" and not any(name == done.name for name, *_ in shown.seen)


@posix
def test_a_job_past_its_time_limit_is_asked_to_save_and_fails_while_others_go_on(tmp_path):
    slow = job(tmp_path, "a", code=SAVES + "time.sleep(60)")
    began = time.monotonic()
    code, state, shown = run(tmp_path, [slow, job(tmp_path, "b")], time_limit_s=1.0)
    assert time.monotonic() - began < 30 and code == 1
    assert [text for _, kind, text in shown.seen if kind == "said"] == [
        "a-tokenizer is at its time limit of 1 s: waiting until it saved, 300 s at most"
    ]
    assert states(state) == {"a-tokenizer": "failed", "b-tokenizer": "done"}
    assert "time limit of 1 s" in state.jobs["a-tokenizer"]["reason"] and "saved" in state.log(slow).read_text()


# ---- stopping


@posix
def test_a_signal_lets_every_worker_save_keeps_the_rest_waiting_and_ends_with_75(tmp_path):
    jobs = [job(tmp_path, name, code=SAVES + "time.sleep(60)") for name in "ab"] + [job(tmp_path, "c")]
    waited = threading.Thread(target=lambda: (_until_up(tmp_path, "ab"), os.kill(os.getpid(), signal.SIGTERM)))
    waited.start()
    code, state, _ = run(tmp_path, jobs, [Slot(), Slot()])
    waited.join()
    assert code == 75
    assert states(state) == {"a-tokenizer": "interrupted", "b-tokenizer": "interrupted", "c-tokenizer": "waiting"}
    assert json.loads((tmp_path / "run" / "state.json").read_text())["jobs"]["a-tokenizer"]["code"] == 75


@posix
def test_a_worker_that_does_not_stop_is_killed_with_all_it_started_after_the_grace_time(tmp_path):
    child = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('up', flush=True)\ntime.sleep(60)"
    code = f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {child!r}]); print('child', p.pid, flush=True)\n"
    stubborn = job(tmp_path, "a", code=code + "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\nimport time; time.sleep(60)")
    waited = threading.Thread(target=lambda: (_until_up(tmp_path, "a"), os.kill(os.getpid(), signal.SIGTERM)))
    waited.start()
    began = time.monotonic()
    assert run(tmp_path, [stubborn], grace_s=0.5)[0] == 75
    waited.join()
    pid = int((tmp_path / "run" / "a-tokenizer.log").read_text().split("child ")[1].split()[0])
    assert time.monotonic() - began < 30 and _gone(pid)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent died")
def test_a_trainer_that_is_killed_takes_its_workers_with_it_and_they_save_while_its_folders_stay_taken(tmp_path):
    saving = SAVES.replace("print('saved', flush=True)", "time.sleep(2), print('saved', flush=True)") + "time.sleep(60)"
    script = tmp_path / "trainer.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\nfrom finetune.jobs import Job\nfrom finetune.jobs_run import Runner, Slot\n"
        "from finetune.jobs_state import RunState, locked\nfrom finetune.jobs_table import Display\n"
        f"jobs = [Job('a', 'tokenizer', ('-c', {saving!r}), Path({str(tmp_path)!r}))]\n"
        f"state = RunState(Path({str(tmp_path / 'run')!r}), jobs)\n"
        f"with locked([Path({str(tmp_path)!r})]) as locks:\n"
        "    Runner(jobs, [Slot()], state, Display(jobs, state, {}), keep_open=[f.fileno() for f in locks]).run()\n"
    )
    trainer = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.DEVNULL)
    try:
        _until_up(tmp_path, "a")
        with pytest.raises(InputError, match=f"pid {trainer.pid}"), locked([tmp_path]):
            pass
    finally:
        trainer.kill()
        trainer.wait()
    assert not _can_lock(tmp_path), "its worker is still saving there"
    log = tmp_path / "run" / "a-tokenizer.log"
    assert _soon(lambda: "saved" in log.read_text())
    assert json.loads((tmp_path / "run" / "state.json").read_text())["jobs"]["a-tokenizer"]["state"] == "running"
    assert _soon(lambda: _can_lock(tmp_path))


def _until_up(tmp_path: Path, models: str) -> None:
    logs = [tmp_path / "run" / f"{model}-tokenizer.log" for model in models]
    assert _soon(lambda: all(log.is_file() and "up" in log.read_text().split("\n", 1)[1].split() for log in logs), 60)


def _soon(holds, limit_s: float = 15.0) -> bool:
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        try:
            if holds():
                return True
        except (OSError, IndexError):
            pass
        time.sleep(0.05)
    return False


def _gone(pid: int) -> bool:
    return _soon(lambda: not Path(f"/proc/{pid}").exists() or "State:\tZ" in Path(f"/proc/{pid}/status").read_text())


def _can_lock(folder: Path) -> bool:
    try:
        with locked([folder]):
            return True
    except InputError:
        return False


# ---- state and locks


def test_a_second_trainer_on_one_folder_is_refused_naming_the_first(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["multi_model_trainer.py", "--models", "all of them"])
    with locked([tmp_path / "model"]):
        first = "multi_model_trainer.py --models 'all of them'"
        told = rf"model is being trained in by another run \(pid {os.getpid()} on .*, since 20.*{first}"
        with pytest.raises(InputError, match=told), locked([tmp_path / "earlier", tmp_path / "model"]):
            pass
        assert _can_lock(tmp_path / "earlier"), "what the refused one had taken is free again"
    assert _can_lock(tmp_path / "model") and (tmp_path / "model" / LOCK).is_file()


def test_resuming_goes_on_in_the_newest_run_that_knows_the_jobs_with_its_logs_and_times(tmp_path):
    logs, jobs = tmp_path / "logs", [job(tmp_path, "a", code="print('one')"), job(tmp_path, "b")]
    assert folder_to_resume(jobs, logs) is None
    state = RunState(new_folder(logs), jobs)
    Runner(jobs, [Slot()], state, Lines()).run()
    assert folder_to_resume(jobs[:1], logs) == state.folder and folder_to_resume([*jobs, job(tmp_path, "c")], logs) is None
    again = RunState(state.folder, jobs, resume=True)
    seconds = again.jobs["a-tokenizer"]["seconds"]
    Runner(jobs, [Slot()], again, Lines()).run()
    assert again.jobs["a-tokenizer"]["attempts"] == 2 and again.jobs["a-tokenizer"]["seconds"] > seconds > 0
    assert again.log(jobs[0]).read_text().count("\none\n") == 2


def test_runs_that_begin_in_one_second_have_folders_of_their_own(tmp_path):
    first = new_folder(tmp_path)
    first.mkdir()
    assert new_folder(tmp_path) != first


# ---- GPUs and threads


def test_gpus_are_dealt_evenly_and_workers_without_one_queue():
    assert slots("parallel", 2, ["0", "1", "2", "3"], 16) == [Slot(("0", "1"), 4), Slot(("2", "3"), 4)]
    assert slots("parallel", 2, ["0", "1", "5"], 16) == [Slot(("0",), 8), Slot(("1",), 8)]
    assert slots("parallel", 5, ["3", "7"], 16) == [Slot(("3",), 8), Slot(("7",), 8)]
    assert slots("sequential", 2, ["0", "1"], 16) == [Slot(("0", "1"), 8)]
    assert slots("parallel", 3, [], 8) == [Slot((), 2)] * 3 and slots("parallel", 4, [], 2) == [Slot((), 1)] * 4
    assert slots("sequential", 3, [], 8) == [Slot()]


def test_five_jobs_on_two_gpus_queue_and_no_gpu_has_two_at_a_time(tmp_path):
    shows = (
        "import os, time; began = time.time(); time.sleep(0.3)\n"
        f"open({str(tmp_path / 'seen')!r}, 'a').write(f\"{{os.environ['CUDA_VISIBLE_DEVICES']}} {{began}} {{time.time()}}\\n\")"
    )
    jobs = [job(tmp_path, name, code=shows, on_gpu=True) for name in "abcde"]
    code, state, _ = run(tmp_path, jobs, slots("parallel", 4, ["3", "7"], 16))
    spans: dict[str, list[tuple[float, float]]] = {}
    for line in (tmp_path / "seen").read_text().splitlines():
        gpu, began, ended = line.split()
        spans.setdefault(gpu, []).append((float(began), float(ended)))
    assert code == 0 and spans.keys() == {"3", "7"} and sum(map(len, spans.values())) == 5
    for times in map(sorted, spans.values()):
        assert all(before[1] <= after[0] for before, after in pairwise(times))
    assert {name: facts["gpus"] for name, facts in state.jobs.items()}["a-tokenizer"] == ["3"]


def test_a_job_with_two_gpus_runs_under_torchrun_and_its_evaluation_on_one(tmp_path):
    train = job(tmp_path, "a", on_gpu=True, overrides=("training.seed=3",), resume=True)
    pair = Slot(("2", "3"), 4)
    command = command_of(train, pair)
    assert command[1:5] == ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    assert command[-3:] == ["--resume", "--set", "training.seed=3"]
    assert environment_of(train, pair)["CUDA_VISIBLE_DEVICES"] == "2,3" and environment_of(train, pair)["OMP_NUM_THREADS"] == "4"
    score = job(tmp_path, "a", "evaluate", on_gpu=True, ranks=False)
    assert "torch.distributed.run" not in command_of(score, pair) and environment_of(score, pair)["CUDA_VISIBLE_DEVICES"] == "2"
    on_cpu = job(tmp_path, "a")
    assert "torch.distributed.run" not in command_of(on_cpu, pair) and environment_of(on_cpu, pair)["CUDA_VISIBLE_DEVICES"] == ""


def test_on_the_cpu_a_worker_has_its_share_of_threads_and_no_more(tmp_path):
    share = Slot((), 2)
    assert command_of(job(tmp_path, "a"), share)[-2:] == ["--set", "device.cpu_threads=2"]
    assert command_of(job(tmp_path, "a", cpu_threads=8), share)[-1] == "device.cpu_threads=2"
    assert "--set" not in command_of(job(tmp_path, "a", cpu_threads=1), share), "fewer threads than its share are the user's choice"
    assert "--set" not in command_of(job(tmp_path, "a"), Slot()), "one at a time has the machine to itself"
    shows = "import os; print('threads', os.environ['OMP_NUM_THREADS'])"
    _, state, _ = run(tmp_path, [job(tmp_path, "a", code=shows)], [share])
    assert "threads 2" in (state.folder / "a-tokenizer.log").read_text()


@posix
def test_under_torchrun_the_code_in_status_json_counts_and_not_torchruns_own(tmp_path):
    folder = tmp_path / "a" / "tokenizer"
    folder.mkdir(parents=True)
    status = '{"state": "interrupted", "exit_code": 75}'
    code = f"import pathlib, sys; pathlib.Path({str(folder / 'status.json')!r}).write_text({status!r}); sys.exit(1)"
    assert run(tmp_path, [job(tmp_path, "a", code=code)])[1].jobs["a-tokenizer"]["state"] == "interrupted"
    os.utime(folder / "status.json", (1, 1))  # a former run's
    assert run(tmp_path, [job(tmp_path, "a", code="raise SystemExit(1)")])[1].jobs["a-tokenizer"]["state"] == "failed"


REPORT = "error: no such key\n====\nexample FAILED\n  rank      : 0 (local_rank: 0)\n  exitcode  : {0} (pid: 1)\n"  # torchrun's, in short


def test_a_mistake_before_there_is_a_run_folder_is_read_from_torchruns_own_report_of_this_attempt(tmp_path):
    wrong = job(tmp_path, "a", code=f"print({REPORT.format(2)!r}); raise SystemExit(1)")
    _, state, _ = run(tmp_path, [wrong])
    assert (state.jobs["a-tokenizer"]["code"], state.jobs["a-tokenizer"]["reason"]) == (2, "error: no such key")
    _, state, _ = run(tmp_path, [job(tmp_path, "a", code="raise SystemExit(1)")], resume=True)
    assert state.jobs["a-tokenizer"]["code"] == 1, "the report of the first attempt is in the same log"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("does", "code", "reason"),
    [
        ("print('error: bad key', file=sys.stderr); sys.exit(2)", 2, "error: bad key"),
        ("raise ValueError('boom')", 1, "ValueError: boom"),
        ("os.kill(os.getpid(), 9)", 1, "a rank ended with exit code -9 (a negative number is the signal that killed it)"),
    ],
)
def test_torchrun_hides_how_its_ranks_ended_and_the_scheduler_finds_it(tmp_path, does, code, reason):
    (tmp_path / "worker.py").write_text(f"import os, sys; print('working'); {does}")
    start = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(tmp_path / "worker.py"))
    _, state, _ = run(tmp_path, [Job("a", "tokenizer", start, tmp_path / "a")])
    assert (state.jobs["a-tokenizer"]["code"], state.jobs["a-tokenizer"]["reason"]) == (code, reason)
    assert not any("exitcode" in line for line in last_lines(tmp_path / "run" / "a-tokenizer.log"))


def test_the_last_words_are_the_error_message_where_there_is_one(tmp_path):
    log = tmp_path / "x.log"
    log.write_text("$ python x\nerror: bad key\nother ranks end too\n")
    assert last_words(log) == "error: bad key"
    log.write_text("$ python x\nTraceback\n  File x\nZeroDivisionError: division by zero\n")
    assert last_words(log) == "ZeroDivisionError: division by zero"
