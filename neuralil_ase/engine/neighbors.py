"""Pair lists on the host, in float64, kept while atoms move little.

vesin finds the pairs; this module adds the skin. The list holds all pairs closer than ``r_cut + skin`` in a
reference configuration; every call returns those inside ``r_cut`` now, found in C++ where that was built.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import vesin

from neuralil_ase.engine import native
from neuralil_ase.errors import ConfigError, StructureError

DEFAULT_SKIN = 0.7
"""Å: wide enough that a rebuild every dozen steps costs little, and so do the pairs that are filtered at every one."""
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


class Candidates(NamedTuple):
    """Directed pairs inside cutoff and skin, in the order of :class:`Pairs`.

    Attributes
    ----------
    shifts
        Lattice vectors from j to its image, shape (C, 3), int32.
    centers, neighbors
        Indices i and j, shape (C,), int32.
    """

    shifts: np.ndarray
    centers: np.ndarray
    neighbors: np.ndarray


class NeighborList:
    """Pair list with a skin, of one structure or of several replicas of it.

    Parameters
    ----------
    r_cut
        Cutoff radius in Å.
    skin
        Extra radius in Å of the stored list; 0 rebuilds it at every call.

    Attributes
    ----------
    builds
        How often a list was built so far; each replica has its own.

    Raises
    ------
    ConfigError
        If the skin is not a length.
    """

    def __init__(self, r_cut: float, skin: float) -> None:
        if not (np.isfinite(skin) and skin >= 0):
            raise ConfigError(f"skin must be a length in Å, zero or more, got {skin}")
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
        return self.replica_pairs(positions[None], cell[None], pbc, types)

    def replica_pairs(
        self, positions: np.ndarray, cells: np.ndarray, pbc: np.ndarray, types: np.ndarray
    ) -> Pairs:
        """As :meth:`pairs`, of R replicas at once, that do not see each other.

        Positions have the shape (R, N, 3), cells (R, 3, 3). Atom i of replica k is number k N + i of the pairs.
        """
        if positions.size == 0:
            return _room(0)
        reference = self._reference
        if reference is None or not reference.is_of(positions, pbc, types):
            radius = self.r_cut + self.skin
            reference = self._reference = _Reference(len(positions), pbc, types, radius)
        # Positions that are not finite are never covered, so that checks at a rebuild suffice.
        for replica in np.flatnonzero(~reference.covers(positions, cells, self.r_cut)):
            try:
                reference.build(int(replica), positions[replica], cells[replica])
            except StructureError as error:
                if len(positions) == 1:
                    raise
                raise StructureError(f"replica {replica}: {error}") from error
            self.builds += 1
        return reference.inside(positions, cells, self.r_cut)


class _Reference:
    """The configurations that lists were built for, and the lists, of R replicas of N atoms."""

    def __init__(self, n_replicas: int, pbc: np.ndarray, types: np.ndarray, radius: float) -> None:
        self.pbc, self.types, self.radius = pbc.copy(), types.copy(), radius
        # Not a number until a list is built: it covers nothing.
        self.positions = np.full((n_replicas, len(types), 3), np.nan)
        self.cells = np.full((n_replicas, 3, 3), np.nan)
        # Shifts, centers and neighbours of the pairs found last, for every replica.
        none = Candidates(np.empty((0, 3), np.int32), *np.empty((2, 0), np.int32))
        self.candidates = [none] * n_replicas
        # Room for the pairs inside, kept: fresh memory costs more than the search.
        self.found = _room(0)
        self.filter: native.PairFilter | None = None  # of these candidates

    def is_of(self, positions: np.ndarray, pbc: np.ndarray, types: np.ndarray) -> bool:
        return (
            positions.shape == self.positions.shape
            and identical(types, self.types)
            and identical(pbc, self.pbc)
        )

    def build(self, replica: int, positions: np.ndarray, cell: np.ndarray) -> None:
        check_geometry(positions, cell, self.pbc, self.radius)
        # One thread: a rebuild takes well under a millisecond, and waiting for busy cores far longer. One direction,
        # and no copies: what is found lives as long as the searcher.
        searcher = vesin.NeighborList(cutoff=self.radius, full_list=False, n_threads=1)
        found, shifts = searcher.compute(
            points=positions,
            box=_complete(cell, self.pbc),
            periodic=self.pbc,
            quantities="PS",
            copy=False,
        )
        self.candidates[replica] = _sorted(found, shifts, self.types)
        self.filter = None
        self.positions[replica], self.cells[replica] = positions, cell
        count = sum(len(candidates.centers) for candidates in self.candidates)
        if count > len(self.found.centers):
            self.found = _room(count + count // 20)

    def covers(self, positions: np.ndarray, cells: np.ndarray, r_cut: float) -> np.ndarray:
        """Whether no pair outside the list can have come inside the cutoff, for every replica.

        With F the deformation of the cell and u what an atom moved beyond it, a pair vector becomes
        d F + u_j - u_i, no shorter than σ_min(F) |d| - 2 max|u|, and |d| was at least ``radius``.
        """
        reach, moved = np.array(self.radius), self.positions
        if not identical(cells, self.cells):
            reach, moved = self._deformed(cells)
        displacements = positions - moved
        largest = np.einsum("kij,kij->ki", displacements, displacements).max(axis=1)
        return reach - 2 * np.sqrt(largest) >= r_cut

    def _deformed(self, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The radius that is left in new cells, shape (R,), and where atoms would be that moved with them."""
        reach, moved = np.full(len(cells), self.radius), self.positions.copy()
        for k in np.flatnonzero((cells != self.cells).any(axis=(1, 2))):
            if not np.isfinite([cells[k], self.cells[k]]).all():
                reach[k] = np.nan
                continue
            old, new = _complete(self.cells[k], self.pbc), _complete(cells[k], self.pbc)
            deformation = np.linalg.solve(old, new)
            reach[k] *= np.linalg.svd(deformation, compute_uv=False)[-1]
            moved[k] = moved[k] @ deformation
        return reach, moved

    def inside(self, positions: np.ndarray, cells: np.ndarray, r_cut: float) -> Pairs:
        if isinstance(native.compiled_library(), str):
            return self._inside_in_numpy(positions, cells, r_cut)
        if self.filter is None:
            self.filter = native.PairFilter(self.candidates, self.found)
        count = self.filter(positions, cells, r_cut)
        return Pairs(*(values[:count] for values in self.found))

    def _inside_in_numpy(self, positions: np.ndarray, cells: np.ndarray, r_cut: float) -> Pairs:
        parts = []
        for k, (shifts, centers, neighbors) in enumerate(self.candidates):
            vectors = positions[k].take(neighbors, 0)
            vectors -= positions[k].take(centers, 0)
            vectors += shifts @ cells[k]
            keep = np.flatnonzero(np.einsum("ij,ij->i", vectors, vectors) < r_cut**2)
            indices = (
                values.take(keep) + np.int32(k * len(self.types)) for values in (centers, neighbors)
            )
            parts.append(Pairs(vectors.take(keep, 0), *indices))
        return Pairs(*map(np.concatenate, zip(*parts, strict=True)))


def _room(count: int) -> Pairs:
    return Pairs(np.empty((count, 3)), np.empty(count, np.int32), np.empty(count, np.int32))


def _sorted(pairs: np.ndarray, shifts: np.ndarray, types: np.ndarray) -> Candidates:
    """Both directions of pairs, shape (P, 2), by center, then by the neighbour's type."""
    if not isinstance(native.compiled_library(), str):
        return Candidates(*native.sorted_pairs(pairs, shifts, types))
    i, j = np.concatenate([pairs, pairs[:, ::-1]]).astype(np.int32).T
    both = np.concatenate([shifts, -shifts]).astype(np.int32)
    order = np.argsort(i * np.int64(types.max(initial=0) + 1) + types[j], kind="stable")
    return Candidates(both[order], i[order], j[order])


def identical(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether two arrays hold the same bytes: for small ones a tenth of what ``np.array_equal`` takes."""
    return first.shape == second.shape and first.tobytes() == second.tobytes()


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


def shortest_distances(structures: Iterable[tuple[Pairs, np.ndarray]], n_types: int) -> np.ndarray:
    """Shortest distance in Å between atoms of every two types, over several structures.

    Parameters
    ----------
    structures
        Pairs of each structure and the types of its atoms.
    n_types
        Number of types.

    Returns
    -------
    ndarray, shape (n_types, n_types)
        Symmetric; infinite for types of which no pair was found.
    """
    shortest = np.full(n_types * n_types, np.inf)
    for pairs, types in structures:
        lengths = np.linalg.norm(pairs.vectors, axis=1)
        np.minimum.at(shortest, types[pairs.centers] * n_types + types[pairs.neighbors], lengths)
    return shortest.reshape(n_types, n_types)
