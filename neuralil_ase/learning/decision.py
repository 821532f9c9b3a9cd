"""Trust the model, or ask the teacher?"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from ase import Atoms

from neuralil_ase.learning.records import Kind
from neuralil_ase.monitor.criteria import Criterion, MaxForceErrorBar
from neuralil_ase.monitor.patience import Band
from neuralil_ase.prediction import Prediction

NEAR, DOWNHILL = 5.0, 0.7
"""Error bar that an optimiser is allowed on its way: this multiple of its fmax, or this part of the largest force if
that is more, so that a step goes roughly the teacher's way."""
STRAINED = 1.2
"""ASE's filters count forces in the cell of the start: by so much those of the present one may differ from them."""


class Decision(NamedTuple):
    """What to do with a structure.

    Attributes
    ----------
    kind
        Why the teacher is asked; None where the model is trusted.
    reason
        The same in words.
    prediction
        What the model says, with uncertainty "forces"; None where it says nothing.
    bar, allowed
        Largest error bar of a force on a movable atom, and what was tolerated here, eV/Å.
    """

    kind: Kind | None
    reason: str = ""
    prediction: Prediction | None = None
    bar: float = np.inf
    allowed: float = np.nan


def decide(
    atoms: Atoms,
    prediction: Prediction,
    tolerance: float,
    confirm: float | None = None,
    criteria: Sequence[Criterion] = (),
    with_stress: bool = False,
) -> Decision:
    """Compare what the model does not know with what is tolerated.

    Parameters
    ----------
    atoms
        The structure; atoms that its constraints hold fixed do not count.
    prediction
        With uncertainty "forces", of a calibrated model.
    tolerance
        Largest error bar of a force that is trusted, eV/Å; not used with ``confirm``.
    confirm
        The ``fmax`` of an optimiser in eV/Å: forces below it are confirmed by the teacher, and on the way to it error
        bars may be five times that, or 0.7 times the largest force.
    criteria
        Further ones; any objection counts.
    with_stress
        Whether the cell is relaxed, too: its stress must then be small for an optimisation to end.
    """
    moving = movable(atoms)
    bar = float(prediction.forces_error_bar[moving].max(initial=0))
    allowed = tolerance
    if confirm is not None:
        largest = largest_force(atoms, prediction, with_stress)
        allowed = max(NEAR * confirm, DOWNHILL * largest)
        if largest < confirm * (STRAINED if with_stress else 1.0):
            reason = f"largest force {largest:.4f} eV/Å, below {confirm:g}"
            return Decision("confirm", reason, prediction, bar, allowed)
    all_criteria: list[Criterion] = [*criteria]
    if moving.size:
        all_criteria.insert(0, MaxForceErrorBar(low=allowed, indices=moving.tolist()))
    for criterion in all_criteria:
        reading = criterion.resolved(prediction.calibration).read(atoms, prediction)
        if reading.band != Band.TRUSTED:
            return Decision("unsure", reading.describe(atoms), prediction, bar, allowed)
    return Decision(None, "", prediction, bar, allowed)


def movable(atoms: Atoms) -> np.ndarray:
    """Indices of the atoms that constraints leave some freedom."""
    # Forces without a pattern: what fixes the centre of mass alone takes nothing from a single atom.
    forces = np.random.default_rng(0).normal(size=(len(atoms), 3))
    return np.flatnonzero(np.abs(constrained(atoms, forces)).sum(axis=1) > 1e-12)


def largest_force(atoms: Atoms, prediction: Prediction, with_stress: bool) -> float:
    """What an optimiser compares with its fmax, eV/Å: of the atoms, and of the cell as ASE's filters count it.

    By default these divide the virial by the number of atoms.
    """
    forces = constrained(atoms, prediction.forces.copy())
    largest = float(np.linalg.norm(forces, axis=1).max(initial=0))
    if with_stress and prediction.volume is not None:
        xx, yy, zz, yz, xz, xy = prediction.volume * prediction.stress / len(atoms)
        virial = np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
        largest = max(largest, float(np.linalg.norm(virial, axis=1).max()))
    return largest


def constrained(atoms: Atoms, forces: np.ndarray) -> np.ndarray:
    """The forces that constraints leave."""
    for constraint in atoms.constraints:
        if hasattr(constraint, "adjust_forces"):
            constraint.adjust_forces(atoms, forces)
    return forces
