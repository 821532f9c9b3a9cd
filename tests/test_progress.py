"""Progress: a bar on a terminal, a line every ten seconds elsewhere, nothing where nothing is wanted."""

import sys

import pytest

from neuralil_ase import progress
from neuralil_ase.progress import Progress


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_a_line_every_ten_seconds_without_a_terminal(
    clock: Clock, capsys: pytest.CaptureFixture
) -> None:
    with Progress(100, "epoch", "training", True) as bar:
        for k in range(1, 101):
            clock.now += 0.7
            bar.update(k, f"loss {k}")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 7  # in 70 seconds: six, and how it ended
    assert lines[0] == "training: epoch 15 of 100, 10 s, loss 15"
    assert lines[-1] == "training: epoch 100 of 100, 70 s, loss 100"


def test_short_or_silent_work_writes_nothing(clock: Clock, capsys: pytest.CaptureFixture) -> None:
    for shown, seconds in ((True, 0.01), (False, 60.0)):
        with Progress(10, "frame", "preparing", shown) as bar:
            for k in range(10):
                clock.now += seconds
                bar.update(k + 1)
    assert capsys.readouterr().err == ""


def test_a_bar_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with Progress(3, "frame", "preparing", True) as bar:
        bar.update(1, "well")
        bar.update(3)
    text = capsys.readouterr().err
    assert "preparing" in text
    assert "3/3" in text


def test_no_standard_error_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a windowed program."""
    monkeypatch.setattr(sys, "stderr", None)
    with Progress(3, "frame", "preparing", True) as bar:
        bar.update(3)
