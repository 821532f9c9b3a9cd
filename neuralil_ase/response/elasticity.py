"""Elastic constants from exact second derivatives with respect to strain, and equations of state."""

import warnings
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.eos import EquationOfState as AseEquationOfState
from ase.stress import voigt_6_to_full_3x3_stress
from numpy.typing import ArrayLike

from neuralil_ase.array_record import ArrayRecord
from neuralil_ase.calculator import NeuralILCalculator
from neuralil_ase.engine.force_constants import ForceConstants
from neuralil_ase.errors import StructureError
from neuralil_ase.farm import predict_many
from neuralil_ase.prediction import to_voigt
from neuralil_ase.response.estimate import Estimate, error_scale

LARGEST_FORCE = 0.05
"""Largest force in eV/Å of a relaxed structure. Above it, the response of the ions to strain has little meaning."""


@dataclass(frozen=True, eq=False, repr=False)
class ElasticConstants(ArrayRecord):
    """dσ_I/dε_J of a crystal in eV/Å³ (160.2177 GPa), Voigt order xx yy zz yz xz xy, engineering shear strains.

    Attributes
    ----------
    clamped
        Ions follow the cell, shape (6, 6).
    relaxed
        Ions relax in the strained cell, shape (6, 6). Experiments and strain fits give these constants.
    """

    clamped: Estimate
    relaxed: Estimate

    @property
    def is_stable(self) -> bool:
        """Born's criterion for the mean potential: the relaxed matrix is positive definite."""
        return bool(_symmetric_eigenvalues(np.asarray(self.relaxed.value)).min() > 0)

    @property
    def share_of_stable_members(self) -> float:
        """Fraction of the members for which the crystal is stable."""
        lowest = _symmetric_eigenvalues(self.relaxed.members).min(axis=-1)
        return float((lowest > 0).mean())

    @property
    def bulk_modulus(self) -> Estimate:
        """Hill's average of the bulk modulus (of Voigt's and Reuss's), relaxed ions, eV/Å³."""
        return self.relaxed.map(lambda c: _averages(c)["hill"][0], "eV/Å³")

    @property
    def shear_modulus(self) -> Estimate:
        """Hill's average of the shear modulus, relaxed ions, eV/Å³."""
        return self.relaxed.map(lambda c: _averages(c)["hill"][1], "eV/Å³")

    def moduli(self, average: str) -> Estimate:
        """Bulk and shear modulus of a polycrystal in eV/Å³, shape (2,), as "voigt", "reuss" or "hill" average."""
        return self.relaxed.map(lambda c: np.array(_averages(c)[average]), "eV/Å³")


def elastic_constants(atoms: Atoms, calculator: NeuralILCalculator) -> ElasticConstants:
    """Elastic constants of a structure. They are exact to rounding errors, because no finite strain is applied.

    With E_ab,cd the second derivative of the energy by strain, Λ the mixed one by displacements and strain, Φ the
    Hessian and σ the present stress,

        dσ_ab/dε_cd = (E_ab,cd - Λ_ab Φ⁻¹ Λ_cd)/V - σ_ab δ_cd + σ_ac δ_bd

    symmetrised in c and d. These are the slopes of the Cauchy stress, as in a strain fit. Without stress they are the
    elastic constants. Under stress they enter Born's criterion (Wallace, Thermodynamics of Crystals, 1972).

    Parameters
    ----------
    atoms
        A relaxed structure with three lattice vectors.
    calculator
        The ensemble, with dtype="float64".

    Raises
    ------
    StructureError
        If the cell has no volume.

    Warns
    -----
    UserWarning
        If forces above 0.05 eV/Å act.
    """
    prediction = calculator.prediction(atoms, uncertainty="forces")
    if not prediction.holds("stress"):
        raise StructureError("elastic constants need a cell with a volume: three lattice vectors")
    largest = float(np.linalg.norm(prediction.forces, axis=1).max())
    if largest > LARGEST_FORCE:
        warnings.warn(
            f"the ions are not relaxed: the largest force is {largest:.3g} eV/Å. Relax the structure before computing "
            "its elastic constants",
            stacklevel=2,
        )
    constants = calculator.force_constants(atoms, members=True)
    volume, stresses = atoms.cell.volume, np.asarray(prediction.member_stresses)
    scale = error_scale(calculator.potential, atoms.get_chemical_symbols())

    def both(part: ForceConstants, stress: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mixed = strain_coupling(part, atoms)
        moved = internal_strain(part, mixed).reshape(-1, 9)
        relaxation = np.einsum("ki,kj->ij", mixed.reshape(-1, 9), moved).reshape(3, 3, 3, 3)
        clamped = part.by_strain / volume
        return _stiffness(clamped, stress), _stiffness(clamped + relaxation / volume, stress)

    mean = both(constants.mean(), np.asarray(prediction.stress))
    members = [both(constants.member(m), stress) for m, stress in enumerate(stresses)]
    clamped, relaxed = (
        Estimate(value, np.array(of_members), "eV/Å³", scale)
        for value, of_members in zip(mean, zip(*members, strict=True), strict=True)
    )
    return ElasticConstants(clamped, relaxed)


def strain_coupling(constants: ForceConstants, atoms: Atoms) -> np.ndarray:
    """Λ = d²E / dr_ic dε_ab in eV/Å, shape (N, 3, 3, 3): minus the derivative of the forces by strain."""
    between = (
        atoms.positions[constants.second]
        + constants.shifts @ atoms.cell.array
        - atoms.positions[constants.first]
    )
    terms = np.einsum("kca,kb->kcab", constants.blocks, between)
    coupling = np.zeros((constants.n_atoms, 3, 3, 3))
    np.add.at(coupling, constants.first, terms)
    return coupling


def internal_strain(constants: ForceConstants, coupling: np.ndarray) -> np.ndarray:
    """dr/dε of ions that relax in the strained cell, without their motion with the cell: (3 N, 3, 3), in Å."""
    hessian = constants.sparse().toarray()
    n = constants.n_atoms
    # A common translation has no stiffness. An artificial stiffness of usual size makes the matrix invertible.
    translations = np.tile(np.eye(3), (n, 1)) / np.sqrt(n)
    regular = hessian + np.abs(hessian).max() * translations @ translations.T
    return -np.linalg.solve(regular, coupling.reshape(3 * n, 9)).reshape(3 * n, 3, 3)


def _stiffness(by_strain: np.ndarray, stress: np.ndarray) -> np.ndarray:
    """dσ_I/dε_J, shape (6, 6), from the second derivatives by strain divided by the volume, and the stress (Voigt)."""
    s, delta = voigt_6_to_full_3x3_stress(stress), np.eye(3)
    slopes = by_strain - np.einsum("ab,cd->abcd", s, delta) + np.einsum("ac,bd->abcd", s, delta)
    return to_voigt(np.moveaxis(to_voigt(slopes), -1, 0)).T


def _averages(c: np.ndarray) -> dict[str, tuple[float, float]]:
    """Bulk and shear modulus of a polycrystal, Voigt, Reuss and Hill; Hill, Proc. Phys. Soc. A 65, 349 (1952)."""
    s = np.linalg.inv(c)

    def sums(m: np.ndarray) -> tuple[float, float, float]:
        return np.trace(m[:3, :3]), m[0, 1] + m[1, 2] + m[0, 2], np.trace(m[3:, 3:])

    diagonal, off, shear = sums((c + c.T) / 2)
    voigt = (diagonal + 2 * off) / 9, (diagonal - off + 3 * shear) / 15
    diagonal, off, shear = sums((s + s.T) / 2)
    reuss = 1 / (diagonal + 2 * off), 15 / (4 * diagonal - 4 * off + 3 * shear)
    hill = (voigt[0] + reuss[0]) / 2, (voigt[1] + reuss[1]) / 2
    found = {"voigt": voigt, "reuss": reuss, "hill": hill}
    return {name: (float(bulk), float(shear)) for name, (bulk, shear) in found.items()}


def _symmetric_eigenvalues(c: np.ndarray) -> np.ndarray:
    return np.linalg.eigvalsh((c + np.swapaxes(c, -1, -2)) / 2)


@dataclass(frozen=True, eq=False, repr=False)
class EquationOfState(ArrayRecord, units={"volumes": "Å³"}):
    """Minimum of the energy over volumes, fitted for the mean and for every member.

    Attributes
    ----------
    volume, energy, bulk_modulus
        Values at the minimum, in Å³, eV and eV/Å³.
    volumes, energies
        The fitted data: volumes in Å³, shape (V,), and energies in eV.
    """

    volume: Estimate
    energy: Estimate
    bulk_modulus: Estimate
    volumes: np.ndarray
    energies: Estimate


def equation_of_state(
    atoms: Atoms,
    calculator: NeuralILCalculator,
    strains: ArrayLike = (-0.03, -0.02, -0.01, 0.0, 0.01, 0.02, 0.03),
    eos: str = "birchmurnaghan",
) -> EquationOfState:
    """Equation of state at fixed fractional coordinates, from one batch of predictions for all members.

    Parameters
    ----------
    atoms
        The structure, near its equilibrium volume.
    calculator
        The ensemble.
    strains
        Relative changes of all lengths, shape (V,); five or more.
    eos
        Name of an equation of state in ``ase.eos``.

    Raises
    ------
    StructureError
        If a minimum does not lie inside the volumes.
    """
    scaled = []
    for strain in np.asarray(strains, float):
        scaled.append(atoms.copy())
        scaled[-1].set_cell(atoms.cell.array * (1 + strain), scale_atoms=True)
    predictions = predict_many(calculator.potential, scaled, dtype="float64", uncertainty="energy")
    volumes = np.array([structure.cell.volume for structure in scaled])
    energies = np.array([prediction.energy for prediction in predictions])
    members = np.array([np.asarray(p.member_energies) for p in predictions]).T
    scale = error_scale(calculator.potential, atoms.get_chemical_symbols())
    fitted = Estimate(energies, members, "eV", scale).map(lambda e: _fit(volumes, e, eos), "")
    volume, energy, bulk = (
        Estimate(float(np.asarray(fitted.value)[k]), fitted.members[:, k], unit, scale)
        for k, unit in enumerate(("Å³", "eV", "eV/Å³"))
    )
    return EquationOfState(volume, energy, bulk, volumes, Estimate(energies, members, "eV", scale))


def _fit(volumes: np.ndarray, energies: np.ndarray, eos: str) -> np.ndarray:
    try:
        v, e, b = AseEquationOfState(volumes, energies, eos=eos).fit(warn=False)
    except (RuntimeError, ValueError) as error:
        raise StructureError(
            f"the energies have no minimum to fit ({error}); start nearer to equilibrium"
        ) from error
    if not volumes.min() < v < volumes.max():
        raise StructureError(
            f"the minimum at {v:.4g} Å³ lies outside the volumes {volumes.min():.4g} to {volumes.max():.4g} Å³; start "
            "nearer to equilibrium, or give wider strains"
        )
    return np.array([v, e, b])
