"""Checks the teacher: whether it gives energies and forces, and whether their signs and units can be right."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import covalent_radii
from ase.units import Bohr, Hartree

from neuralil_ase.engine.neighbors import NeighborList
from neuralil_ase.errors import TeacherError
from neuralil_ase.prediction import Prediction

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
LONGEST_TEXT = 200
"""Number of characters of a parameter of the teacher that are kept."""
ROWS = (1, 3, 11)
"""First atomic numbers of the rows of Lindh's model: H He, Li to Ne, the rest."""
EXPONENT = np.array([[1.0, 0.3949, 0.3949], [0.3949, 0.28, 0.28], [0.3949, 0.28, 0.28]])
DISTANCE = np.array([[1.35, 2.10, 2.53], [2.10, 2.87, 3.40], [2.53, 3.40, 3.40]])
FORCE_CONSTANT = np.array([[0.45, 0.45, 0.45], [0.45, 0.45, 0.45], [0.45, 0.45, 0.9]])
"""For the heaviest pairs, twice the published value. The stiffness of EMT metals is then 0.6 to 2 times the estimate;
with the published value it is 1.1 to 4 times the estimate."""


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


def check_units(first: Atoms, rattled: Atoms) -> None:
    """Check with two labelled geometries that the forces belong to the energies, and that both are in eV and Å.

    Parameters
    ----------
    first, rattled
        The same atoms a few hundredths of an Å apart, with energy and forces.

    Raises
    ------
    TeacherError
        If the forces do not belong to the energies, or the units cannot be right.
    """
    step = rattled.positions - first.positions
    forces = first.get_forces(), rattled.get_forces()
    change = rattled.get_potential_energy() - first.get_potential_energy()
    work = [float((force * step).sum()) for force in forces]
    expected = -sum(work) / 2
    size = max(abs(change), *map(abs, work), 1e-3)
    if abs(change - expected) > SLOPE_ERROR * size:
        raise TeacherError(
            f"the teacher's forces are not the slope of its energy: between two structures {np.abs(step).max():.3f} Å "
            f"apart the energy changes by {change:.4g}, but its forces predict {expected:.4g}. Usually one of them is "
            "in other units (ASE's are eV and eV/Å), has the wrong sign, or the calculation is not converged. Correct "
            "the calculator, or give check_teacher=False"
        )
    square = float((step**2).sum())
    found = (work[0] - work[1]) / square
    usual = usual_stiffness(first, step)
    # A negative stiffness is no sign of wrong units: the structure may be far from a minimum.
    if usual > SOFT and found > 0 and not usual / STIFFNESS < found < usual * STIFFNESS:
        raise TeacherError(
            f"the teacher's bonds have a stiffness of {found:.3g} eV/Å², but about {usual:.3g} is usual for such "
            f"atoms. Usually its energies and forces are in other units than eV and eV/Å (1 Hartree is "
            f"{Hartree:.3g} eV, 1 kcal/mol 0.0434 eV), or the structure is unphysical. Convert the units, or "
            "give check_teacher=False"
        )


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
