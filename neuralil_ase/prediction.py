"""What a potential predicts for one structure, with units."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from neuralil_ase.calibration import Calibration
from neuralil_ase.errors import ConfigError, UncertaintyError

Uncertainty = Literal["off", "energy", "forces"]
"""How much of the uncertainty a prediction holds.

"off": the means alone; "energy": also each member's energy and the spread of the atomic energies; "forces": also each
member's forces and stress.
"""
UNCERTAINTIES: tuple[Uncertainty, ...] = get_args(Uncertainty)


def check_uncertainty(uncertainty: Any) -> Uncertainty:
    """Refuse an unknown level of uncertainty with a ConfigError."""
    if uncertainty not in UNCERTAINTIES:
        raise ConfigError(
            f"unknown uncertainty {uncertainty!r}; choose one of {', '.join(UNCERTAINTIES)}"
        )
    return uncertainty


@dataclass(frozen=True)
class Prediction:
    """Means and spreads over the M members of an ensemble, for a structure of N atoms.

    All arrays are float64 and read-only. Every mean is the plain mean over members, so that forces and stress
    are derivatives of the energy. Every spread is the standard deviation over members with ddof = 1; for a force, the
    norm over x, y, z of the three component deviations. A field that is not
    held raises :class:`~neuralil_ase.errors.UncertaintyError` when read; ``holds(name)`` asks beforehand.

    Attributes
    ----------
    energy
        Potential energy in eV.
    energies
        Atomic energies in eV, shape (N,); they add up to ``energy``.
    forces
        In eV/Å, shape (N, 3).
    stress
        (1/V) dE/dε in eV/Å³, tension positive, shape (6,), order xx yy zz yz xz xy. Needs a cell with a volume.
    stresses
        Each atom's share of ``stress``, shape (N, 6); every pair counts with its central atom.
    member_energies
        In eV, shape (M,). From uncertainty "energy" on.
    energies_std
        Spread of the atomic energies in eV, shape (N,). From uncertainty "energy" on, two members or more.
    member_forces
        In eV/Å, shape (M, N, 3). Uncertainty "forces".
    member_stresses
        Stress of every member in eV/Å³, shape (M, 6). Uncertainty "forces", a cell with a volume.
    energy_aleatoric_std, forces_aleatoric_std
        Standard deviations that the members predict of their own errors: sqrt of the mean over members of σ²_E, in eV,
        and of 3 σ²_F per atom (three components), in eV/Å, shape (N,). From uncertainty "energy" on, models with
        ``head_widths``.
    symbols, calibration
        Chemical symbols, shape (N,), and the model's calibration; what the error bars are made from.
    """

    energy: float
    energies: np.ndarray
    forces: np.ndarray
    stress: np.ndarray | None = None
    stresses: np.ndarray | None = None
    member_energies: np.ndarray | None = None
    energies_std: np.ndarray | None = None
    member_forces: np.ndarray | None = None
    member_stresses: np.ndarray | None = None
    energy_aleatoric_std: float | None = None
    forces_aleatoric_std: np.ndarray | None = None
    symbols: Any = None
    calibration: Calibration | None = None

    def __post_init__(self) -> None:
        for value in self.__dict__.values():
            if isinstance(value, np.ndarray):
                value.flags.writeable = False

    def __getattribute__(self, name: str) -> Any:
        value = object.__getattribute__(self, name)
        if value is None and name in _REASONS:
            raise UncertaintyError(f"this prediction holds no {name}: {_REASONS[name]}")
        return value

    def holds(self, name: str) -> bool:
        """Whether a field or a spread derived from it can be read."""
        try:
            getattr(self, name)
        except UncertaintyError:
            return False
        return True

    @property
    def energy_std(self) -> float:
        """Spread of the energy in eV. From uncertainty "energy" on."""
        return float(_spread(self.member_energies, "energy_std"))

    @property
    def forces_std(self) -> np.ndarray:
        """Spread of the forces in eV/Å, shape (N,): norm of the component deviations. Uncertainty "forces"."""
        return np.linalg.norm(_spread(self.member_forces, "forces_std"), axis=-1)

    @property
    def stress_std(self) -> np.ndarray:
        """Spread of the stress components in eV/Å³, shape (6,). Uncertainty "forces"."""
        return _spread(self.member_stresses, "stress_std")

    @property
    def forces_error_bar(self) -> np.ndarray:
        """Calibrated error bar of the forces in eV/Å, shape (N,): expected rms norm of the error of each atom.

        Uncertainty "forces", calibrated models. It describes structures like the held-out ones it was fitted on.
        """
        aleatoric = self.forces_aleatoric_std if self.holds("forces_aleatoric_std") else None
        calibration: Any = self.calibration  # raises UncertaintyError if there is none
        return calibration.force_error_bars(self.symbols, self.forces_std, aleatoric)

    @property
    def energy_error_bar(self) -> float:
        """Calibrated error bar of the energy in eV, up to a constant per atom.

        From uncertainty "energy" on, calibrated models.
        """
        aleatoric = self.energy_aleatoric_std if self.holds("energy_aleatoric_std") else None
        calibration: Any = self.calibration  # raises UncertaintyError if there is none
        return calibration.energy_error_bar(len(self.forces), self.energy_std, aleatoric)


_ENERGY = 'ask for prediction(atoms, uncertainty="energy"), or build the calculator with it'
_FORCES = 'ask for prediction(atoms, uncertainty="forces"), or build the calculator with it'
_VOLUME = "the cell has no volume; give the structure three lattice vectors"
_HETEROSCEDASTIC = (
    "only members with heads for the variances of their errors (head_widths) predict them"
)
_REASONS = {
    "symbols": "it was not made by a Predictor",
    "calibration": "the model is not calibrated; run neuralil-ase calibrate MODEL DATA on held-out data",
    "stress": _VOLUME,
    "stresses": _VOLUME,
    "member_energies": _ENERGY,
    "energies_std": f"the model has one member, or {_ENERGY}",
    "member_forces": _FORCES,
    "member_stresses": f"{_VOLUME}, or {_FORCES}",
    "energy_aleatoric_std": f"{_HETEROSCEDASTIC}; there, {_ENERGY}",
    "forces_aleatoric_std": f"{_HETEROSCEDASTIC}; there, {_ENERGY}",
}


def _spread(members: Any, name: str) -> np.ndarray:
    if len(members) < 2:
        raise UncertaintyError(
            f"this prediction holds no {name}: the model has one member, and a spread needs two; use an ensemble"
        )
    return np.std(members, axis=0, ddof=1)
