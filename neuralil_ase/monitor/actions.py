"""When the monitor acts, and its actions, except saving frames. Only `RollBack` changes the run."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms

from neuralil_ase.errors import MonitorError
from neuralil_ase.monitor.readings import Band, Reading


class ExtrapolationWarning(UserWarning):
    """The uncertainty of the model is above a threshold."""


@dataclass
class Streaks:
    """Number of checks in a row that each criterion has been in a band or a worse one."""

    patience: int
    flagged: dict[str, int] = field(default_factory=dict)
    high: dict[str, int] = field(default_factory=dict)
    last: dict[str, int] = field(default_factory=dict)
    acted: Band = Band.TRUSTED

    def update(self, readings: Sequence[Reading]) -> tuple[Reading, ...]:
        """Count these readings; returns those flagged for `patience` checks in a row or more."""
        for reading in readings:
            for counts, reached in (
                (self.flagged, reading.band >= Band.CANDIDATE),
                (self.high, reading.band == Band.HIGH),
                (self.last, reading.in_last_band),
            ):
                counts[reading.criterion] = counts.get(reading.criterion, 0) + 1 if reached else 0
        return tuple(r for r in readings if self.flagged[r.criterion] >= self.patience)

    def band(self, lasting: Sequence[Reading]) -> Band:
        """The band to act on."""
        if any(self.high[r.criterion] >= self.patience for r in lasting):
            return Band.HIGH
        return Band.CANDIDATE if lasting else Band.TRUSTED

    def stop(self, lasting: Sequence[Reading]) -> bool:
        """Whether one of these criteria has been in its worst band for long enough."""
        return any(self.last[r.criterion] >= self.patience for r in lasting)


@dataclass(frozen=True)
class Event:
    """A flagged frame, as passed to the actions and the user's function.

    Attributes
    ----------
    step : int
        Step of the dynamics, including the steps of earlier parts of a resumed run.
    image : int or None
        Number of the image for NEB.
    band : Band
        CANDIDATE or HIGH, after patience.
    rising : bool
        Whether the check before this one was in a lower band: the beginning of an episode.
    stop : bool
        Whether the worst band was reached: HIGH, or CANDIDATE where only one threshold was given.
    readings : tuple of Reading
        The readings that flagged the frame.
    frame : Atoms
        A copy, annotated with spreads (see `annotate`); changing it does not touch the run.
    before : tuple of Atoms
        The frames before the flag that were in the ring buffer.
    saved : int
        How many frames were saved for this event.
    """

    step: int
    image: int | None
    band: Band
    rising: bool
    stop: bool
    readings: tuple[Reading, ...]
    frame: Atoms
    before: tuple[Atoms, ...] = field(default=(), repr=False)
    saved: int = 0

    @property
    def watched(self) -> tuple[int, ...] | None:
        """The atoms that caused the flag; None when the frame as a whole did."""
        atoms = [reading.atom for reading in self.readings]
        return None if None in atoms else tuple(sorted({a for a in atoms if a is not None}))

    def describe(self) -> str:
        """The reasons in words."""
        return "; ".join(reading.describe(self.frame) for reading in self.readings)


class RollBack:
    """Remembers the last trusted state of the run and restores it.

    Elements, positions, cell and momenta are restored; the internal state of a thermostat or optimiser is not.
    Start a new dynamics from the restored atoms.
    """

    def __init__(self, images: Sequence[Atoms]) -> None:
        self.images = images
        self.step: int | None = None
        self._trusted: list[_State] = []

    def remember(self, step: int) -> None:
        """Store the present state as the trusted one."""
        self.step = step
        self._trusted = [_State.of(atoms) for atoms in self.images]

    def __call__(self, event: Event) -> None:
        """Restore the trusted state of all images. If an error is raised, no image is changed.

        Raises
        ------
        MonitorError
            If no frame was trusted, or if atoms were added or removed since.
        """
        if self.step is None:
            raise MonitorError(
                f"step {event.step}: nothing to roll back to, no frame of this run was trusted. The starting structure "
                "is already unknown to the model, or the thresholds are too low for it"
            )
        for atoms, state in zip(self.images, self._trusted, strict=True):
            if len(atoms) != len(state.positions):
                raise MonitorError(
                    f"step {event.step}: cannot roll back to step {self.step}: the structure had "
                    f"{len(state.positions)} atoms then and has {len(atoms)} now. Atoms were added or removed during "
                    "the run, which a rollback cannot undo; nothing was changed. Restart from a saved trajectory"
                )
        for atoms, state in zip(self.images, self._trusted, strict=True):
            state.restore(atoms)


class _State(NamedTuple):
    numbers: np.ndarray
    positions: np.ndarray
    cell: np.ndarray
    momenta: np.ndarray | None

    @classmethod
    def of(cls, atoms: Atoms) -> "_State":
        momenta = atoms.arrays.get("momenta")
        return cls(
            atoms.numbers.copy(),
            atoms.positions.copy(),
            atoms.cell.array.copy(),
            None if momenta is None else momenta.copy(),
        )

    def restore(self, atoms: Atoms) -> None:
        atoms.numbers[:] = self.numbers
        atoms.cell[:] = self.cell
        atoms.positions[:] = self.positions
        if self.momenta is None:
            atoms.arrays.pop("momenta", None)
        else:
            atoms.set_array("momenta", self.momenta)


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
    """Call the user's function; an exception that it raises is passed on, with a note on where it arose."""
    try:
        function(event)
    except Exception as problem:
        kept = f"{event.saved} frame(s) were saved before" if event.saved else "no frame was saved"
        problem.add_note(
            f"raised in the function that ExtrapolationMonitor calls, at step {event.step} "
            f"({event.describe()}); {kept}, and monitor.last_event holds the frame"
        )
        raise


class Attempts:
    """Runs one action after the other; when one fails, the others still run."""

    def __init__(self) -> None:
        self.problems: list[Exception] = []

    def run(self, action: Callable[..., Any], *args: Any) -> Any:
        """Run the action and return its result. If it raises an error, keep the error for later and return None."""
        try:
            return action(*args)
        except Exception as problem:
            self.problems.append(problem)
            return None

    def raise_first(self) -> None:
        """Raise the first problem, with the others as notes."""
        if self.problems:
            first, *others = self.problems
            for other in others:
                first.add_note(f"and after that: {type(other).__name__}: {other}")
            raise first
