"""What a potential predicts for one structure, with units."""

from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

import numpy as np

from neuralil_ase.array_record import ArrayRecord, count
from neuralil_ase.calibration import Calibration
from neuralil_ase.errors import ConfigError, UncertaintyError

Uncertainty = Literal["off", "energy", "forces"]
"""Which results of single members a prediction holds.

"off": only means; "energy": also the energies of each member; "forces": also the forces and the virial of each member.
"""
UNCERTAINTIES: tuple[Uncertainty, ...] = get_args(Uncertainty)
VOIGT = (0, 1, 2, 1, 0, 0), (0, 1, 2, 2, 2, 1)
"""Rows and columns of the six components xx yy zz yz xz xy of a symmetric matrix."""


T = TypeVar("T")


def check_uncertainty(uncertainty: Any) -> Uncertainty:
    """Refuse an unknown level of uncertainty with a ConfigError."""
    if uncertainty not in UNCERTAINTIES:
        raise ConfigError(
            f"unknown uncertainty {uncertainty!r}; choose one of {', '.join(UNCERTAINTIES)}"
        )
    return uncertainty


def to_voigt(matrices: np.ndarray) -> np.ndarray:
    """The six components xx yy zz yz xz xy of 3 × 3 matrices, symmetrised: (..., 3, 3) to (..., 6)."""
    return ((matrices + matrices.swapaxes(-1, -2)) / 2)[..., *VOIGT]


def spread(members: np.ndarray) -> np.ndarray:
    """Standard deviation over the first axis, ddof 1."""
    return np.std(members, axis=0, ddof=1)


def force_spread(member_forces: np.ndarray) -> np.ndarray:
    """Norm over x, y, z of the standard deviations of the components: (M, N, 3) to (N,)."""
    return np.linalg.norm(spread(member_forces), axis=-1)


@dataclass(frozen=True, eq=False, repr=False)
class Members(ArrayRecord, units={"energies": "eV", "forces": "eV/Å", "virials": "eV"}):
    """Predictions of each of M members for a structure of N atoms.

    Attributes
    ----------
    energies
        Atomic energies in eV, shape (M, N).
    forces
        In eV/Å, shape (M, N, 3); None if they were not requested.
    virials
        dE/dε of the whole structure in eV, shape (M, 6); None if they were not requested.
    """

    energies: np.ndarray
    forces: np.ndarray | None = None
    virials: np.ndarray | None = None


@dataclass(frozen=True, eq=False, repr=False)
class Aleatoric(ArrayRecord, units={"energy_std": "eV", "forces_std": "eV/Å"}):
    """Aleatoric standard deviations: those that members predict for their own errors, for a structure of N atoms.

    Attributes
    ----------
    energy_std
        Of the energy in eV: sqrt of the mean over members of σ²_E, summed over atoms.
    forces_std
        Of the force on every atom in eV/Å, shape (N,): sqrt of the mean over members of 3 σ²_F, for three components.
    """

    energy_std: float
    forces_std: np.ndarray


@dataclass(frozen=True, eq=False, repr=False)
class Prediction(ArrayRecord):
    """Means and spreads over the M members of an ensemble, for a structure of N atoms.

    All arrays are float64; arrays in fields are read-only. Every mean is the plain mean over members, so that forces
    and stress are derivatives of the energy. Every spread is the standard deviation over members with ddof = 1; for a
    force, the norm over x, y, z of the three component deviations. If the prediction lacks the data for a property,
    reading the property raises :class:`~neuralil_ase.errors.UncertaintyError`; the message says how to get the data.
    ``holds(name)`` tells beforehand, and ``print(prediction)`` lists all properties.

    Attributes
    ----------
    symbols
        Chemical symbols, shape (N,).
    energies
        Atomic energies in eV, shape (N,); their sum is ``energy``.
    forces
        In eV/Å, shape (N, 3).
    virials
        Contribution of each atom to dE/dε in eV, shape (N, 6), order xx yy zz yz xz xy. A pair belongs to its central
        atom.
    volume
        Volume of the cell in Å³; None without three lattice vectors.
    members
        Predictions of each member; None for uncertainty "off".
    aleatoric
        Aleatoric standard deviations; None for uncertainty "off" and models without aleatoric layers (``head_widths``).
    calibration
        The calibration of the model, for error bars; None if the model is not calibrated.
    """

    symbols: np.ndarray
    energies: np.ndarray
    forces: np.ndarray
    virials: np.ndarray
    volume: float | None = None
    members: Members | None = None
    aleatoric: Aleatoric | None = None
    calibration: Calibration | None = None

    def __repr__(self) -> str:
        return _summary(self)

    def holds(self, name: str) -> bool:
        """Whether a property can be read."""
        try:
            getattr(self, name)
        except UncertaintyError:
            return False
        return True

    @property
    def energy(self) -> float:
        """Potential energy in eV."""
        return float(self.energies.sum())

    @property
    def stresses(self) -> np.ndarray:
        """Each atom's share of ``stress`` in eV/Å³, shape (N, 6). Needs a cell with a volume."""
        return self.virials / self._volume("stresses")

    @property
    def stress(self) -> np.ndarray:
        """(1/V) dE/dε in eV/Å³, tension positive, shape (6,), order xx yy zz yz xz xy. Needs a cell with a volume."""
        return (self.virials / self._volume("stress")).sum(axis=0)

    @property
    def member_energies(self) -> np.ndarray:
        """Energy of every member in eV, shape (M,). Needs uncertainty "energy"."""
        return self._members("member_energies").energies.sum(axis=1)

    @property
    def energy_std(self) -> float:
        """Spread of the energy in eV. Needs uncertainty "energy" and two members or more."""
        return self._energy_spread("energy_std")

    @property
    def energies_std(self) -> np.ndarray:
        """Spread of the atomic energies in eV, shape (N,). Needs uncertainty "energy" and two members or more."""
        return spread(self._several("energies_std").energies)

    @property
    def member_forces(self) -> np.ndarray:
        """Forces of every member in eV/Å, shape (M, N, 3). Needs uncertainty "forces"."""
        return _asked(self._members("member_forces", _FORCES).forces, "member_forces")

    @property
    def forces_std(self) -> np.ndarray:
        """Spread of the forces in eV/Å, shape (N,): norm of the component deviations. Needs uncertainty "forces"."""
        return self._force_spread("forces_std")

    @property
    def member_stresses(self) -> np.ndarray:
        """Stress of every member in eV/Å³, shape (M, 6). Needs uncertainty "forces" and a cell with a volume."""
        return self._virials("member_stresses") / self._volume("member_stresses")

    @property
    def stress_std(self) -> np.ndarray:
        """Spread of the stress components in eV/Å³, shape (6,). Needs uncertainty "forces" and a cell with a volume."""
        self._several("stress_std", _FORCES)
        return spread(self._virials("stress_std")) / self._volume("stress_std")

    @property
    def energy_aleatoric_std(self) -> float:
        """Aleatoric standard deviation of the energy in eV: members predict it for their own errors."""
        return self._aleatoric("energy_aleatoric_std").energy_std

    @property
    def forces_aleatoric_std(self) -> np.ndarray:
        """Aleatoric standard deviation of every force in eV/Å, shape (N,): members predict it for their own errors."""
        return self._aleatoric("forces_aleatoric_std").forces_std

    @property
    def energy_error_bar(self) -> float:
        """Calibrated error bar of the energy in eV, up to a constant per atom: expected rms error.

        Needs uncertainty "energy" and a calibrated model of two members or more.
        """
        aleatoric = None if self.aleatoric is None else self.aleatoric.energy_std
        calibration = self._calibration("energy_error_bar")
        energy_spread = self._energy_spread("energy_error_bar")
        return calibration.energy_error_bar(len(self.symbols), energy_spread, aleatoric)

    @property
    def forces_error_bar(self) -> np.ndarray:
        """Calibrated error bar of the forces in eV/Å, shape (N,): expected rms norm of the error of each atom.

        Needs uncertainty "forces" and a calibrated model of two members or more. The error bar is valid for structures
        like the held-out frames of the calibration.
        """
        aleatoric = None if self.aleatoric is None else self.aleatoric.forces_std
        calibration = self._calibration("forces_error_bar")
        force_spreads = self._force_spread("forces_error_bar")
        return calibration.force_error_bars(self.symbols.tolist(), force_spreads, aleatoric)

    def _volume(self, name: str) -> float:
        return _held(self.volume, name, _VOLUME)

    def _members(self, name: str, advice: str = "energy") -> Members:
        return _held(self.members, name, _ASK.format(advice))

    def _several(self, name: str, advice: str = "energy") -> Members:
        members = self._members(name, advice)
        if len(members.energies) < 2:
            raise _missing(name, _SINGLE)
        return members

    def _energy_spread(self, name: str) -> float:
        return float(spread(self._several(name).energies.sum(axis=1)))

    def _force_spread(self, name: str) -> np.ndarray:
        return force_spread(_asked(self._several(name, _FORCES).forces, name))

    def _virials(self, name: str) -> np.ndarray:
        return _asked(self._members(name, _FORCES).virials, name)

    def _aleatoric(self, name: str) -> Aleatoric:
        return _held(self.aleatoric, name, _NO_ALEATORIC if self.members else _ASK_ALEATORIC)

    def _calibration(self, name: str) -> Calibration:
        return _held(self.calibration, name, _UNCALIBRATED)


_FORCES = "forces"
_NOT_HELD = "this prediction holds no {}: "
_ASK = 'ask for prediction(atoms, uncertainty="{}"), or build the calculator with it'
_VOLUME = "the cell has no volume; give the structure three lattice vectors"
_SINGLE = "the model has one member, and a spread needs two; use an ensemble"
_UNCALIBRATED = (
    "the model is not calibrated; run neuralil-ase calibrate MODEL DATA on held-out data"
)
_NO_ALEATORIC = (
    "only models with aleatoric layers (head_widths) predict it, and this model has none"
)
_ASK_ALEATORIC = f"only models with aleatoric layers (head_widths) predict it; for these, {_ASK.format('energy')}"


def _missing(name: str, reason: str) -> UncertaintyError:
    return UncertaintyError(_NOT_HELD.format(name) + reason)


def _held(value: T | None, name: str, reason: str) -> T:
    if value is None:
        raise _missing(name, reason)
    return value


def _asked(value: np.ndarray | None, name: str) -> np.ndarray:
    return _held(value, name, _ASK.format(_FORCES))


_UNITS = {
    "energy": "eV",
    "energy_std": "eV",
    "energy_error_bar": "eV",
    "energy_aleatoric_std": "eV",
    "forces": "eV/Å",
    "forces_std": "eV/Å",
    "forces_error_bar": "eV/Å",
    "forces_aleatoric_std": "eV/Å",
    "stress": "eV/Å³",
    "stress_std": "eV/Å³",
    "energies": "eV",
    "energies_std": "eV",
    "stresses": "eV/Å³",
    "member_energies": "eV",
    "member_forces": "eV/Å",
    "member_stresses": "eV/Å³",
}
"""What can be read, in the order in which it is shown."""


def _summary(prediction: Prediction) -> str:
    """What is held, with units, and what is not, with the reason."""
    counts = sorted(Counter(prediction.symbols.tolist()).items())
    formula = "".join(f"{symbol}{n if n > 1 else ''}" for symbol, n in counts)
    parts = [count(len(prediction.symbols), "atom")]
    if prediction.members is not None:
        parts.append(count(len(prediction.members.energies), "member"))
    lines = [f"Prediction for {formula} ({', '.join(parts)})"]
    missing: dict[str, list[str]] = {}
    for name, unit in _UNITS.items():
        try:
            lines.append(f"  {name:<20}  {_shown(name, getattr(prediction, name), unit)}")
        except UncertaintyError as error:
            missing.setdefault(str(error).removeprefix(_NOT_HELD.format(name)), []).append(name)
    lines += [f"  not held: {', '.join(names)} ({why})" for why, names in missing.items()]
    return "\n".join(lines)


def _shown(name: str, value: float | np.ndarray, unit: str) -> str:
    """A number, the six components of a stress, the largest value over atoms, or the shape."""
    if not isinstance(value, np.ndarray):
        return f"{value:.8g} {unit}"
    if value.shape == (6,) and name.startswith("stress"):
        return f"{' '.join(f'{component:.4g}' for component in value)} {unit}"
    if name.startswith("member") or name in ("energies", "stresses") or not value.size:
        return f"shape {value.shape}, {unit}"
    sizes = np.abs(value) if value.ndim == 1 else np.linalg.norm(value, axis=1)
    return f"up to {sizes.max():.4g} {unit} (atom {int(sizes.argmax())})"
