"""Force constants: a sparse record of second derivatives, and pair velocities for derivatives along a motion.

``stars`` computes them. Uses no JAX.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.sparse import bsr_array, csr_array

from neuralil_ase.array_record import ArrayRecord
from neuralil_ase.engine.neighbors import Pairs
from neuralil_ase.errors import StructureError


@dataclass(frozen=True, eq=False, repr=False)
class ForceConstants(ArrayRecord, units={"blocks": "eV/Å²", "by_strain": "eV"}):
    """Second derivatives of the energy of a structure of N atoms, for the mean over members or for all M members.

    Block k is d²E / dr_i dr_j' in eV/Å². Atom i = first[k] is in the cell, and j' is the image of atom j = second[k]
    that is ``shifts[k]`` lattice vectors away. Every (i, j, shift) occurs once, the pair (i, i, 0) included. The block
    of (j, i, -shift) is the transpose of the block of (i, j, shift).

    Attributes
    ----------
    n_atoms
        N.
    first, second
        i and j, shape (B,), sorted by i, then j.
    shifts
        In lattice vectors, shape (B, 3), int; zeros without periodicity.
    blocks
        In eV/Å², shape (B, 3, 3), or (M, B, 3, 3) for all members, float64.
    by_strain
        d²E/dε_ab dε_cd in eV at fixed fractional coordinates, when all vectors r become (1 + ε) r: shape
        (3, 3, 3, 3), or (M, 3, 3, 3, 3). Not symmetric in a and b under stress.
    """

    n_atoms: int
    first: np.ndarray
    second: np.ndarray
    shifts: np.ndarray
    blocks: np.ndarray
    by_strain: np.ndarray

    @property
    def has_members(self) -> bool:
        """Whether there are separate blocks for each member."""
        return self.blocks.ndim == 4

    @property
    def nbytes(self) -> int:
        """Memory of the record in bytes."""
        arrays = (self.first, self.second, self.shifts, self.blocks, self.by_strain)
        return sum(array.nbytes for array in arrays)

    def mean(self) -> "ForceConstants":
        """Force constants of the mean over members. They are exact, because derivatives are linear in the energy."""
        if not self.has_members:
            return self
        return replace(self, blocks=self.blocks.mean(axis=0), by_strain=self.by_strain.mean(axis=0))

    def member(self, index: int) -> "ForceConstants":
        """Force constants of one member; needs the blocks of all members."""
        return replace(self, blocks=self.blocks[index], by_strain=self.by_strain[index])

    def hessian(self) -> np.ndarray:
        """d²E / dr_ia dr_jb of atoms that move with all their images: (N, 3, N, 3), or (M, N, 3, N, 3), eV/Å²."""
        n, parts = self.n_atoms, [self]
        if self.has_members:
            parts = [self.member(m) for m in range(len(self.blocks))]
        dense = np.stack([part.sparse().toarray().reshape(n, 3, n, 3) for part in parts])
        return dense if self.has_members else dense[0]

    def sparse(self) -> bsr_array:
        """The Hessian as a SciPy array of shape (3 N, 3 N) of 3 × 3 blocks, for the mean or one member."""
        self._needs_one("sparse()")
        keys = self.first.astype(np.int64) * self.n_atoms + self.second
        keys, blocks = summed(keys, self.blocks.reshape(len(keys), 9))
        indptr = np.searchsorted(keys, np.arange(self.n_atoms + 1, dtype=np.int64) * self.n_atoms)
        data = blocks.reshape(-1, 3, 3), keys % self.n_atoms, indptr
        return bsr_array(data, shape=(3 * self.n_atoms, 3 * self.n_atoms))

    def product(self, displacements: np.ndarray) -> np.ndarray:
        """Hessian times displacements, shape (N, 3): the change of -F to first order, (N, 3) or (M, N, 3)."""
        # One product for each block, then the sum over blocks with the same first atom.
        turned = np.einsum("...kab,kb->...ka", self.blocks, displacements[self.second])
        flat = np.moveaxis(turned, -2, 0).reshape(len(self.first), -1)
        sums = summation(self.first, self.n_atoms) @ flat
        return np.moveaxis(sums.reshape(self.n_atoms, *turned.shape[:-2], 3), 0, -2)

    def at_wave_vector(self, q: np.ndarray) -> np.ndarray:
        """Σ_shifts Φ_ij(shift) exp(2πi q · shift), Hermitian: (3 N, 3 N), or (M, 3 N, 3 N), complex, eV/Å².

        ``q``, shape (3,), is in units of the reciprocal lattice vectors. At q = 0 the result is the Hessian.
        """
        return self.weighted(np.exp(2j * np.pi * (self.shifts @ q)))

    def weighted(self, weights: np.ndarray) -> np.ndarray:
        """Σ_shifts weight Φ_ij(shift) with one weight for each block, shape (B,): (3 N, 3 N), or (M, 3 N, 3 N)."""
        n = self.n_atoms
        flat = np.moveaxis(self.blocks * weights[:, None, None], -3, 0).reshape(len(weights), -1)
        sums = summation(self.first.astype(np.int64) * n + self.second, n * n) @ flat
        sums = sums.reshape(n, n, *self.blocks.shape[:-3], 3, 3)
        matrix = np.moveaxis(sums, (0, 1, -2, -1), (-4, -2, -3, -1))
        return matrix.reshape(*self.blocks.shape[:-3], 3 * n, 3 * n)

    def translation_residual(self) -> float:
        """Largest element of Σ_j Φ_ij in eV/Å²: effect of a translation on the forces, zero except for rounding."""
        ones = np.ones((self.n_atoms, 3)) * np.eye(3)[:, None]
        return float(max(np.abs(self.product(along)).max() for along in ones))

    def _needs_one(self, what: str) -> None:
        if self.has_members:
            raise ValueError(f"{what} is of one matrix: take mean() or member(index) first")


def pair_motion(
    pairs: Pairs, n_atoms: int, displacements: np.ndarray | None, strain: np.ndarray | None
) -> np.ndarray | None:
    """dr_ij/dt of every pair, shape (P, 3); None without displacements and strain.

    Atoms move by t · displacements, and all vectors r by t · strain r.

    Raises
    ------
    StructureError
        If displacements are not of shape (n_atoms, 3), or a strain not of shape (3, 3).
    """
    motion = None
    given = {"displacements": (displacements, (n_atoms, 3)), "strain": (strain, (3, 3))}
    for name, (values, shape) in given.items():
        if values is None:
            continue
        if np.shape(values) != shape:
            raise StructureError(f"{name} have the shape {np.shape(values)}; give {shape}")
        x = np.asarray(values, float)
        moved = pairs.vectors @ x.T if name == "strain" else x[pairs.neighbors] - x[pairs.centers]
        motion = moved if motion is None else motion + moved
    return motion


def summed(keys: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums of the rows that have the same key: the sorted keys, and the sums."""
    unique, number = np.unique(keys, return_inverse=True)
    return unique, summation(number, len(unique)) @ rows


def summation(numbers: np.ndarray, count: int) -> Any:
    """The sparse matrix of zeros and ones that adds up the rows with equal numbers: (count, len(numbers))."""
    order = np.argsort(numbers, kind="stable")
    indptr = np.searchsorted(numbers[order], np.arange(count + 1))
    return csr_array((np.ones(len(numbers)), order, indptr), shape=(count, len(numbers)))
