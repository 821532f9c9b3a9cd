"""Distances between atoms: pair lists, and the shortest ones a training set holds."""

from collections.abc import Iterable, Mapping

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers, chemical_symbols
from vesin import NeighborList

from neuralil_ase.errors import ConfigError


def close_pairs(atoms: Atoms, cutoff: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All ordered pairs closer than `cutoff` (Å), periodic images included: i, j, distance."""
    first, second, distance = NeighborList(cutoff=cutoff, full_list=True).compute(
        points=atoms.positions, box=atoms.cell.array, periodic=atoms.pbc, quantities="ijd"
    )
    return first.astype(int), second.astype(int), distance


def pair_key(a: str, b: str) -> str:
    """The name of a pair of elements: symbols in alphabetic order, e.g. ``"H-N"``."""
    return "-".join(sorted((a, b)))


def normalised(reference: Mapping[str, float]) -> dict[str, float]:
    """Reference distances (Å) under the names of `pair_key`.

    Raises
    ------
    ConfigError
        If a key is not a pair of elements or a distance is not a positive, finite number.
    """
    result = {}
    for pair, distance in reference.items():
        symbols = pair.split("-")
        if len(symbols) != 2 or not all(symbol in atomic_numbers for symbol in symbols):
            raise ConfigError(f"{pair!r} is not a pair of elements; write it as in 'H-N'.")
        if not (np.isfinite(distance) and distance > 0):
            raise ConfigError(f"{pair} = {distance} is not a distance in Å above 0.")
        result[pair_key(*symbols)] = float(distance)
    return result


def shortest_distances(frames: Iterable[Atoms], cutoff: float = 3.0) -> dict[str, float]:
    """Shortest distance of every pair of elements over `frames`, as a reference for criteria.

    Parameters
    ----------
    frames : iterable of Atoms
        The training data.
    cutoff : float
        Å. A pair that never comes closer gets the cutoff itself: coming well within it is new.

    Returns
    -------
    dict of str to float
        Å, by ``"A-B"`` with symbols in alphabetic order, for all pairs of the elements that occur.
    """
    table: dict[tuple[int, int], float] = {}
    elements: set[int] = set()
    for atoms in frames:
        elements.update(int(z) for z in atoms.numbers)
        first, second, distance = close_pairs(atoms, cutoff)
        code = atoms.numbers[first] * 1000 + atoms.numbers[second]
        for value in np.unique(code):
            pair = (int(value) // 1000, int(value) % 1000)
            nearest = float(distance[code == value].min())
            table[pair] = min(nearest, table.get(pair, cutoff))
    return {
        pair_key(chemical_symbols[a], chemical_symbols[b]): table.get((a, b), cutoff)
        for a in sorted(elements)
        for b in sorted(elements)
        if a <= b
    }
