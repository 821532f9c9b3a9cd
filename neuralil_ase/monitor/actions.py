"""Actions: what happens when a frame is flagged. Each takes an `Event`; none changes the run but
`RollBack` and `Stop`."""

import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.io import read
from ase.io.extxyz import write_extxyz

from neuralil_ase.errors import MonitorError
from neuralil_ase.monitor.files import append_record, drop_partial_tail, waiting, whole_frames
from neuralil_ase.monitor.readings import Level, Reading
from neuralil_ase.monitor.selection import NoveltyFilter


class ExtrapolationWarning(UserWarning):
    """The model was asked about structures it does not know well enough."""


@dataclass(frozen=True)
class Event:
    """A flagged frame, as the actions and the user's function see it.

    Attributes
    ----------
    step : int
        Step of the dynamics, those of resumed parts included.
    image : int or None
        Number of the image for NEB.
    level : Level
        CANDIDATE or HIGH, after patience.
    rising : bool
        Whether the check before this one was at a lower level: the beginning of an episode.
    stop : bool
        Whether the last band there is was reached.
    readings : tuple of Reading
        Those that flagged the frame.
    frame : Atoms
        A copy, annotated with spreads (see `annotate`); changing it does not touch the run.
    before : tuple of Atoms
        The frames from before the flag that the ring buffer held.
    saved : int
        How many frames were saved for this event.
    """

    step: int
    image: int | None
    level: Level
    rising: bool
    stop: bool
    readings: tuple[Reading, ...]
    frame: Atoms
    before: tuple[Atoms, ...] = ()
    saved: int = 0

    @property
    def watched(self) -> tuple[int, ...] | None:
        """The atoms that caused the flag; None when the frame as a whole did."""
        atoms = [reading.atom for reading in self.readings]
        return None if None in atoms else tuple(sorted({a for a in atoms if a is not None}))

    def describe(self) -> str:
        """The reasons in words."""
        return "; ".join(reading.describe(self.frame) for reading in self.readings)


class FrameSaver:
    """Appends candidates, and the frames before the flag, to an extxyz file.

    Frames of level HIGH are not saved: they are beyond use for training. What leads up to them is.

    Parameters
    ----------
    path : Path
    novelty : NoveltyFilter
    max_saved : int
        In the whole file, earlier parts of a resumed run included.
    """

    def __init__(self, path: Path, novelty: NoveltyFilter, max_saved: int) -> None:
        self.path = path
        self.novelty = novelty
        self.max_saved = max_saved
        self.n_saved = 0
        self.unwritten: list[Atoms] = []
        if path.exists() and path.stat().st_size > 0:
            self._resume()

    def __call__(self, event: Event) -> int:
        """Save what is new in the event; returns how many frames. MonitorError if refused."""
        offered = [_reasons(event, frame, "before") for frame in event.before]
        if event.level == Level.CANDIDATE:
            offered.append(_reasons(event, event.frame, "candidate"))
        room = self.max_saved - self.n_saved - len(self.unwritten)
        kept: list[Atoms] = []
        for frame in reversed(offered):  # the flagged frame has the first claim, then the latest
            if len(kept) < room and self.novelty.is_new(frame, event.watched):
                self.novelty.remember(frame, event.watched)
                kept.append(frame)
        self.unwritten.extend(reversed(kept))
        self.flush()
        return len(kept)

    @property
    def full(self) -> bool:
        """Whether `max_saved` is reached."""
        return self.n_saved >= self.max_saved

    def flush(self) -> None:
        """Write the frames that are waiting, all of them or none."""
        if self.unwritten:
            try:
                append_record(self.path, b"".join(map(_extxyz, self.unwritten)), sync=True)
            except MonitorError as problem:
                raise waiting(problem, f"{len(self.unwritten)} frame(s)") from problem
            self.n_saved += len(self.unwritten)
            self.unwritten.clear()

    def _resume(self) -> None:
        drop_partial_tail(self.path, whole_frames)
        frames = read(self.path, index=":", format="extxyz") if self.path.stat().st_size else []
        for frame in frames:
            watched = frame.info.get("monitor_atoms")
            self.novelty.remember(frame, None if watched is None else np.ravel(watched).tolist())
        self.n_saved = len(frames)


class RollBack:
    """Remembers the last trusted state of the run and puts it back.

    Positions, cell and momenta return; what a thermostat or an optimiser keeps for itself does not.
    Start a new dynamics from the restored atoms.
    """

    def __init__(self, images: Sequence[Atoms]) -> None:
        self.images = images
        self.step: int | None = None
        self._state: list[tuple[np.ndarray, np.ndarray, np.ndarray | None]] = []

    def remember(self, step: int) -> None:
        """Take the present state as trusted."""
        self.step = step
        self._state = [
            (a.positions.copy(), a.cell.array.copy(), _copy(a.arrays.get("momenta")))
            for a in self.images
        ]

    def __call__(self, event: Event) -> None:
        """Put the trusted state back; a MonitorError if there never was one."""
        if self.step is None:
            raise MonitorError(
                f"Step {event.step}: nothing to roll back to, no frame of this run was trusted. "
                "The starting structure is already unknown to the model, or the thresholds are "
                "too low for it."
            )
        for atoms, (positions, cell, momenta) in zip(self.images, self._state, strict=True):
            atoms.cell[:] = cell
            atoms.positions[:] = positions
            if momenta is None:
                atoms.arrays.pop("momenta", None)
            else:
                atoms.set_array("momenta", momenta)


def warn(event: Event, say: Callable[[str], Any] | None = None) -> None:
    """Report the beginning of an episode with `say`, or as an `ExtrapolationWarning`."""
    if not event.rising:
        return
    image = "" if event.image is None else f", image {event.image}"
    message = f"step {event.step}{image}: {event.describe()}"
    if say is None:
        warnings.warn(message, ExtrapolationWarning, stacklevel=4)
    else:
        say(message)


def call(function: Callable[[Event], Any], event: Event) -> None:
    """Call the user's function; an exception of its own goes on with a note on where it arose."""
    try:
        function(event)
    except Exception as problem:
        kept = f"{event.saved} frame(s) were saved before" if event.saved else "no frame was saved"
        problem.add_note(
            f"raised in the function that ExtrapolationMonitor calls, at step {event.step} "
            f"({event.describe()}); {kept}, and monitor.last_event holds the frame."
        )
        raise


class Attempts:
    """Runs one action after the other, so that none is lost because another one failed."""

    def __init__(self) -> None:
        self.problems: list[Exception] = []

    def run(self, action: Callable[..., Any], *args: Any) -> Any:
        """The result of the action; None if it raised, which is kept for later."""
        try:
            return action(*args)
        except Exception as problem:
            self.problems.append(problem)
            return None

    def raise_first(self) -> None:
        """Raise the first problem; the others go with it as notes."""
        if self.problems:
            first, *others = self.problems
            for other in others:
                first.add_note(f"and after that: {type(other).__name__}: {other}")
            raise first


def _reasons(event: Event, frame: Atoms, level: str) -> Atoms:
    frame.info.setdefault("monitor_step", event.step)
    if event.image is not None:
        frame.info["monitor_image"] = event.image
    frame.info["monitor_level"] = level
    text = event.describe()
    frame.info["monitor_reasons"] = (
        f"before step {event.step}: {text}" if level == "before" else text
    )
    if event.watched is not None:
        frame.info["monitor_atoms"] = np.array(event.watched, dtype=int)
    return frame


def _extxyz(frame: Atoms) -> bytes:
    buffer = io.StringIO()
    write_extxyz(buffer, frame)
    return buffer.getvalue().encode()


def _copy(values: np.ndarray | None) -> np.ndarray | None:
    return None if values is None else values.copy()
