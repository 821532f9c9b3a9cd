"""Checks the options of a learner and of a learning calculator."""

from dataclasses import replace
from typing import Any

import numpy as np
from ase import Atoms

from neuralil_ase.errors import ConfigError, DataError
from neuralil_ase.evaluation.dataset import Frame, frames_from_atoms, items_of
from neuralil_ase.training.settings import TrainingSettings


def check_count(name: str, value: Any) -> None:
    """Check that an option is a whole number, 0 or more."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 0:
        raise ConfigError(f"{name} = {value!r}: give a whole number, 0 or more")


def labelled_frames(data: Any) -> tuple[list[Atoms], list[Frame]]:
    """The labelled structures and their frames, after a check that each has energy and forces.

    The energy is the free energy if there is one, as for the labels of a teacher: the forces are its slopes.
    """
    structures, frames = items_of(data), []
    for number, atoms in enumerate(structures):
        if not isinstance(atoms, Atoms):
            raise ConfigError(
                f"data = {atoms!r}: give labelled structures (Atoms), for instance ase.io.read(file, ':')"
            )
        (frame,) = frames_from_atoms([atoms])
        if frame.energy is None or frame.forces is None:
            raise DataError(
                f"structure {number} of data has no {'energy' if frame.energy is None else 'forces'}, and learning "
                "needs both: leave it out, or label it first"
            )
        free = getattr(atoms.calc, "results", {}).get("free_energy")
        frames.append(frame if free is None else replace(frame, energy=float(free)))
    return structures, frames


def check_options(tolerance: Any, settings: TrainingSettings, executor: Any) -> None:
    """Check the tolerance, the number of members and the executor."""
    is_number = isinstance(tolerance, float | int | np.number) and not isinstance(tolerance, bool)
    if tolerance is not None and not (is_number and np.isfinite(tolerance) and tolerance > 0):
        raise ConfigError(f"tolerance = {tolerance!r}: give an error bar in eV/Å above 0, or None")
    if settings.members < 2:
        raise ConfigError(
            "learning needs the spread of an ensemble: give settings with members=2 or more"
        )
    if executor is not None and not callable(getattr(executor, "submit", None)):
        raise ConfigError(
            f"executor = {executor!r}: give an executor, for instance "
            "concurrent.futures.ThreadPoolExecutor(4), or None"
        )
