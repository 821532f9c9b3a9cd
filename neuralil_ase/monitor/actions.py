"""The actions for a flagged frame, except saving it. Only `RollBack` changes the run."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms

from neuralil_ase.errors import MonitorError
from neuralil_ase.monitor.patience import Band, Reading


class ExtrapolationWarning(UserWarning):
    """The uncertainty of the model is above a threshold."""


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
                "is already unknown to the model, or the thresholds are too low for it."
            )
        for atoms, state in zip(self.images, self._trusted, strict=True):
            if len(atoms) != len(state.positions):
                raise MonitorError(
                    f"step {event.step}: cannot roll back to step {self.step}: the structure had "
                    f"{len(state.positions)} atoms then and has {len(atoms)} now. Atoms were added or removed during "
                    "the run, which a rollback cannot undo; nothing was changed. Restart from a saved trajectory."
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
            f"({event.describe()}); {kept}, and monitor.last_event holds the frame."
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
