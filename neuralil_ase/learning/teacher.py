"""Checks the teacher: whether it gives energies and forces, and whether their signs and units can be right."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms
from ase.data import covalent_radii
from ase.units import Bohr, GPa, Hartree

from neuralil_ase.engine.neighbors import NeighborList
from neuralil_ase.errors import ConfigError, TeacherError
from neuralil_ase.prediction import Prediction

logger = logging.getLogger(__name__)
SLOPE_ERROR = 0.2
"""Largest difference between the change of the energy and the integral of the forces (trapezoidal rule), as a fraction
of the terms in it. EMT metals and GFN1-xTB molecules, rattled by 0.05 Å, differ by less than 0.03."""
STIFFNESS = 12.0
"""Largest factor between the stiffness found and the estimate. Energies in Hartree give a factor of 27, in kcal/mol 23.
The estimate is within a factor of 3 for metals (EMT), oxides and molecules (GFN1-xTB)."""
SOFT = 1.0
"""Below this stiffness in eV/Å² the estimate is not used: van der Waals crystals, rare gases."""
CLEAR, ALIKE = 3.0, 0.9
"""Forces are compared if those of the model are larger than their error bars by this factor, and if the cosine between
them and those of the teacher is larger than this."""
STRAIN, RATTLE = 0.02, 0.05
"""Standard deviations of the components of the strain, and of each coordinate in Å, of a disturbed structure."""
STRESS_ERROR = 0.08
"""As ``SLOPE_ERROR``, if another unit or sign of the stress would explain the difference."""
WITHOUT_STRESS = 0.4
"""As ``SLOPE_ERROR``, for a strained structure whose stress the teacher did not give. In metals (EMT), the work of the
strain is 0.12 to 0.15 of the largest one."""
NEAR, MOST_RATTLED = 0.1, 0.3
"""Largest difference of lattice vectors, relative to the longest one, and largest displacement in Å of two structures
that tell the units."""
SIMILAR = 1.5
"""Two works of the stress agree within this factor."""
LONGEST_TEXT = 200
"""Number of characters of a parameter of the teacher that are kept."""
ROWS = (1, 3, 11)
"""First atomic numbers of the rows of Lindh's model: H He, Li to Ne, the rest."""
EXPONENT = np.array([[1.0, 0.3949, 0.3949], [0.3949, 0.28, 0.28], [0.3949, 0.28, 0.28]])
DISTANCE = np.array([[1.35, 2.10, 2.53], [2.10, 2.87, 3.40], [2.53, 3.40, 3.40]])
FORCE_CONSTANT = np.array([[0.45, 0.45, 0.45], [0.45, 0.45, 0.45], [0.45, 0.45, 0.9]])
"""For the heaviest pairs, twice the published value. The stiffness of EMT metals is then 0.6 to 2 times the estimate;
with the published value it is 1.1 to 4 times the estimate."""


def check_same_teacher(
    before: tuple[str, Mapping[str, str]] | None, now: tuple[str, Mapping[str, str]], folder: Path
) -> None:
    """Check that the labels in the folder are by the same teacher; class and parameters each.

    Raises
    ------
    ConfigError
        If they are by another class of calculator. Other parameters are only reported.
    """
    if before is None:
        return
    if before[0] != now[0]:
        raise ConfigError(
            f"the labels in {folder} are by {before[0]}, and the teacher is now {now[0]}: labels of two teachers must "
            "not be mixed. Choose another folder, or use the same teacher as before"
        )
    changed = changed_parameters(before[1], now[1])
    if changed:
        logger.warning(
            "%s has other parameters than when the labels in %s were made: %s. If they change energies or forces, the "
            "labels of two teachers are mixed now: choose another folder, or set the parameters as before",
            now[0], folder, changed,
        )  # fmt: skip


def check_offers(teacher: Any) -> None:
    """Check that the teacher can label frames, before anything is computed.

    Raises
    ------
    TeacherError
        If the teacher is not an ASE calculator, or has no energy or no forces.
    """
    offered = getattr(teacher, "implemented_properties", None)
    if offered is None or not callable(getattr(teacher, "get_property", None)):
        raise TeacherError(
            f"the teacher is a {type(teacher).__name__}, which is not an ASE calculator: give an object like EMT() or "
            "Vasp(...), not its class or its name"
        )
    missing = [name for name in ("energy", "forces") if name not in offered]
    if missing:
        raise TeacherError(
            f"the teacher {type(teacher).__name__} has no {' and no '.join(missing)} (it offers {', '.join(offered)}). "
            "Learning needs energies and forces: choose another calculator, or switch them on in this one"
        )


def parameters_of(teacher: Any) -> dict[str, str]:
    """The parameters of an ASE calculator as text, by name; those without a readable value are left out."""
    given = getattr(teacher, "parameters", None)
    if not isinstance(given, Mapping):
        return {}
    texts = {str(name): repr(value) for name, value in given.items()}
    return {name: text[:LONGEST_TEXT] for name, text in texts.items() if " at 0x" not in text}


def changed_parameters(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """The parameters that differ, in words; empty if none does."""
    return ", ".join(
        f"{name} (before: {before.get(name, 'not set')}, now: {now.get(name, 'not set')})"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    )


def disturbed(atoms: Atoms, rng: np.random.Generator, with_strain: bool) -> Atoms:
    """A copy with displaced atoms, from which :func:`check_units` tells units and signs.

    ``with_strain`` also strains the cell at constant volume, if there is one. Only the anisotropic part of the stress
    acts then: the Pulay stress of plane waves, which belongs to no energy, is mostly isotropic.
    """
    copy = atoms.copy()
    if with_strain and atoms.cell.rank == 3 and atoms.pbc.all():
        strain = rng.normal(0, STRAIN, (3, 3))
        strain = (strain + strain.T) / 2
        strain -= np.eye(3) * np.trace(strain) / 3
        copy.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
    copy.positions += rng.normal(0, RATTLE, copy.positions.shape)
    return copy


def is_disturbed(first: Atoms, second: Atoms) -> bool:
    """Whether two structures are near enough for :func:`check_units`."""
    if not np.array_equal(first.numbers, second.numbers) or first.cell.rank != second.cell.rank:
        return False
    if np.abs(first.cell.array - second.cell.array).max() > NEAR * np.abs(first.cell.array).max():
        return False
    step = second.positions - first.positions @ _deformation(first, second)
    return 0 < float(np.abs(step).max()) < MOST_RATTLED


def _deformation(first: Atoms, second: Atoms) -> np.ndarray:
    """The matrix that, multiplied from the right, makes the cell of the first structure that of the second."""
    if first.cell.rank < 3:
        return np.eye(3)
    return np.linalg.inv(first.cell.array) @ second.cell.array


class _Works(NamedTuple):
    """The change of the energy between two structures, and what forces and stress say of it, in eV.

    ``at_ends`` are minus the works of the forces at both structures alone.
    """

    change: float
    of_forces: float
    of_stress: float | None
    at_ends: tuple[float, float]
    step: np.ndarray

    @classmethod
    def between(cls, first: Atoms, second: Atoms) -> "_Works":
        """By the trapezoidal rule, along the straight way of cell and fractional coordinates."""
        change = second.get_potential_energy() - first.get_potential_energy()
        deformed = _deformation(first, second)
        step = second.positions - first.positions @ deformed
        at_ends = (
            float(-(first.get_forces() * (step @ np.linalg.inv(deformed))).sum()),
            float(-(second.get_forces() * step).sum()),
        )
        strain = deformed - np.eye(3)
        of_stress = None if np.abs(strain).max() > 1e-9 else 0.0
        if of_stress is None and all("stress" in a.calc.results for a in (first, second)):
            stresses = [a.get_volume() * a.get_stress(voigt=False) for a in (first, second)]
            ends = stresses[0] * strain, stresses[1] * (np.linalg.inv(deformed) @ strain)
            of_stress = float(sum(end.sum() for end in ends)) / 2
        return cls(change, sum(at_ends) / 2, of_stress, at_ends, step)


def check_units(first: Atoms, second: Atoms) -> None:
    """Check with two labelled geometries that forces and stress belong to the energies, and that units can be right.

    Parameters
    ----------
    first, second
        The same atoms a few hundredths of an Å apart, perhaps in a strained cell, with energy and forces.

    Raises
    ------
    TeacherError
        If the forces or stresses do not belong to the energies, or the units cannot be right.
    """
    works = _Works.between(first, second)
    found = (works.at_ends[1] - works.at_ends[0]) / float((works.step**2).sum())
    usual = usual_stiffness(first, works.step)
    # A negative stiffness is no sign of wrong units: the structure may be far from a minimum.
    if usual > SOFT and found > 0 and not usual / STIFFNESS < found < usual * STIFFNESS:
        raise TeacherError(
            f"the teacher's bonds have a stiffness of {found:.3g} eV/Å², but about {usual:.3g} is usual for such "
            f"atoms. Usually its energies and forces are in other units than eV and eV/Å (1 Hartree is "
            f"{Hartree:.3g} eV, 1 kcal/mol 0.0434 eV), or the structure is unphysical. Convert the units, or "
            "give check_teacher=False"
        )
    tolerated = SLOPE_ERROR if works.of_stress is not None else WITHOUT_STRESS
    of_stress = works.of_stress or 0.0
    expected = works.of_forces + of_stress
    size = max(abs(works.change), *map(abs, works.at_ends), abs(of_stress), 1e-3)
    wrong = abs(works.change - expected) / size
    unit = _unit_of_stress(of_stress, works.change - works.of_forces, first)
    if wrong <= (tolerated if unit is None else STRESS_ERROR):
        return
    if unit is not None or abs(of_stress) > CLEAR * max(abs(works.change), abs(works.of_forces)):
        raise TeacherError(
            f"the teacher's stress is not the slope of its energy: a strain changes the energy by "
            f"{works.change - works.of_forces:.3g} eV, but the stress predicts {of_stress:.3g} eV"
            f"{'' if unit is None else f' (as if it were {unit})'}. ASE's stress is in eV/Å³ (1 GPa is {GPa:.3g}) and "
            "positive under tension. Correct the calculator, or give check_teacher=False"
        )
    raise TeacherError(
        f"the teacher's forces are not the slope of its energy: between two structures "
        f"{np.abs(works.step).max():.3f} Å apart the energy changes by {works.change:.4g}, but its forces predict "
        f"{expected:.4g}. Usually one of them is in other units (ASE's are eV and eV/Å), has the wrong sign, or the "
        "calculation is not converged. Correct the calculator, or give check_teacher=False"
    )


def _unit_of_stress(found: float, expected: float, atoms: Atoms) -> str | None:
    """Unit and sign of a stress that gives ``found`` instead of ``expected``; None if right or unknown."""
    if not found or not expected:
        return None
    ratio = found / expected
    units = {"in eV/Å³": 1.0, "in GPa": 1 / GPa, "in kB": 10 / GPa, "a virial": atoms.get_volume()}
    for name, factor in units.items():
        if abs(np.log(abs(ratio) / factor)) < np.log(SIMILAR) and (ratio < 0 or factor != 1):
            return name if ratio > 0 else f"{name} with the opposite sign"
    return None


def check_scale(predictions: Sequence[Prediction | None], labelled: Sequence[Atoms]) -> None:
    """Check the units of forces by a model that knows the structures.

    Nothing is said about a structure whose forces are not larger than their error bars.

    Raises
    ------
    TeacherError
        If the teacher's forces have the direction of the model's, but another size.
    """
    for prediction, label in zip(predictions, labelled, strict=True):
        if prediction is None:
            continue
        expected, found = prediction.forces.ravel(), label.get_forces().ravel()
        size, bar = _norm(expected), _norm(prediction.forces_error_bar)
        ratio = _norm(found) / max(size, 1e-9)
        cosine = float(expected @ found) / max(size**2 * ratio, 1e-9)
        if size > CLEAR * bar and cosine > ALIKE and not 1 / STIFFNESS < ratio < STIFFNESS:
            raise TeacherError(
                f"the teacher's forces have the directions of the model's, but are {ratio:.3g} times as large. Usually "
                f"the teacher is in other units than eV and eV/Å (1 Hartree is {Hartree:.3g} eV, 1 kcal/mol 0.0434 "
                "eV), or it is another one than before. Convert the units, or give check_teacher=False"
            )


def _norm(values: np.ndarray) -> float:
    return float(np.linalg.norm(values))


def usual_stiffness(atoms: Atoms, step: np.ndarray) -> float:
    """Second derivative of the energy along a displacement in eV/Å², from the bond terms of Lindh's model Hessian.

    k = 0.45 exp(α (r₀² - r²)) in atomic units for every pair, α and r₀ by row of the periodic table: Lindh,
    Bernhardsson, Karlström and Malmqvist, Chem. Phys. Lett. 241, 423 (1995).
    """
    types = np.searchsorted(ROWS, atoms.numbers, side="right") - 1
    found = NeighborList(6.0, skin=0).pairs(
        atoms.positions, atoms.cell.array, atoms.pbc, np.zeros(len(atoms), int)
    )
    i, j = found.centers, found.neighbors
    lengths = np.linalg.norm(found.vectors, axis=1)
    alpha, r0 = EXPONENT[types[i], types[j]], DISTANCE[types[i], types[j]]
    # At distances below bond lengths the estimate would grow far too large.
    shortest = 0.6 * (covalent_radii[atoms.numbers[i]] + covalent_radii[atoms.numbers[j]])
    r = np.maximum(lengths, shortest) / Bohr
    constants = (
        FORCE_CONSTANT[types[i], types[j]] * np.exp(alpha * (r0**2 - r**2)) * Hartree / Bohr**2
    )
    along = ((step[j] - step[i]) * found.vectors).sum(axis=1) / np.maximum(lengths, 1e-9)
    return float((constants * along**2).sum() / 2 / max(float((step**2).sum()), 1e-30))
