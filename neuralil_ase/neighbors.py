"""Pair lists on the host, in float64, kept while atoms move little.

vesin finds the pairs; this module adds the skin. The list holds all pairs closer than ``r_cut + skin`` in a
reference configuration; every call returns those inside ``r_cut`` now, found in C++ where that was built.
"""

from typing import NamedTuple

import numpy as np
import vesin

from neuralil_ase import native
from neuralil_ase.errors import StructureError

MAX_PAIRS = 500_000_000


class Pairs(NamedTuple):
    """Directed pairs inside the cutoff, sorted by center, then by the neighbour's type.

    Attributes
    ----------
    vectors
        r_j - r_i in Å, shape (P, 3), float64.
    centers, neighbors
        Indices i and j, shape (P,).
    """

    vectors: np.ndarray
    centers: np.ndarray
    neighbors: np.ndarray


class NeighborList:
    """Pair list with a skin.

    Parameters
    ----------
    r_cut
        Cutoff radius in Å.
    skin
        Extra radius in Å of the stored list; 0 rebuilds it at every call.

    Attributes
    ----------
    builds
        How often the list was built so far.
    """

    def __init__(self, r_cut: float, skin: float) -> None:
        self.r_cut = r_cut
        self.skin = skin
        self.builds = 0
        self._reference: _Reference | None = None

    def pairs(
        self, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, types: np.ndarray
    ) -> Pairs:
        """All directed pairs with |r_j - r_i| < r_cut, periodic images included; valid until the next call.

        Parameters
        ----------
        positions
            Cartesian coordinates in Å, shape (N, 3), wrapped or not.
        cell
            Lattice vectors as rows in Å, shape (3, 3); those of non-periodic directions may be zero.
        pbc
            Periodicity of the three directions, shape (3,).
        types
            Index of each atom's element, shape (N,).

        Raises
        ------
        StructureError
            If positions or cell are not finite, or a periodic direction has no extent.
        """
        if len(positions) == 0:
            return Pairs(np.empty((0, 3)), np.empty(0, np.int32), np.empty(0, np.int32))
        reference = self._reference
        # Positions that are not finite are never covered, so that checks at a rebuild suffice.
        if reference is None or not reference.covers(positions, cell, pbc, types, self.r_cut):
            check_geometry(positions, cell, pbc, self.r_cut + self.skin)
            reference = _Reference.build(positions, cell, pbc, types, self.r_cut + self.skin)
            self._reference = reference
            self.builds += 1
        return reference.inside(positions, cell, self.r_cut)


class _Reference(NamedTuple):
    """The configuration a list was built for, and the list."""

    positions: np.ndarray
    cell: np.ndarray
    pbc: np.ndarray
    types: np.ndarray
    radius: float
    centers: np.ndarray
    neighbors: np.ndarray
    shifts: np.ndarray
    found: Pairs  # room for the pairs inside, kept: fresh memory costs more than the search

    @classmethod
    def build(
        cls,
        positions: np.ndarray,
        cell: np.ndarray,
        pbc: np.ndarray,
        types: np.ndarray,
        radius: float,
    ) -> "_Reference":
        # One thread: a rebuild takes well under a millisecond, and waiting for busy cores far longer.
        searcher = vesin.NeighborList(cutoff=radius, full_list=True, n_threads=1)
        i, j, shifts = searcher.compute(
            points=positions, box=_complete(cell, pbc), periodic=pbc, quantities="ijS"
        )
        i, j, shifts = _sorted(i, j, shifts, types)
        return cls(
            positions.copy(),
            cell.copy(),
            pbc.copy(),
            types.copy(),
            radius,
            i,
            j,
            shifts,
            Pairs(np.empty((len(i), 3)), np.empty_like(i), np.empty_like(j)),
        )

    def covers(
        self,
        positions: np.ndarray,
        cell: np.ndarray,
        pbc: np.ndarray,
        types: np.ndarray,
        r_cut: float,
    ) -> bool:
        """Whether no pair outside the list can have come inside the cutoff.

        With F the deformation of the cell and u what an atom moved beyond it, a pair vector becomes
        d F + u_j - u_i, no shorter than σ_min(F) |d| - 2 max|u|, and |d| was at least ``radius``.
        """
        if len(types) != len(self.types) or not (
            np.array_equal(types, self.types) and np.array_equal(pbc, self.pbc)
        ):
            return False
        reach, moved = self.radius, self.positions
        if not np.array_equal(cell, self.cell):
            if not np.isfinite(cell).all():
                return False
            deformation = np.linalg.solve(_complete(self.cell, pbc), _complete(cell, pbc))
            reach *= np.linalg.svd(deformation, compute_uv=False)[-1]
            moved = moved @ deformation
        displacement = positions - moved
        largest = np.einsum("ij,ij->i", displacement, displacement).max(initial=0.0)
        return reach - 2 * np.sqrt(largest) >= r_cut

    def inside(self, positions: np.ndarray, cell: np.ndarray, r_cut: float) -> Pairs:
        if isinstance(native.compiled_library(), str):
            return self._inside_in_numpy(positions, cell, r_cut)
        candidates = self.centers, self.neighbors, self.shifts
        count = native.pairs_inside(positions, cell, candidates, r_cut, self.found)
        return Pairs(*(values[:count] for values in self.found))

    def _inside_in_numpy(self, positions: np.ndarray, cell: np.ndarray, r_cut: float) -> Pairs:
        vectors = positions.take(self.neighbors, 0)
        vectors -= positions.take(self.centers, 0)
        vectors += self.shifts @ cell
        keep = np.flatnonzero(np.einsum("ij,ij->i", vectors, vectors) < r_cut**2)
        return Pairs(vectors.take(keep, 0), self.centers.take(keep), self.neighbors.take(keep))


def _sorted(
    i: np.ndarray, j: np.ndarray, shifts: np.ndarray, types: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """By center, then by the neighbour's type: indices as int32, shifts as float64."""
    if not isinstance(native.compiled_library(), str):
        return native.sorted_pairs(i, j, shifts, types)
    order = np.argsort(i.astype(np.int64) * (types.max(initial=0) + 1) + types[j], kind="stable")
    return i[order].astype(np.int32), j[order].astype(np.int32), shifts[order].astype(float)


def check_geometry(positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, radius: float) -> None:
    """Refuse geometries for which no pair list exists.

    Raises
    ------
    StructureError
        Naming what is wrong.
    """
    if not np.isfinite(positions).all():
        atom = int(np.flatnonzero(~np.isfinite(positions).all(axis=1))[0])
        raise StructureError(
            f"the position of atom {atom} is not finite: {positions[atom]}. Usually a simulation has "
            "exploded; use a smaller time step, or look at the last frames before this one"
        )
    if not np.isfinite(cell).all():
        raise StructureError(f"the cell is not finite: {cell.tolist()}; check the input structure")
    if not pbc.any():
        return
    heights = _heights(cell, pbc)
    if (heights[pbc] < 1e-3).any():
        raise StructureError(
            f"the cell {cell.tolist()} has no extent along a periodic direction (pbc={pbc.tolist()}). Give "
            "lattice vectors in Å that are not zero or coplanar, or switch pbc off there"
        )
    images = np.prod(np.where(pbc, 2 * radius / np.where(pbc, heights, 1) + 1, 1))
    if images * len(positions) > MAX_PAIRS:
        raise StructureError(
            f"the cell is so thin ({heights[pbc].min():.3g} Å) that a cutoff of {radius:.3g} Å reaches "
            f"{images:.2g} periodic images of every atom; is the cell in Å?"
        )


def _complete(cell: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """The cell with unit vectors, normal to the periodic directions, in place of non-periodic vectors.

    The vectors of non-periodic directions play no part in the geometry; this makes the matrix regular.
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


def _heights(cell: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """Distances in Å between opposite faces of the (completed) cell; zeros for a cell without volume."""
    try:
        inverse = np.linalg.inv(_complete(cell, pbc))
    except np.linalg.LinAlgError:
        return np.zeros(3)
    return 1 / np.sqrt((inverse**2).sum(axis=0))
