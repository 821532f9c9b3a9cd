"""Decides whether to trust the model or to ask the teacher."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from ase import Atoms
from ase.stress import voigt_6_to_full_3x3_stress

from neuralil_ase.calculator import NeuralILCalculator
from neuralil_ase.engine.geometry import check_geometry
from neuralil_ase.errors import PredictionError
from neuralil_ase.learning.records import Kind
from neuralil_ase.learning.request import Teaching
from neuralil_ase.monitor.criteria import Criterion, MaxForceErrorBar
from neuralil_ase.monitor.readings import Band
from neuralil_ase.prediction import Prediction

NEAR, DOWNHILL = 5.0, 0.7
"""Largest error bar that is allowed on the way to a minimum: this multiple of fmax, or this fraction of the largest
force, whichever is larger. A step then has roughly the same direction as with the forces of the teacher."""
NEAR_BY, SHARE = 0.1, 0.25
"""On the way to a minimum, within this distance in Å of a learnt frame, the error is taken as this fraction of the
error bar. Error bars come from frames that are farther away. In relaxations of clusters, errors near learnt frames were
0.1 to 0.2 of the error bars."""


class Descent(NamedTuple):
    """The state of an optimisation whose minimum the teacher confirms.

    Attributes
    ----------
    fmax
        The value with which the optimiser compares the forces, in eV/Å.
    refused
        How often the teacher has not confirmed the minimum of the model. Each time, error bars near the minimum must be
        half as large, down to fmax: the model was not good enough there.
    """

    fmax: float
    refused: int = 0

    def allowed(self, largest_force: float) -> float:
        """Largest error bar in eV/Å that is trusted in a structure with this largest force."""
        near = max(NEAR / 2**self.refused, 1.0)
        return max(near * self.fmax, DOWNHILL * largest_force)


class Decision(NamedTuple):
    """Who evaluates a structure, and why.

    Attributes
    ----------
    kind
        Why the teacher is asked; None if the model is trusted.
    reason
        The same in words.
    prediction
        The prediction with uncertainty "forces"; None if there is none.
    bar, allowed
        Largest error bar of the force on a movable atom, and the largest error bar that is tolerated here, in eV/Å.
    is_near
        Whether the structure is near a learnt frame on the way to a minimum, so that its error is smaller than the bar.
    """

    kind: Kind | None
    reason: str = ""
    prediction: Prediction | None = None
    bar: float = np.inf
    allowed: float = np.nan
    is_near: bool = False

    @property
    def error(self) -> float:
        """Expected error of a force in eV/Å: the largest error bar, or a fraction of it near a learnt frame."""
        return self.bar * (SHARE if self.is_near else 1.0)


def judge(
    learner: Teaching,
    model: NeuralILCalculator | None,
    atoms: Atoms,
    descent: Descent | None,
    criteria: Sequence[Criterion],
    before: Atoms | None,
) -> Decision:
    """Decide with everything that the learner knows; ``model`` is the calculator of its model. Others as for
    :func:`decide`.

    Raises
    ------
    StructureError
        If there is no model for a structure that cannot be.
    """
    known = () if model is None else model.potential.elements
    unknown = ", ".join(sorted(set(atoms.symbols) - set(known)))
    if model is None or unknown:
        check_geometry(atoms.positions, atoms.cell.array, np.asarray(atoms.pbc))
        is_first = model is None
        reason = "there is no model yet" if is_first else f"the model does not know {unknown}"
        return Decision("first", reason)
    try:
        prediction = model.prediction(atoms, "forces")
    except PredictionError as error:
        return Decision("unsure", str(error))
    moved = np.inf if descent is None else learner.moved(atoms)
    is_strained = learner.is_strained(atoms)
    found = decide(
        atoms, prediction, learner.tolerance, descent, criteria, moved, is_strained, before
    )
    if found.kind is None:
        far = learner.too_far(atoms, descent is not None)
        found = found if far is None else found._replace(kind="unsure", reason=far)
    return found


def decide(
    atoms: Atoms,
    prediction: Prediction,
    tolerance: float,
    descent: Descent | None = None,
    criteria: Sequence[Criterion] = (),
    moved: float = np.inf,
    is_strained: bool = False,
    before: Atoms | None = None,
) -> Decision:
    """Compare the error bars of a prediction with the tolerance.

    Parameters
    ----------
    atoms
        The structure. Atoms that its constraints fix are ignored, unless all are fixed, or the script moved them.
    prediction
        Prediction of a calibrated model, with uncertainty "forces".
    tolerance
        Largest error bar of a force that is trusted, in eV/Å; not used with ``descent``.
    descent
        Given on the way to a minimum that the teacher confirms. Error bars may then be five times fmax (less after the
        teacher has not confirmed a minimum) or 0.7 times the largest force, whichever is larger.
    criteria
        Further criteria; one above its threshold is enough to ask the teacher.
    moved
        Largest displacement in Å of an atom from the nearest learnt frame. Within 0.1 Å, error bars may be four times
        as large on the way to a minimum.
    is_strained
        Whether no learnt frame has this cell. Then the error bar of the stress must be within the tolerance, too, but
        not on the way to a minimum.
    before
        The structure that was evaluated before this one.
    """
    moving = movable(atoms, before)
    bar = float(prediction.forces_error_bar[moving].max(initial=0))
    allowed, is_near = tolerance, descent is not None and moved <= NEAR_BY
    if descent is not None:
        allowed = descent.allowed(largest_force(atoms, prediction))
        allowed /= SHARE if is_near else 1.0
    all_criteria = [MaxForceErrorBar(low=allowed, indices=moving.tolist()), *criteria]
    for criterion in all_criteria:
        reading = criterion.resolved(prediction.calibration).read(atoms, prediction)
        if reading.band != Band.TRUSTED:
            return Decision("unsure", reading.describe(atoms), prediction, bar, allowed, is_near)
    if descent is None and is_strained and prediction.volume is not None:
        of_cell = cell_error_bar(prediction)
        if of_cell > allowed:
            reason = f"error bar of the stress, times V/N, is {of_cell:.3g} eV, above {allowed:.3g}"
            return Decision("unsure", reason, prediction, bar, allowed, is_near)
    return Decision(None, "", prediction, bar, allowed, is_near)


def cell_error_bar(prediction: Prediction) -> float:
    """Error bar of the stress times V/N in eV, the largest norm of a row: what ASE's cell filters compare with fmax.

    Symmetry makes all forces vanish in a perfect crystal, whatever the size of its cell. The stress does not vanish.
    """
    assert prediction.calibration is not None
    scale = prediction.calibration.scale_of_spread(prediction.symbols.tolist())
    rows = voigt_6_to_full_3x3_stress(prediction.stress_std)
    largest = float(np.linalg.norm(rows, axis=1).max())
    return scale * largest * float(prediction.volume or 0.0) / len(prediction.symbols)


def movable(atoms: Atoms, before: Atoms | None = None) -> np.ndarray:
    """Indices of the atoms that can move in spite of the constraints, or have moved since ``before``; all if there are
    none, as in a scan by hand."""
    # Random forces: a constraint on the centre of mass then leaves none of them exactly zero.
    forces = np.random.default_rng(0).normal(size=(len(atoms), 3))
    counts = np.abs(constrained(atoms, forces)).sum(axis=1) > 1e-12
    if before is not None and np.array_equal(before.numbers, atoms.numbers):
        counts |= (before.positions != atoms.positions).any(axis=1)
    return np.flatnonzero(counts) if counts.any() else np.arange(len(atoms))


def largest_force(atoms: Atoms, prediction: Prediction) -> float:
    """Largest force on an atom in eV/Å, after the constraints have been applied."""
    forces = constrained(atoms, prediction.forces.copy())
    return float(np.linalg.norm(forces, axis=1).max(initial=0))


def constrained(atoms: Atoms, forces: np.ndarray) -> np.ndarray:
    """The forces after the constraints have been applied."""
    for constraint in atoms.constraints:
        if hasattr(constraint, "adjust_forces"):
            constraint.adjust_forces(atoms, forces)
    return forces
