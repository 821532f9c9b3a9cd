"""What the monitor follows (images behind Atoms, a dynamics, a filter or a NEB), and the calculator it asks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from ase import Atoms, units
from ase.md.md import MolecularDynamics
from ase.md.switch_langevin import SwitchLangevin
from ase.mep.neb import NEBOptimizer
from ase.optimize.basin import BasinHopping
from ase.optimize.sciopt import Converged, SciPyGradientlessOptimizer, SciPyOptimizer

from neuralil_ase.calibration import Calibration
from neuralil_ase.errors import MonitorError

# These have loops of their own that never look at max_steps.
_UNSTOPPABLE = (NEBOptimizer, SwitchLangevin, BasinHopping, SciPyGradientlessOptimizer)


class PredictionLike(Protocol):
    """The part of a prediction the monitor reads (N atoms, M members).

    Spreads are standard deviations over members with ddof 1. ``forces_std`` is needed only when
    the prediction was requested with ``uncertainty="forces"``.
    """

    @property
    def energy(self) -> float:
        """Mean energy, eV."""

    @property
    def energies(self) -> np.ndarray:
        """(N,) mean energy of each atom, eV."""

    @property
    def forces(self) -> np.ndarray:
        """(N, 3) mean forces, eV/Å."""

    @property
    def stress(self) -> np.ndarray | None:
        """(6,) mean stress, eV/Å³, Voigt, tension positive; None without a volume."""

    @property
    def member_energies(self) -> np.ndarray:
        """(M,) energy of each member, eV."""

    @property
    def energy_std(self) -> float:
        """Spread of the total energy, eV."""

    @property
    def energies_std(self) -> np.ndarray:
        """(N,) spread of each atom's energy, eV."""

    @property
    def forces_std(self) -> np.ndarray:
        """(N,) spread of each atom's force, eV/Å: sqrt of the sum of component variances."""

    @property
    def forces_error_bar(self) -> np.ndarray:
        """(N,) calibrated error bar of each atom's force, eV/Å; read by `MaxForceErrorBar` alone."""


@runtime_checkable
class PredictingCalculator(Protocol):
    """A calculator with the accessor that the monitor reads."""

    def prediction(
        self, atoms: Atoms | None = None, uncertainty: str | None = None
    ) -> PredictionLike:
        """Evaluate `atoms`, or return what is cached for the same geometry."""


class DynamicsLike(Protocol):
    """The part of an ASE dynamics (MD or optimiser) the monitor touches."""

    nsteps: int
    max_steps: int
    atoms: Any


@dataclass(frozen=True)
class Target:
    """The structures to follow and the dynamics that moves them.

    Attributes
    ----------
    images : tuple of Atoms
        One, or the moving images of a NEB.
    numbers : tuple of int or None
        Number of each image in the NEB; None for a single structure.
    dynamics : DynamicsLike or None
    """

    images: tuple[Atoms, ...]
    numbers: tuple[int | None, ...]
    dynamics: DynamicsLike | None

    @property
    def shared_calculator(self) -> bool:
        """Whether several images share a calculator."""
        return len(self.images) > len({id(atoms.calc) for atoms in self.images})

    @property
    def timestep_fs(self) -> float:
        """Time step of an MD run, fs; nan for anything else."""
        if not isinstance(self.dynamics, MolecularDynamics):
            return float("nan")
        return float(self.dynamics.dt) / units.fs

    def stop(self) -> None:
        """End the run cleanly after this step.

        ASE's loops compare nsteps with max_steps; SciPy's own loops end at ASE's Converged instead.
        """
        assert self.dynamics is not None
        self.dynamics.max_steps = self.dynamics.nsteps
        if isinstance(self.dynamics, SciPyOptimizer):
            raise Converged


def target_of(system: Any, dynamics: Any = None) -> Target:
    """Find the structures behind `system`.

    Parameters
    ----------
    system : Atoms, ASE dynamics, filter or NEB
    dynamics : ASE dynamics, optional
        Where `system` is not one.

    Raises
    ------
    MonitorError
        If there is nothing to follow.
    """
    if dynamics is None and hasattr(system, "attach") and hasattr(system, "nsteps"):
        dynamics = system
    followed = system
    while not isinstance(followed, Atoms):
        if hasattr(followed, "images"):
            return _neb_target(followed, dynamics)
        if not hasattr(followed, "atoms"):
            raise MonitorError(
                f"cannot follow a {type(system).__name__}: give the dynamics (MD or optimiser), "
                "an Atoms object, a filter or a NEB"
            )
        followed = followed.atoms
    return Target((followed,), (None,), dynamics)


def check_stoppable(target: Target) -> None:
    """Raise a MonitorError if ASE could not stop this run from inside."""
    if target.dynamics is None:
        raise MonitorError(
            "stop and rollback need the dynamics: give it in place of the atoms, or as dyn="
        )
    if isinstance(target.dynamics, _UNSTOPPABLE):
        raise MonitorError(
            f"a {type(target.dynamics).__name__} cannot be stopped from inside: its loop does not "
            "look at max_steps. Leave stop and rollback out, or use another optimiser (for NEB, "
            "BFGS or FIRE)"
        )


def predicting(calculator: Any) -> PredictingCalculator:
    """Return `calculator` if it can predict with uncertainties; raise a MonitorError otherwise."""
    if calculator is None:
        raise MonitorError(
            "the atoms have no calculator; set atoms.calc, or give the monitor one as calculator="
        )
    if not callable(getattr(calculator, "prediction", None)):
        raise MonitorError(
            f"{type(calculator).__name__} offers no prediction(atoms, uncertainty=...); a monitor "
            "needs the spread of an ensemble. Where the run uses a sum of calculators, give the "
            "ensemble among them as calculator="
        )
    chosen: PredictingCalculator = calculator
    return chosen


def calibration_of(calculator: Any) -> Calibration | None:
    """The calibration of the model: ``calculator.potential.calibration``, or None.

    Raises
    ------
    MonitorError
        If a calculator that learns has no model yet.
    """
    # Other calculators may have no potential, and no calibration, from the beginning to the end.
    if hasattr(calculator, "learner") and calculator.potential is None:
        raise MonitorError(
            f"the {type(calculator).__name__} has no model yet: evaluate the atoms once "
            "(atoms.get_forces()) before the monitor is made"
        )
    found: Calibration | None = getattr(getattr(calculator, "potential", None), "calibration", None)
    return found


def _neb_target(neb: Any, dynamics: Any) -> Target:
    if getattr(neb, "parallel", False):
        raise MonitorError(
            "a NEB with parallel=True keeps each image on a rank or thread of its own; the monitor "
            "follows NEBs with parallel=False"
        )
    images: Sequence[Atoms] = neb.images
    if len(images) < 3:
        raise MonitorError("the NEB has no moving image; it needs three images or more")
    return Target(tuple(images[1:-1]), tuple(range(1, len(images) - 1)), dynamics)
