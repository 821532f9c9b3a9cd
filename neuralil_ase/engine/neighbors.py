"""Pair lists on the host, in float64, kept while atoms move little.

The list holds all pairs closer than ``r_cut + skin`` in a reference configuration. Every call returns the pairs that
are now closer than ``r_cut``. C++ code finds these pairs, if it was built.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from neuralil_ase.engine import native
from neuralil_ase.engine.geometry import LARGEST, completed
from neuralil_ase.engine.pair_search import find_pairs
from neuralil_ase.errors import ConfigError, StructureError

DEFAULT_SKIN = 0.7
"""In Å. A wider skin means fewer rebuilds and more pairs to filter at every step; at this width both cost little."""


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
        self._lists: _Lists | None = None
        self._filter: native.PairFilter | None = None
        # The memory for the pairs inside the cutoff is kept: a new allocation would cost more than the search.
        self._room = _room(0)

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
        """Like :meth:`pairs`, for R replicas at once. Replicas have no pairs with each other.

        Positions have the shape (R, N, 3), cells (R, 3, 3). Atom i of replica k is number k N + i of the pairs.
        """
        if positions.size == 0:
            return _room(0)
        positions, cells = np.asarray(positions, float), np.asarray(cells, float)
        lists = self._lists
        if lists is None or not lists.are_of(positions, pbc, types):
            lists = _Lists.empty(len(positions), pbc, types, self.r_cut + self.skin)
        # Positions that are not finite always cause a rebuild, so it is enough to check them there.
        outdated = np.flatnonzero(~lists.cover(positions, cells, self.r_cut))
        if len(outdated):
            lists = lists.rebuilt(outdated, positions, cells)
            self.builds += len(outdated)
        # One assignment of an immutable record: after an interruption elsewhere, the old lists are still valid.
        self._lists = lists
        return self._inside(lists, positions, cells)

    def _inside(self, lists: "_Lists", positions: np.ndarray, cells: np.ndarray) -> Pairs:
        if isinstance(native.compiled_library(), str):
            return lists.inside_in_numpy(positions, cells, self.r_cut)
        if self._filter is None or self._filter.candidates is not lists.candidates:
            count = sum(len(candidates.centers) for candidates in lists.candidates)
            if count > len(self._room.centers):
                self._room = _room(count + count // 20)
            self._filter = native.PairFilter(lists.candidates, len(lists.types), self._room)
        count = self._filter(positions, cells, self.r_cut)
        return Pairs(*(values[:count] for values in self._filter.found))


class _Lists(NamedTuple):
    """The lists of R replicas of N atoms, and the configurations for which they were built. Immutable.

    Attributes
    ----------
    pbc, types, radius
        As given.
    positions, cells
        Of the configurations, shapes (R, N, 3) and (R, 3, 3); NaN where there is no list yet.
    candidates
        Of every replica.
    """

    pbc: np.ndarray
    types: np.ndarray
    radius: float
    positions: np.ndarray
    cells: np.ndarray
    candidates: tuple[Candidates, ...]

    @classmethod
    def empty(cls, n_replicas: int, pbc: np.ndarray, types: np.ndarray, radius: float) -> "_Lists":
        """Empty lists, which have to be rebuilt."""
        none = Candidates(np.empty((0, 3), np.int32), *np.empty((2, 0), np.int32))
        positions = np.full((n_replicas, len(types), 3), np.nan)
        cells = np.full((n_replicas, 3, 3), np.nan)
        return cls(pbc.copy(), types.copy(), radius, positions, cells, (none,) * n_replicas)

    def are_of(self, positions: np.ndarray, pbc: np.ndarray, types: np.ndarray) -> bool:
        return (
            positions.shape == self.positions.shape
            and identical(types, self.types)
            and identical(pbc, self.pbc)
        )

    def rebuilt(self, replicas: np.ndarray, positions: np.ndarray, cells: np.ndarray) -> "_Lists":
        """A copy with new lists for some replicas."""
        candidates, built_for, built_in = (
            [*self.candidates],
            self.positions.copy(),
            self.cells.copy(),
        )
        for k in replicas:
            try:
                found = find_pairs(positions[k], cells[k], self.pbc, self.radius)
            except StructureError as error:
                if len(positions) == 1:
                    raise
                raise StructureError(f"replica {k}: {error}") from error
            candidates[k] = _sorted(found.pairs, found.shifts, self.types)
            built_for[k], built_in[k] = positions[k], cells[k]
        return self._replace(positions=built_for, cells=built_in, candidates=tuple(candidates))

    def cover(self, positions: np.ndarray, cells: np.ndarray, r_cut: float) -> np.ndarray:
        """For every replica, whether its list is still complete: no other pair can have come inside the cutoff.

        Let F be the deformation of the cell, and u the displacement of an atom in addition to F. A pair vector d
        becomes d F + u_j - u_i. Its length is at least σ_min(F) |d| - 2 max|u|, and |d| was at least ``radius``.
        """
        reach, moved = np.array(self.radius), self.positions
        if not identical(cells, self.cells):
            reach, moved = self._deformed(cells)
        displacements = positions - moved
        largest = np.einsum("kij,kij->ki", displacements, displacements).max(axis=1)
        return reach - 2 * np.sqrt(largest) >= r_cut

    def _deformed(self, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Radius of complete lists in the new cells, shape (R,), and positions of atoms that only follow the cells."""
        reach, moved = np.full(len(cells), self.radius), self.positions.copy()
        for k in np.flatnonzero((cells != self.cells).any(axis=(1, 2))):
            if not (np.abs([cells[k], self.cells[k]]) <= LARGEST).all():
                reach[k] = np.nan
                continue
            old, new = completed(self.cells[k], self.pbc), completed(cells[k], self.pbc)
            deformation = np.linalg.solve(old, new)
            reach[k] *= np.linalg.svd(deformation, compute_uv=False)[-1]
            moved[k] = moved[k] @ deformation
        return reach, moved

    def inside_in_numpy(self, positions: np.ndarray, cells: np.ndarray, r_cut: float) -> Pairs:
        """The candidates closer than the cutoff now, without the library."""
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
    """Whether two arrays hold the same bytes; for small arrays ten times as fast as ``np.array_equal``."""
    return first.shape == second.shape and first.tobytes() == second.tobytes()


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
        Symmetric; infinite for two types without a pair.
    """
    shortest = np.full(n_types * n_types, np.inf)
    for pairs, types in structures:
        lengths = np.linalg.norm(pairs.vectors, axis=1)
        np.minimum.at(shortest, types[pairs.centers] * n_types + types[pairs.neighbors], lengths)
    return shortest.reshape(n_types, n_types)
