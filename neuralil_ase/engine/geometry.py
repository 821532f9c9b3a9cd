"""Checks cells and positions, and finds the lattice for the pair search."""

from itertools import permutations, product
from typing import NamedTuple

import numpy as np

from neuralil_ase.errors import StructureError

LARGEST = 1e13
"""In Å. Longer coordinates and lattice vectors are refused."""
FARTHEST_IMAGE = 1e9
"""How far from its cell, in Å and in cells, an atom may be along periodic directions; float64 resolves 1e-7 Å there."""
THINNEST = 1e-3
"""In Å. Thinner periodic cells are refused."""


class Lattice(NamedTuple):
    """Three independent lattice vectors of a structure, short and not too oblique.

    Attributes
    ----------
    vectors
        Rows in Å, shape (3, 3). Vectors of non-periodic directions are unit vectors normal to all others.
    basis
        Integers in float64, shape (3, 3): ``vectors`` in terms of the lattice vectors of the structure.
    heights
        Distances in Å between opposite faces, shape (3,).
    pbc
        Periodicity, shape (3,).
    """

    vectors: np.ndarray
    basis: np.ndarray
    heights: np.ndarray
    pbc: np.ndarray

    @property
    def is_reduced(self) -> bool:
        """Whether the vectors differ from those of the structure."""
        return bool((self.basis != np.eye(3)).any())


def check_geometry(positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> Lattice:
    """Check positions and cell, and return the lattice.

    Parameters
    ----------
    positions
        Cartesian coordinates in Å, shape (N, 3).
    cell
        Lattice vectors as rows in Å, shape (3, 3); vectors of non-periodic directions are ignored.
    pbc
        Periodicity, shape (3,).

    Raises
    ------
    StructureError
        If positions or cell cannot be used. The message names the problem and the atom.
    """
    largest = np.abs(positions).max(initial=0)
    if not largest <= LARGEST:  # also true for NaN
        _refuse_positions(positions)
    if not np.abs(cell).max() <= LARGEST:
        raise StructureError(
            f"the cell is not finite, or longer than {LARGEST:.0e} Å: {cell.tolist()}; check the input structure"
        )
    lattice = _lattice(cell, pbc)
    if pbc.any() and lattice.heights[pbc].min() < THINNEST:
        raise StructureError(
            f"the cell {cell.tolist()} has no extent along a periodic direction (pbc={pbc.tolist()}). Give "
            "lattice vectors in Å that are not zero or coplanar, or switch pbc off there"
        )
    if pbc.any() and largest > FARTHEST_IMAGE * min(1.0, lattice.heights[pbc].min()):
        _refuse_far_images(positions, lattice)
    return lattice


def _refuse_positions(positions: np.ndarray) -> None:
    atom = int(np.flatnonzero(~(np.abs(positions) <= LARGEST).all(axis=1))[0])
    what = "farther away than 1e13 Å" if np.isfinite(positions[atom]).all() else "not finite"
    raise StructureError(
        f"the position of atom {atom} is {what}: {positions[atom]}. Usually a simulation has "
        "exploded; use a smaller time step, or look at the last frames before this one"
    )


def _refuse_far_images(positions: np.ndarray, lattice: Lattice) -> None:
    """Refuse atoms so far away that float64 cannot resolve their position in a cell, or int32 cannot count cells."""
    vectors, pbc = lattice.vectors, lattice.pbc
    fractional = np.where(pbc, fractional_coordinates(positions, lattice), 0)
    distances = np.linalg.norm(fractional @ vectors, axis=1)
    far = (distances > FARTHEST_IMAGE) | (np.abs(fractional).max(axis=1) > FARTHEST_IMAGE)
    if far.any():
        atom = int(np.flatnonzero(far)[0])
        raise StructureError(
            f"atom {atom} is {distances[atom]:.3g} Å away from the origin in periodic directions, where float64 "
            "cannot resolve its position in the cell. Usually a simulation has exploded; if not, wrap atoms into the "
            "cell (atoms.wrap()) before they are so far out"
        )


def fractional_coordinates(positions: np.ndarray, lattice: Lattice) -> np.ndarray:
    """Coordinates along the vectors, shape (N, 3); accurate also where vectors differ much in length."""
    lengths = np.linalg.norm(lattice.vectors, axis=1)
    return (positions @ np.linalg.inv(lattice.vectors / lengths[:, None])) / lengths


def completed(cell: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """The cell with unit vectors, normal to the periodic directions, in place of non-periodic vectors.

    The vectors of non-periodic directions do not affect the geometry; unit vectors make the matrix invertible.
    """
    if pbc.all():
        return cell
    periodic = cell[pbc]
    complement = (
        np.linalg.svd(periodic, full_matrices=True)[2][len(periodic) :] if pbc.any() else np.eye(3)
    )
    complete = cell.copy()
    complete[~pbc] = complement
    return complete


def _lattice(cell: np.ndarray, pbc: np.ndarray) -> Lattice:
    vectors, basis = completed(cell, pbc), np.eye(3)
    lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
    heights = _heights(vectors, lengths)
    if np.count_nonzero(pbc) > 1 and (heights < 0.2 * lengths).any():
        basis = _short_basis(vectors, np.flatnonzero(pbc))
        # With such large integers and such long vectors, the sums lose all digits by cancellation.
        if 4e-16 * np.abs(basis).max() * lengths.max() > 1e-6:
            raise StructureError(
                f"the cell {cell.tolist()} is too oblique for float64; reduce it (atoms.cell.minkowski_reduce())"
            )
        vectors = basis @ vectors
        heights = _heights(vectors, np.linalg.norm(vectors, axis=1))
    return Lattice(vectors, basis, heights, pbc)


def _heights(vectors: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Distances in Å between opposite faces; zeros where there is no volume."""
    if not lengths.all():
        return np.zeros(3)
    try:
        inverse = np.linalg.inv(vectors / lengths[:, None])
    except np.linalg.LinAlgError:
        return np.zeros(3)
    return lengths / np.sqrt((inverse**2).sum(axis=0))


def _short_basis(vectors: np.ndarray, periodic: np.ndarray) -> np.ndarray:
    """Integer combinations of the periodic vectors that are the shortest, or nearly: shape (3, 3).

    Repeats two steps as long as a vector gets shorter: subtract multiples of one vector from another, and replace the
    longest vector by a sum of all three with signs.
    """
    basis = np.eye(3)
    for _ in range(
        100
    ):  # rounding errors might make the loop endless; every intermediate basis is valid
        changed = False
        short = basis @ vectors
        squares = np.einsum("ij,ij->i", short, short)
        if squares[periodic].min() < THINNEST**2 or np.abs(basis).max() > 1e12:
            break  # the caller refuses this cell
        for i, j in permutations(periodic, 2):
            multiple = np.rint(short[i] @ short[j] / (short[j] @ short[j]))
            changed |= _try(basis, short, vectors, i, basis[i] - multiple * basis[j])
        if len(periodic) == 3:
            longest = int(np.einsum("ij,ij->i", short, short).argmax())
            for signs in product((-1, 1), repeat=3):
                changed |= _try(basis, short, vectors, longest, np.array(signs) @ basis)
        if not changed:
            break
    return basis


def _try(
    basis: np.ndarray, short: np.ndarray, vectors: np.ndarray, k: int, row: np.ndarray
) -> bool:
    """Replace row k of the basis if the vector of the new row is shorter."""
    shorter = row @ vectors
    if not THINNEST**2 / 4 < shorter @ shorter < (1 - 1e-6) * (short[k] @ short[k]):
        return False
    basis[k], short[k] = row, shorter
    return True
