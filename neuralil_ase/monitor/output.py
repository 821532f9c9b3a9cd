"""The monitor's two files: how they are opened, gone on with, and fed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from neuralil_ase.monitor.actions import Event, FrameSaver
from neuralil_ase.monitor.criteria import Criterion
from neuralil_ase.monitor.files import set_aside
from neuralil_ase.monitor.selection import Fingerprint, NoveltyFilter, fingerprint_of
from neuralil_ase.monitor.table import Table, last_step


class MonitorFiles:
    """The log and the saved frames of one run; parameters as in `ExtrapolationMonitor`."""

    def __init__(
        self,
        *,
        log: Path | None,
        save: Path | None,
        append: bool,
        first_step: int | None,
        max_saved: int,
        min_distance: float,
        fingerprint: Fingerprint | None,
    ) -> None:
        self._log = log
        self._save = save
        self._append = append
        self._max_saved = max_saved
        self._novelty = NoveltyFilter(min_distance, fingerprint)
        self._saver: FrameSaver | None = None
        self.table: Table | None = None
        if first_step is None:
            first_step = last_step(log) if append and log is not None else None
        self.first_step = first_step or 0

    def open(self, criteria: Sequence[Criterion], calculator: Any, steps_done: int) -> None:
        """Begin or go on with the files, the thresholds now being known."""
        if not self._append:
            for path in filter(None, (self._log, self._save)):
                set_aside(path)
        resume_before = self.first_step + steps_done if self._append else None
        self.table = Table(self._log, criteria, resume_before)
        if self._save is not None:
            if self._novelty.fingerprint is None:
                self._novelty.fingerprint = fingerprint_of(calculator)
            self._saver = FrameSaver(self._save, self._novelty, self._max_saved)

    @property
    def n_saved(self) -> int:
        """Frames in the file."""
        return 0 if self._saver is None else self._saver.n_saved

    def describe_saved(self) -> str:
        """How many frames are in the file, in words."""
        limit = " (the most allowed)" if self._saver is not None and self._saver.full else ""
        return f"{self.n_saved} frames saved{limit}"

    def save(self, event: Event) -> int:
        """Save what is new in the event; returns the number of frames."""
        return 0 if self._saver is None else self._saver(event)

    def add_row(self, row: Mapping[str, float]) -> None:
        """Log one check."""
        if self.table is not None:
            self.table.add(row)

    def flush(self) -> None:
        """Write what an earlier failure left in memory."""
        if self._saver is not None:
            self._saver.flush()
        if self.table is not None:
            self.table.flush()
