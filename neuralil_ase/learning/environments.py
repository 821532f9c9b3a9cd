"""The coordinations of atoms in learnt frames: where an atom has fewer or more neighbours than any of them."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from ase import Atoms

from neuralil_ase.evaluation.dataset import Frame
from neuralil_ase.monitor.relative import close_pairs

ALONE = 0.05
"""Added to coordinations, so that atoms with almost no neighbour are like isolated ones. A neighbour at 0.9 times the
cutoff counts 0.04."""


class Stranger(NamedTuple):
    """The atom whose coordination is least like those in learnt frames.

    Attributes
    ----------
    atom
        Its index in the structure.
    coordination, nearest
        Its coordination, and the nearest one of an atom of the same element in learnt frames.
    distance
        Difference of their logarithms.
    """

    atom: int
    coordination: float
    nearest: float
    distance: float


class Environments:
    """The coordinations in learnt frames, by element.

    The coordination of an atom is the sum of (1 - (r/r_c)²)² over its neighbours at distances r below the cutoff r_c.
    """

    def __init__(self) -> None:
        self._of_frames: dict[int, np.ndarray] = {}
        self._known: dict[str, np.ndarray] = {}
        self._cutoff = 0.0

    def learn(self, frames: Mapping[int, Frame], cutoff: float) -> None:
        """Know these numbered frames, and no others; ``cutoff`` in Å."""
        if cutoff != self._cutoff:
            self._of_frames, self._cutoff = {}, cutoff
        found: dict[str, list[np.ndarray]] = {}
        for number, frame in frames.items():
            if number not in self._of_frames:
                self._of_frames[number] = coordinations(_atoms_of(frame), cutoff)
            for symbol in set(frame.symbols.tolist()):
                chosen = self._of_frames[number][frame.symbols == symbol]
                found.setdefault(symbol, []).append(chosen)
        self._known = {symbol: np.sort(np.concatenate(c)) for symbol, c in found.items()}

    def strangest(self, atoms: Atoms) -> Stranger:
        """The atom whose coordination is least like those in the known frames, which have all its elements."""
        found = coordinations(atoms, self._cutoff)
        nearest = np.empty(len(found))
        symbols = np.array(atoms.get_chemical_symbols())
        for symbol in set(symbols.tolist()):
            chosen, known = symbols == symbol, self._known.get(symbol, np.array([np.inf]))
            above = np.clip(np.searchsorted(known, found[chosen]), 0, len(known) - 1)
            both = known[np.stack([np.maximum(above - 1, 0), above])]
            best = np.abs(_logarithm(both) - _logarithm(found[chosen])).argmin(axis=0)
            nearest[chosen] = np.take_along_axis(both, best[None], axis=0)[0]
        distances = np.abs(_logarithm(found) - _logarithm(nearest))
        k = int(distances.argmax())
        return Stranger(k, float(found[k]), float(nearest[k]), float(distances[k]))


def coordinations(atoms: Atoms, cutoff: float) -> np.ndarray:
    """Coordination of every atom, shape (N,); ``cutoff`` in Å."""
    first, _, distances = close_pairs(atoms, cutoff)
    weights = (1 - (distances / cutoff) ** 2) ** 2
    return np.bincount(first, weights, minlength=len(atoms))


def _logarithm(coordination: np.ndarray) -> np.ndarray:
    return np.log(coordination + ALONE)


def _atoms_of(frame: Frame) -> Atoms:
    return Atoms(frame.symbols.tolist(), frame.positions, cell=frame.cell, pbc=frame.pbc)
