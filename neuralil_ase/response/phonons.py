"""Phonons of a crystal from its primitive cell: no supercell, no displacements, any wave vector.

Force constants vanish beyond twice the cutoff. They are computed for one cell and all its images, so that

    D_ij(q) = Σ_shifts Φ_ij(shift) exp(2πi q · shift) / sqrt(m_i m_j)

is exact at every q. A potential of finite range has no long-range forces, and so no splitting of longitudinal and
transverse optical modes of polar crystals at q = 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from ase import Atoms, units
from ase.dft.kpoints import BandPath, monkhorst_pack
from ase.spectrum.band_structure import BandStructure
from ase.spectrum.dosdata import RawDOSData

from neuralil_ase.array_record import ArrayRecord
from neuralil_ase.calculator import NeuralILCalculator
from neuralil_ase.engine.force_constants import ForceConstants
from neuralil_ase.errors import StructureError
from neuralil_ase.files.atomic import write_atomically
from neuralil_ase.response.estimate import Estimate, error_scale
from neuralil_ase.response.vibrations import HBAR_OMEGA, harmonic_energy, mode_energies

if TYPE_CHECKING:
    from matplotlib.axes import Axes

THZ = 1e-12 * units._e / units._hplanck
"""THz of 1 eV."""
_PER_FS = units._e / units._hbar * 1e-15
"""Rate in 1/fs of 1 eV."""


@dataclass(frozen=True, eq=False, repr=False)
class Bands(ArrayRecord):
    """Phonon bands along a path.

    Attributes
    ----------
    band_structure
        Bands of the mean potential as an ASE object: energies ħω in eV, negative for imaginary ω.
    energies
        The same energies with members, spread and error bar; the value has shape (Q, 3 N).
    """

    band_structure: BandStructure
    energies: Estimate

    def plot(self, ax: "Axes", color: str = "C0") -> "Axes":
        """Draw the bands in THz into Matplotlib axes and return the axes. Error bars (spreads, if not calibrated) are
        shaded."""
        x, ticks, labels = self.band_structure.path.get_linear_kpoint_axis()
        width = self.energies.std if self.energies.scale is None else self.energies.error_bar
        values, bars = np.transpose(self.energies.value) * THZ, np.transpose(width) * THZ
        for value, bar in zip(values, bars, strict=True):
            ax.fill_between(x, value - bar, value + bar, color=color, alpha=0.3, linewidth=0)
            ax.plot(x, value, color=color, linewidth=1)
        ax.set_xticks(ticks, [label.replace("G", "Γ") for label in labels])
        for tick in ticks:
            ax.axvline(tick, color="0.7", linewidth=0.5)
        ax.axhline(0, color="0.5", linewidth=0.5)
        ax.set_xlim(x[0], x[-1])
        ax.set_ylabel("frequency (THz)")
        return ax


class Phonons:
    """Phonons of the mean potential and of every member.

    >>> from ase.build import bulk
    >>> from neuralil_ase import load_potential, NeuralILCalculator
    >>> from neuralil_ase.response import Phonons
    >>> calculator = NeuralILCalculator(load_potential("copper.safetensors"), dtype="float64")  # doctest: +SKIP
    >>> phonons = Phonons(bulk("Cu"), calculator)  # doctest: +SKIP
    >>> phonons.bands("GXWKGL").band_structure.plot()  # doctest: +SKIP

    Parameters
    ----------
    atoms
        The crystal, relaxed; its primitive cell is enough. Directions without periodicity have no dispersion.
    calculator
        The ensemble, with dtype="float64".

    Attributes
    ----------
    force_constants
        Force constants of all members.
    acoustic_residual
        Largest element of Σ_j Φ_ij in eV/Å². It would be zero in exact arithmetic (acoustic sum rule).

    Raises
    ------
    StructureError
        If the structure is not periodic.
    """

    def __init__(self, atoms: Atoms, calculator: NeuralILCalculator) -> None:
        if not atoms.pbc.any():
            raise StructureError("phonons need a periodic structure; for a molecule use vibrations")
        self.atoms = atoms.copy()
        self.force_constants = calculator.force_constants(atoms, members=True)
        self._mean = self.force_constants.mean()
        self.acoustic_residual = self._mean.translation_residual()
        self._scale = error_scale(calculator.potential, atoms.get_chemical_symbols())
        root = np.repeat(np.sqrt(atoms.get_masses()), 3)
        self._root_masses = np.outer(root, root)

    def energies(self, q_points: np.ndarray) -> Estimate:
        """ħω in eV at wave vectors in units of the reciprocal lattice vectors, shape (Q, 3).

        The value has shape (Q, 3 N), in ascending order. Negative numbers stand for imaginary ω. Bands of members are
        also sorted by energy; at a crossing, the spread therefore belongs to the lower and the upper band.
        """
        of_mean, of_members = [], []
        for q in np.reshape(q_points, (-1, 3)):
            matrices = self.force_constants.at_wave_vector(q) / self._root_masses
            of_members.append(mode_energies(matrices))
            of_mean.append(mode_energies(matrices.mean(axis=0)))
        members = np.stack(of_members, axis=1)
        return Estimate(np.array(of_mean), members, "eV", self._scale)

    def bands(self, path: str | BandPath | None = None, npoints: int = 100) -> Bands:
        """Bands along a path.

        Parameters
        ----------
        path
            An ASE band path, or its special points ("GXWKGL"), or None for ASE's path of this lattice.
        npoints
            Number of points along the path, if it is not a BandPath.
        """
        along = path
        if not isinstance(along, BandPath):
            along = self.atoms.cell.bandpath(path, npoints=npoints, pbc=self.atoms.pbc)
        energies = self.energies(along.kpts)
        return Bands(BandStructure(along, np.asarray(energies.value)[None]), energies)

    def dos(self, mesh: Sequence[int] = (20, 20, 20)) -> RawDOSData:
        """Density of states of the mean potential as an ASE object, with 3 N states per cell.

        ``sample_grid(npts, width=0.0002)`` broadens it; energies are ħω in eV.
        """
        return self._dos(np.asarray(self.energies(self._mesh(mesh)).value))

    def member_dos(self, mesh: Sequence[int] = (20, 20, 20)) -> list[RawDOSData]:
        """Density of states of every member."""
        return [self._dos(member) for member in self.energies(self._mesh(mesh)).members]

    def helmholtz_energy(self, temperature: float, mesh: Sequence[int] = (10, 10, 10)) -> Estimate:
        """Harmonic free energy per cell in eV, zero-point energy included, at a temperature in K.

        The mesh does not contain q = 0, where acoustic modes have no energy.

        Raises
        ------
        StructureError
            If a mode of the mean or of a member is imaginary. There is then no harmonic free energy.
        """
        q_points = monkhorst_pack(mesh)
        q_points += np.where(np.array(mesh) % 2 == 1, 0.5 / np.array(mesh), 0) * self.atoms.pbc
        energies = self.energies(q_points)
        lowest = min(np.min(energies.value), energies.members.min())
        if lowest <= 0:
            raise StructureError(
                f"a mode has ħω = {lowest:.4g} eV (imaginary): the crystal is not stable in the mean or in a member. "
                "Relax it, or find the mode with bands()"
            )
        return energies.map(lambda e: harmonic_energy(e, temperature) / len(q_points), "eV")

    def group_velocities(self, q_points: np.ndarray) -> np.ndarray:
        """dω/dq of the mean potential in Å/fs (100 km/s), shape (Q, 3 N, 3), Cartesian.

        At a crossing of bands, the velocities depend on the modes that the diagonalisation returns. They are NaN at
        ω = 0.
        """
        n, vectors = len(self.atoms), self._mean.shifts @ self.atoms.cell.array
        found = np.full((len(np.reshape(q_points, (-1, 3))), 3 * n, 3), np.nan)
        for k, q in enumerate(np.reshape(q_points, (-1, 3))):
            phases = np.exp(2j * np.pi * (self._mean.shifts @ q))
            squares, modes = np.linalg.eigh(self._mean.weighted(phases) / self._root_masses)
            moving = squares > 1e-8
            for axis in range(3):
                slope = self._mean.weighted(1j * vectors[:, axis] * phases) / self._root_masses
                rates = np.einsum("im,ij,jm->m", modes.conj(), slope, modes).real
                found[k, moving, axis] = rates[moving] / (2 * np.sqrt(squares[moving]))
        return found * HBAR_OMEGA * _PER_FS

    def write_force_constants(
        self, path: str | PathLike[str], supercell: Sequence[int], *, full: bool = False
    ) -> None:
        """Write phonopy's FORCE_CONSTANTS of the mean potential, in eV/Å².

        Parameters
        ----------
        path
            The file. An existing file is replaced.
        supercell
            Repetitions of the cell, shape (3,), as in phonopy's DIM. Interactions longer than the supercell are folded
            into it, as in a finite-displacement calculation.
        full
            Write rows for all atoms of the supercell instead of only those of the first cell.
        """
        matrix = supercell_force_constants(self._mean, np.array(supercell), full=full)
        lines = [f"{matrix.shape[0]:4d} {matrix.shape[1]:4d}"]
        step = 1 if full else int(np.prod(supercell))
        for i, row in enumerate(matrix):
            for j, block in enumerate(row):
                lines.append(f"{i * step + 1:4d} {j + 1:4d}")
                lines += ["".join(f"{x:22.15f}" for x in values) for values in block]
        write_atomically(Path(path), ("\n".join(lines) + "\n").encode())

    def _mesh(self, mesh: Sequence[int]) -> np.ndarray:
        return monkhorst_pack(np.where(self.atoms.pbc, mesh, 1))

    def _dos(self, energies: np.ndarray) -> RawDOSData:
        return RawDOSData(energies.ravel(), np.full(energies.size, 1 / len(energies)))


def supercell_force_constants(
    constants: ForceConstants, supercell: np.ndarray, *, full: bool
) -> np.ndarray:
    """Force constants between atoms of a supercell in phonopy's order: all images of atom 0, then of atom 1, …

    The images of an atom are numbered with the first repetition running fastest. Shape (N or S, S, 3, 3) for S atoms.
    """
    count = int(np.prod(supercell))

    def number(atoms: np.ndarray, cells: np.ndarray) -> np.ndarray:
        a, b, c = (cells % supercell).T
        return atoms * count + a + supercell[0] * (b + supercell[1] * c)

    a, b, c = np.meshgrid(*(np.arange(n) for n in supercell), indexing="ij")
    origins = np.stack([a, b, c], axis=-1).reshape(-1, 3) if full else np.zeros((1, 3), int)
    n_rows = constants.n_atoms * (count if full else 1)
    matrix = np.zeros((n_rows, constants.n_atoms * count, 3, 3))
    for origin in origins:
        here = np.broadcast_to(origin, constants.shifts.shape)
        rows = number(constants.first, here) if full else constants.first
        np.add.at(
            matrix, (rows, number(constants.second, here + constants.shifts)), constants.blocks
        )
    return matrix
