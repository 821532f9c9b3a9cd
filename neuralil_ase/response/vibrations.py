"""Normal modes at one geometry from the exact Hessian of every member."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ase import Atoms, units
from ase.vibrations import VibrationsData

from neuralil_ase.array_record import ArrayRecord
from neuralil_ase.calculator import NeuralILCalculator
from neuralil_ase.errors import StructureError
from neuralil_ase.response.estimate import Estimate, error_scale

HBAR_OMEGA = units._hbar * 1e10 / np.sqrt(units._e * units._amu)
"""ħω in eV of ω² = 1 eV/Å²/u."""


@dataclass(frozen=True, eq=False, repr=False)
class Vibrations(ArrayRecord):
    """Normal modes of a structure.

    Attributes
    ----------
    data
        ASE's object for the mean potential: modes, frequencies, animations, files.
    energies
        ħω of all 3 n modes of the n moving atoms in eV, in ascending order of ω². Negative numbers stand for imaginary
        ω.
    n_rigid
        Number of translations and rotations of the whole system: 3 in a crystal, 6 for a molecule (5 if linear), 0 if
        some atoms are fixed.
    """

    data: VibrationsData
    energies: Estimate
    n_rigid: int

    @property
    def internal(self) -> Estimate:
        """ħω in eV without the rigid modes, shape (3 n - n_rigid,). The modes nearest to zero count as rigid."""

        def without_rigid(energies: np.ndarray) -> np.ndarray:
            kept = np.argsort(np.abs(energies), kind="stable")[self.n_rigid :]
            return np.sort(energies[kept])

        return self.energies.map(without_rigid, "eV")

    @property
    def zero_point_energy(self) -> Estimate:
        """Σ ħω/2 over internal modes in eV; imaginary modes do not count."""
        return self.internal.map(lambda energies: np.clip(energies, 0, None).sum() / 2, "eV")

    def helmholtz_energy(self, temperature: float) -> Estimate:
        """Σ ħω/2 + kT ln(1 - exp(-ħω/kT)) over internal modes in eV, at a temperature in K.

        For translations and rotations pass ``internal.value`` to ``ase.thermochemistry``.

        Raises
        ------
        StructureError
            If a mode of the mean or of a member is imaginary.
        """
        internal = self.internal
        lowest = min(np.min(internal.value, initial=1), internal.members.min(initial=1))
        if lowest <= 0:
            raise StructureError(
                f"a mode has ħω = {lowest:.4g} eV (imaginary): this is not a minimum of the mean and of every member. "
                "Relax the structure further, or leave such modes out"
            )
        return internal.map(lambda energies: harmonic_energy(energies, temperature), "eV")


def vibrations(
    atoms: Atoms, calculator: NeuralILCalculator, indices: Sequence[int] | None = None
) -> Vibrations:
    """Normal modes of a structure with their error bars. The mean potential must have relaxed the structure before.

    Parameters
    ----------
    atoms
        The structure.
    calculator
        The ensemble, with dtype="float64" if small frequencies matter.
    indices
        Atoms that move; by default all atoms that are not fixed by ASE's FixAtoms.

    Returns
    -------
    Vibrations
        All members are evaluated at the same geometry, so that the spread is that of the force constants there. With
        ``propagate`` each member relaxes the structure first.
    """
    chosen = (
        VibrationsData.indices_from_constraints(atoms)
        if indices is None
        else np.arange(len(atoms))[indices]
    )
    constants = calculator.force_constants(atoms, members=True)
    hessians = constants.hessian()[:, chosen][:, :, :, chosen]
    hessian = hessians.mean(axis=0)
    scale = error_scale(calculator.potential, atoms.symbols[chosen])
    masses = atoms.get_masses()[chosen]
    members = np.array([mode_energies(_weighted(member, masses)) for member in hessians])
    energies = Estimate(mode_energies(_weighted(hessian, masses)), members, "eV", scale)
    data = VibrationsData(atoms, hessian, indices=chosen)
    return Vibrations(data, energies, _rigid_modes(atoms, len(chosen)))


def mode_energies(dynamical: np.ndarray) -> np.ndarray:
    """sign(ω²) ħ|ω| in eV, in ascending order, of mass-weighted Hessians in eV/Å²/u, shape (..., 3 N, 3 N)."""
    squares = np.linalg.eigvalsh(dynamical)
    return HBAR_OMEGA * np.sign(squares) * np.sqrt(np.abs(squares))


def harmonic_energy(energies: np.ndarray, temperature: float) -> float:
    """Free energy of harmonic oscillators of ħω in eV, all positive, at a temperature in K."""
    zero_point = energies.sum() / 2
    if temperature == 0:
        return float(zero_point)
    kt = units.kB * temperature
    return float(zero_point + kt * np.log1p(-np.exp(-energies / kt)).sum())


def _weighted(hessian: np.ndarray, masses: np.ndarray) -> np.ndarray:
    root = np.sqrt(masses)
    weighted = hessian / root[:, None, None, None] / root[:, None]
    matrix = weighted.reshape(3 * len(masses), -1)
    return (matrix + matrix.T) / 2


def _rigid_modes(atoms: Atoms, n_moving: int) -> int:
    if n_moving < len(atoms):
        return 0
    if atoms.pbc.any():
        return 3 + (1 if atoms.pbc.sum() == 1 else 0)
    centred = atoms.positions - atoms.positions.mean(axis=0)
    return 3 + [0, 2, 3, 3][np.linalg.matrix_rank(centred, tol=1e-3)]
