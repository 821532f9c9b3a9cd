"""Random structures of any shape, each tried in a process of its own making: none dies, hangs or answers wrong.

The slow run tries 100,000 of them, some half an hour on one core:

    python -m pytest -m slow tests/properties/test_structures.py
"""

import json
import queue
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PATIENCE = 120
"""Seconds without an answer that count as a hang, on a busy machine; the processor's time is limited to one."""


def attempts(first: int, last: int) -> Iterator[dict[str, Any]]:
    """What became of every seed; a process that died or hung is followed by another one, behind the seed it was at."""
    while first < last:
        worker = Worker(first, last)
        for answer in worker:
            yield answer
            first = answer["seed"] + 1
        ended = worker.end()
        if first < last:
            yield {"seed": first, "outcome": "died", "wrong": ended, "seconds": 0.0}
            first += 1


class Worker:
    """A process that tries seeds one after another, watched."""

    def __init__(self, first: int, last: int) -> None:
        script = Path(__file__).with_name("structures.py")
        self.process = subprocess.Popen(
            [sys.executable, "-X", "faulthandler", str(script), str(first), str(last)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: queue.Queue[str] = queue.Queue()
        self.errors: list[str] = []
        self.stdout = threading.Thread(target=self._read, daemon=True)
        self.stdout.start()
        self.stderr = threading.Thread(target=self._read_errors, daemon=True)
        self.stderr.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put("")

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        self.errors.extend(self.process.stderr)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        try:
            line = self.lines.get(timeout=10 * PATIENCE)
            assert line in ("ready\n", "")
            while line := self.lines.get(timeout=PATIENCE) if line else "":
                yield json.loads(line)
        except queue.Empty:
            self.errors.append(f"no answer for {PATIENCE} s")
            self.process.kill()

    def end(self) -> str:
        """How the process ended."""
        status = self.process.wait()
        self.stderr.join(10)
        self.stdout.join(10)
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()
        return f"status {status}: " + "".join(self.errors)[-2000:]


def check(first: int, last: int) -> Counter[str]:
    """Try seeds; fail naming those that went wrong."""
    outcomes: Counter[str] = Counter()
    wrong = []
    for answer in attempts(first, last):
        outcomes[answer["outcome"]] += 1
        if answer["wrong"] or answer["seconds"] > 1:
            print(answer, flush=True)
            wrong.append(answer)
    assert sum(outcomes.values()) == last - first
    assert not wrong, f"{len(wrong)} of {last - first}: {wrong[:10]}"
    return outcomes


def test_structures_of_any_shape_are_answered_right_or_refused() -> None:
    outcomes = check(0, 400)
    assert outcomes["compared"] > 250
    assert outcomes["refused"] > 20


@pytest.mark.slow
def test_a_hundred_thousand_structures() -> None:
    outcomes = check(1000, 101_000)
    print(dict(outcomes))
    assert outcomes["compared"] > 60_000


@pytest.mark.slow
def test_the_watchdog_notices_what_it_is_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A process that dies at one seed, and one that hangs at another."""
    script = tmp_path / "structures.py"
    script.write_text(
        "import json, os, sys, time\n"
        "print('ready', flush=True)\n"
        "for seed in range(int(sys.argv[1]), int(sys.argv[2])):\n"
        "    os.abort() if seed == 2 else time.sleep(1000) if seed == 4 else None\n"
        "    print(json.dumps({'seed': seed, 'outcome': 'ok', 'wrong': '', 'seconds': 0}), flush=True)\n"
    )
    monkeypatch.setitem(globals(), "__file__", str(tmp_path / "test.py"))
    monkeypatch.setitem(globals(), "PATIENCE", 5)
    found = {answer["seed"]: answer for answer in attempts(0, 6)}
    assert [found[k]["outcome"] for k in range(6)] == ["ok", "ok", "died", "ok", "died", "ok"]
    assert "status -6" in found[2]["wrong"]
    assert "no answer for 5 s" in found[4]["wrong"]
