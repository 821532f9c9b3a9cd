"""What the monitor asks of a calculator, so that it works with any that offers it."""

from collections.abc import Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from ase import Atoms

Needs = Literal["energy", "forces"]

ESTIMATOR = (
    "standard deviation over the members of the ensemble with ddof = 1; of a force, per atom, "
    "the norm of the vector of component deviations, sqrt(var_x + var_y + var_z)"
)


class PredictionLike(Protocol):
    """The part of a prediction the monitor reads (N atoms, M members).

    Spreads are standard deviations over members with ddof 1. ``forces_std`` is needed only when
    the prediction was asked for with ``uncertainty="forces"``.
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


Images = Sequence[Atoms]
