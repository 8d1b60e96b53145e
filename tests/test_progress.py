"""Progress: plain lines outside a terminal, a bar inside one, and no waiting for the accelerator."""

import io
import subprocess
import sys

import pytest

from finetune.engine import progress as module
from finetune.engine.progress import Speed, progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def lines_of(steps: int, **options) -> list[str]:
    lines: list[str] = []
    bar = progress(800, 0, 5, True, "predictor", say=lines.append, **options)
    for step in range(1, steps + 1):
        bar.update(step, 8, 2.41309, 4e-5, {"epoch": 0, "grad_norm": 1.23456})
    bar.close()
    return lines


def test_outside_a_terminal_there_is_one_plain_line_every_log_interval():
    lines = lines_of(12)
    assert [line.split(",")[0] for line in lines] == ["predictor step 5", "predictor step 10"]
    for part in ("epoch 1", "loss 2.4131", "lr 4.0e-05", "grad_norm 1.235", "windows/s", " left", "peak "):
        assert part in lines[0]
    assert "\r" not in lines[0]


def test_the_epoch_is_shown_as_a_fraction_when_their_number_is_known():
    assert "epoch 0.10/2" in lines_of(5, epochs=2)[0]


def test_without_a_sink_lines_go_to_stdout(capsys):
    progress(8, 0, 1, True, "x").update(1, 8, None, 1e-3)
    captured = capsys.readouterr()
    assert captured.out.startswith("x step 1, lr 1.0e-03")
    assert captured.err == ""


def test_a_lazy_loss_is_read_only_when_it_is_shown():
    read: list[int] = []
    bar = progress(800, 0, 4, True, "x", say=lambda _: None)
    for step in range(1, 9):
        bar.update(step, 8, lambda step=step: read.append(step) or 1.0, 1e-3)
    assert read == [4, 8]


def test_in_a_terminal_a_bar_is_drawn_and_plain_lines_go_to_the_note(monkeypatch, capsys):
    screen, notes = Terminal(), []
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(module, "_REFRESH_S", 0.0)
    bar = progress(80, 40, 2, True, "tokenizer", note=notes.append)
    for step in range(6, 11):
        bar.update(step, 8, 0.5, 1e-4, {"epoch": 1})
    bar.close()
    shown = screen.getvalue()
    for part in ("tokenizer  50%", "100%", "80/80", "epoch 2", "loss 0.5000", "lr 1.0e-04", "windows/s", "left", "GiB"):
        assert part in shown
    assert [note.split(",")[0] for note in notes] == ["tokenizer step 6", "tokenizer step 8", "tokenizer step 10"]
    assert capsys.readouterr().out == ""


def test_the_bar_reads_a_lazy_loss_no_more_often_than_it_is_drawn(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(module, "_REFRESH_S", 1000.0)
    monkeypatch.setattr(module.time, "monotonic", lambda: 5000.0)
    read: list[int] = []
    bar = progress(1000, 0, 10**9, True, "x")
    for step in range(1, 50):
        bar.update(step, 8, lambda step=step: read.append(step) or 1.0, 1e-3)
    bar.close()
    assert read == [1]


@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
def test_other_ranks_show_nothing_and_read_nothing(monkeypatch, capsys, stream):
    screen = stream()
    monkeypatch.setattr(sys, "stderr", screen)
    bar = progress(80, 0, 1, False, "x")
    bar.update(1, 8, lambda: pytest.fail("read"), 1e-3)
    bar.close()
    assert screen.getvalue() + capsys.readouterr().out == ""


def test_rate_is_recent_and_time_left_counts_pauses_but_not_the_first_step():
    clock = Clock()
    speed = Speed(100, clock)
    assert (speed.per_s, speed.left_s(1000)) == (0.0, None)
    clock.now_s = 60.0  # compilation
    speed.add(110)
    for step in range(1, 41):
        clock.now_s += 1.0
        speed.add(110 + 10 * step)
    assert speed.per_s == pytest.approx(10.0)
    assert speed.left_s(1010) == pytest.approx(50.0)
    clock.now_s += 40.0  # validation lies before this step
    speed.add(520)
    for step in range(1, 201):
        clock.now_s += 1.0
        speed.add(520 + 10 * step)
    assert speed.per_s == pytest.approx(10.0, rel=0.02)  # forgotten
    assert speed.left_s(2520 + 2410) == pytest.approx(40 + 40 + 200)  # counted: as long again for as many again
    assert speed.left_s(0) == 0


def test_peak_memory_is_that_of_this_process():
    child = (
        "from finetune.engine.progress import peak_gib\n"
        "before = peak_gib(); block = bytearray(200 * 2**20); block[::4096] = b'x' * len(block[::4096])\n"
        "print(peak_gib() - before)"
    )
    grown = float(subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, check=True).stdout)
    assert 0.15 < grown < 0.5
