"""Finds all pairs of a structure within a radius, for any shape and size.

vesin sorts atoms into cells about as wide as the radius. Its time and memory grow with the box, and vesin fails for
few atoms in a long box. Structures that are not compact are therefore first folded into a periodic box: atoms are
wrapped into one cell, and empty gaps wider than the radius, which no pair crosses, are closed. If the structure is
still sparse, SciPy's k-d tree is used, whose time depends only on the number of atoms.
"""

from typing import NamedTuple

import numpy as np
import vesin

from neuralil_ase.engine.geometry import Lattice, check_geometry, fractional_coordinates
from neuralil_ase.errors import StructureError

ALWAYS_ALLOWED = 1e6
"""Every structure may have this many pairs; more are allowed only at densities of real matter."""
HIGHEST_DENSITY = 1.0
"""Atoms per Å³: six times that of diamond."""
VESIN_CELLS = 1e5
"""vesin enlarges its cells until there are no more than this. Along a thin direction, no cell may then be left."""


class Found(NamedTuple):
    """Pairs in one of their two directions.

    Attributes
    ----------
    pairs
        Atoms i and j, shape (P, 2).
    shifts
        Lattice vectors to add to r_j - r_i, shape (P, 3), int32.
    owner
        Owns the memory of both arrays, which lives as long as this object.
    """

    pairs: np.ndarray
    shifts: np.ndarray
    owner: object = None


class Box(NamedTuple):
    """A structure folded into a periodic box.

    Attributes
    ----------
    places
        Distances in Å of every atom from the three faces at the origin, shape (N, 3).
    vectors
        Vectors of the box as rows in Å, shape (3, 3).
    heights
        Distances in Å between opposite faces, shape (3,).
    is_open
        Directions whose faces no pair crosses, shape (3,).
    wraps
        Lattice vectors that were subtracted from every atom, shape (N, 3), integers in float64.
    radius
        In Å, with a margin for rounding.
    """

    places: np.ndarray
    vectors: np.ndarray
    heights: np.ndarray
    is_open: np.ndarray
    wraps: np.ndarray
    radius: float

    def cartesian(self, places: np.ndarray) -> np.ndarray:
        """Cartesian positions in Å of ``places``, shape (N, 3)."""
        return (places / self.heights) @ self.vectors


def find_pairs(positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, radius: float) -> Found:
    """Every pair of atoms, or of an atom and an image, closer than a radius.

    Some pairs may be longer than the radius by a rounding error.

    Parameters
    ----------
    positions
        Cartesian coordinates in Å, shape (N, 3), wrapped or not.
    cell
        Lattice vectors as rows in Å, shape (3, 3); vectors of non-periodic directions are ignored.
    pbc
        Periodicity, shape (3,).
    radius
        In Å.

    Raises
    ------
    StructureError
        As from :func:`~neuralil_ase.engine.geometry.check_geometry`, or if there may be more pairs than at any
        density of real matter.
    """
    lattice = check_geometry(positions, cell, pbc)
    if _is_compact(positions, lattice, radius):
        if _most_images(lattice.heights, False, radius) * len(positions) ** 2 > ALWAYS_ALLOWED:
            refuse_crowds(_wrapped(positions, lattice, radius))
        return _in_cells(positions, lattice.vectors, radius)
    box = fold(positions, lattice, radius)
    refuse_crowds(box)
    if _suits_cells(len(positions), box.heights, box.radius):
        found = _in_cells(box.cartesian(box.places), box.vectors, box.radius)
    else:
        found = _in_tree(box)
    return _unfolded(found, box, lattice)


def _is_compact(positions: np.ndarray, lattice: Lattice, radius: float) -> bool:
    """Whether vesin can search a structure as it is."""
    heights = lattice.heights
    return (
        bool(lattice.pbc.all())
        and not lattice.is_reduced
        and np.abs(positions).max() < 1e5 * min(radius, heights.min())
        and _suits_cells(len(positions), heights, radius)
    )


def _suits_cells(n_atoms: int, heights: np.ndarray, radius: float) -> bool:
    """Whether vesin's cells are well filled, and enough cells are left if vesin enlarges them."""
    cells = np.maximum(heights / radius, 1)
    count, images = cells.prod(), np.maximum(2 * radius / heights, 1).prod()
    # Every image of a cell is visited, whether the cell is empty or not.
    return count <= max(1000 / images, 20 * n_atoms) and (
        count <= VESIN_CELLS or cells.min() * np.cbrt(VESIN_CELLS / count) > 2
    )


def _in_cells(positions: np.ndarray, vectors: np.ndarray, radius: float) -> Found:
    """Find pairs with vesin, in a box that is periodic in all directions."""
    # One thread: a search takes well under a millisecond, and waiting for busy cores takes far longer. One direction,
    # and no copies: the arrays of pairs live as long as the searcher.
    searcher = vesin.NeighborList(cutoff=radius, full_list=False, n_threads=1)
    try:
        pairs, shifts = searcher.compute(
            points=positions, box=vectors, periodic=True, quantities="PS", copy=False
        )
    except RuntimeError as error:
        raise MemoryError(f"too many pairs of {len(positions)} atoms: {error}") from error
    return Found(pairs, shifts, searcher)


def _in_tree(box: Box) -> Found:
    """Find pairs with SciPy's k-d tree, among the atoms and all images no farther than the radius from the box."""
    from scipy.spatial import KDTree

    n_atoms, places = len(box.places), box.places
    atoms, shifts = np.arange(n_atoms), np.zeros((n_atoms, 3), np.int32)
    for k in np.flatnonzero(~box.is_open):
        reach, height = int(np.ceil(box.radius / box.heights[k])), box.heights[k]
        parts = [(places, atoms, shifts)]
        for image in (*range(-reach, 0), *range(1, reach + 1)):
            place = places[:, k] + image * height
            near = np.flatnonzero((place >= -box.radius) & (place <= height + box.radius))
            moved, shifted = places[near], shifts[near]
            moved[:, k], shifted[:, k] = place[near], image
            parts.append((moved, atoms[near], shifted))
        places, atoms, shifts = map(np.concatenate, zip(*parts, strict=True))
    positions = box.cartesian(places)
    close = KDTree(positions[:n_atoms]).sparse_distance_matrix(
        KDTree(positions), box.radius, output_type="ndarray"
    )
    first, second, shift = close["i"], atoms[close["j"]], shifts[close["j"]]
    # Every pair was found in both directions; one is kept. Between an atom and its own image, this is the direction in
    # which the first shift that is not zero is positive.
    x, y, z = shift.T
    positive = (x > 0) | ((x == 0) & ((y > 0) | ((y == 0) & (z > 0))))
    keep = (first < second) | ((first == second) & positive)
    return Found(np.column_stack([first, second])[keep], shift[keep])


def _wrapped(positions: np.ndarray, lattice: Lattice, radius: float) -> Box:
    """All atoms in one cell, gaps as they are."""
    vectors, heights, pbc = lattice.vectors, lattice.heights, lattice.pbc
    fractional = fractional_coordinates(positions, lattice)
    wraps = np.where(pbc, np.floor(fractional), 0)
    error = np.abs(fractional @ vectors - positions).max() + 1e-10
    return Box((fractional - wraps) * heights, vectors, heights, ~pbc, wraps, radius + 8 * error)


def fold(positions: np.ndarray, lattice: Lattice, radius: float) -> Box:
    """The smallest box that holds the same pairs.

    In sparse structures, periodic directions with a gap wider than the radius are cut at the gap and become open, like
    non-periodic directions. All wider gaps along open directions are then narrowed to about one radius. In all
    structures, open directions end with a gap of about one radius.
    """
    box = _wrapped(positions, lattice, radius)
    places, wraps, is_open = box.places.copy(), box.wraps.copy(), box.is_open.copy()
    reach, heights = 1.01 * box.radius, box.heights.copy()
    extents = np.ptp(places, axis=0) + reach
    is_sparse = not _suits_cells(len(places), np.where(is_open, extents, heights), box.radius)
    for k in range(3):
        if is_sparse and not is_open[k]:
            turned = _turned_to_gap(places[:, k], heights[k], reach)
            wraps[:, k] -= turned
            places[:, k] += turned * heights[k]
            is_open[k] = heights[k] - np.ptp(places[:, k]) > reach
        if is_open[k]:
            places[:, k] -= places[:, k].min()
            if is_sparse:
                places[:, k] = _closed_gaps(places[:, k], reach)
            heights[k] = places[:, k].max() + reach
    vectors = box.vectors * (heights / box.heights)[:, None]
    return Box(places, vectors, heights, is_open, wraps, box.radius)


def _turned_to_gap(places: np.ndarray, period: float, reach: float) -> np.ndarray:
    """1 for atoms that must move up by one period to bring a wide enough gap to the end of the cell; else 0."""
    order = np.argsort(places)
    gaps = np.diff(places[order])
    turned = np.zeros(len(places))
    if len(gaps) and gaps.max() > max(reach, period - np.ptp(places)):
        turned[order[: gaps.argmax() + 1]] = 1
    return turned


def _closed_gaps(places: np.ndarray, reach: float) -> np.ndarray:
    """Places shifted to begin at 0, with gaps wider than ``reach`` narrowed to ``reach``."""
    order = np.argsort(places)
    ordered = places[order]
    begins = np.concatenate([[True], np.diff(ordered) > reach])
    first, last = ordered[begins], ordered[np.roll(begins, -1)]
    starts = np.concatenate([[0], np.cumsum(last - first + reach)[:-1]])
    cluster = np.cumsum(begins) - 1
    closed = np.empty_like(places)
    closed[order] = ordered - first[cluster] + starts[cluster]
    return closed


def _unfolded(found: Found, box: Box, lattice: Lattice) -> Found:
    """The same pairs, with shifts in lattice vectors of the structure, for the positions before folding."""
    first, second = found.pairs.astype(np.int64).T
    shifts = (found.shifts + box.wraps[first] - box.wraps[second]) @ lattice.basis
    if np.abs(shifts).max(initial=0) > 2**31 - 1:
        raise StructureError(
            "atoms are too many cells away from each other; wrap them into the cell (atoms.wrap())"
        )
    return found._replace(shifts=shifts.astype(np.int32))


def _most_images(heights: np.ndarray, is_open: np.ndarray | bool, radius: float) -> float:
    """Largest number of images of one atom within the radius of another atom."""
    return float(np.where(is_open, 1, np.floor(2 * radius / heights) + 1).prod())


def refuse_crowds(box: Box) -> None:
    """Refuse structures with more pairs than real matter can have, before memory is allocated.

    Atoms are sorted into bins of about half the radius. With n atoms in a bin and K bins within the radius of one, no
    more than K Σ n² directed pairs exist. At an even density, this bound is four times the number of pairs; where atoms
    stand close together in few bins, it is up to K times.

    Raises
    ------
    StructureError
        If there may be too many pairs. The message gives the number of neighbours.
    """
    n_atoms, radius = len(box.places), box.radius
    most = n_atoms**2 * _most_images(box.heights, box.is_open, radius)
    allowed = max(ALWAYS_ALLOWED, n_atoms * (125 + 125 / 8 * HIGHEST_DENSITY * radius**3))
    if most <= allowed:
        return
    counts = np.maximum(np.floor(2 * box.heights / radius), 1)
    reached = 2 * np.ceil(radius * counts / box.heights) + 1
    reached = np.where(box.is_open, np.minimum(reached, counts), reached).prod()
    bins = np.minimum(np.floor(box.places / box.heights * counts), counts - 1)
    occupied = np.unique(bins @ [1, counts[0], counts[0] * counts[1]], return_counts=True)[1]
    most = min(most, reached * float(occupied @ occupied))
    if most > allowed:
        raise StructureError(
            f"atoms may have {most / n_atoms:.2g} neighbours within {radius:.3g} Å on average: no real "
            "material is that dense. Usually the cell or the positions are not in Å, or the structure has collapsed"
        )
