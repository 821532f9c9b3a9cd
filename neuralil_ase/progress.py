"""Progress of long work: a bar on a terminal, otherwise a line every few seconds."""

import sys
import time

from tqdm import tqdm

INTERVAL = 10.0
"""Seconds between two lines if the standard error is not a terminal: a file, a batch system, a pipe."""


class Progress:
    """Reports on the standard error; a context manager.

    Parameters
    ----------
    total
        Units of work; None if the number is not known.
    unit
        Name of a unit: "epoch", "frame".
    title
        Name of the work.
    shown
        False to stay silent.
    """

    def __init__(self, total: int | None, unit: str, title: str, shown: bool) -> None:
        self._total, self._unit, self._title = total, unit, title
        self._done, self._text = 0, ""
        self._began = self._said = time.monotonic()
        self._said_done = -1
        self._shown = shown and sys.stderr is not None
        self._bar = None
        if shown and sys.stderr is not None and sys.stderr.isatty():
            self._bar = tqdm(total=total, unit=unit, desc=title, dynamic_ncols=True)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self._shown and self._said_done not in (-1, self._done):
            self._say()

    def update(self, done: int, text: str = "") -> None:
        """Show that ``done`` units are done, with ``text`` about the results."""
        self._done, self._text = done, text
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(done - self._bar.n)
        elif self._shown and time.monotonic() - self._said >= INTERVAL:
            self._say()

    def _say(self) -> None:
        self._said, self._said_done = time.monotonic(), self._done
        of = "" if self._total is None else f" of {self._total}"
        parts = [f"{self._title}: {self._unit} {self._done}{of}"]
        parts += [f"{self._said - self._began:.0f} s", self._text]
        sys.stderr.write(", ".join(part for part in parts if part) + "\n")
        sys.stderr.flush()
