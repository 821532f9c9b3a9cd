"""Selects the flagged frames that are worth keeping: those with new environments.

Two frames count as near-duplicates if the environments *that caused the flags* are similar. Averages over a frame would
not show one broken bond among hundreds. If all atoms were compared, every frame of a liquid would be new.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
from ase import Atoms

from neuralil_ase.errors import ConfigError, MonitorError
from neuralil_ase.monitor.relative import close_pairs

Fingerprint = Callable[[Atoms], np.ndarray]


class NoveltyFilter:
    """Remembers the environments for which frames were kept, and decides whether others are new.

    The distance between environments a (new) and b (known), of the same element, is
    ``|f(a) - f(b)| / |f(a)|`` with the fingerprint f: 0 for equal environments, of order 1 for
    unrelated ones. A frame is new if the environment of any watched atom is at least `min_distance`
    from all known environments.

    Parameters
    ----------
    min_distance : float
        0 keeps every frame.
    fingerprint : callable
        Atoms → (N, D) one row per atom, or (D,) one vector for the frame. Default: sorted distances.
    """

    def __init__(self, min_distance: float, fingerprint: Fingerprint | None = None) -> None:
        if not (np.isfinite(min_distance) and min_distance >= 0):
            raise ConfigError(f"min_distance = {min_distance}: give a number, 0 or above")
        self.min_distance = min_distance
        self.fingerprint = fingerprint
        self._known: dict[tuple[int, int], np.ndarray] = {}

    def is_new(self, frame: Atoms, watched: Sequence[int] | None = None) -> bool:
        """Whether `frame` shows something new at the `watched` atoms (all, if None)."""
        if self.min_distance == 0:
            return True
        return any(
            self._distance(number, row) >= self.min_distance
            for number, row in self._rows(frame, watched)
        )

    def remember(self, frame: Atoms, watched: Sequence[int] | None = None) -> None:
        """Add the watched environments of `frame` to the known ones."""
        if self.min_distance == 0:
            return
        for number, row in self._rows(frame, watched):
            kind = (
                number,
                len(row),
            )  # frames of other elements may have fingerprints of another length
            known = self._known.get(kind, np.empty((0, len(row))))
            self._known[kind] = np.vstack([known, row])

    def _distance(self, number: int, row: np.ndarray) -> float:
        known = self._known.get((number, len(row)))
        if known is None:
            return np.inf
        nearest = float(np.sqrt(((known - row) ** 2).sum(axis=1).min()))
        size = float(np.linalg.norm(row))
        return nearest / size if size > 0 else nearest

    def _rows(self, frame: Atoms, watched: Sequence[int] | None) -> list[tuple[int, np.ndarray]]:
        rows = np.asarray((self.fingerprint or sorted_distances)(frame), dtype=float)
        if rows.ndim == 1:
            return [(0, rows)]
        if rows.ndim != 2 or len(rows) != len(frame):
            raise MonitorError(
                f"the fingerprint has shape {rows.shape} for {len(frame)} atoms; it must be "
                "(N, D), one row per atom, or (D,), one vector for the frame"
            )
        chosen = range(len(frame)) if watched is None else watched
        return [(int(frame.numbers[i]), rows[i]) for i in chosen]


def fingerprint_of(calculator: Any) -> Fingerprint:
    """The model's own descriptors where the calculator offers them, else sorted distances.

    Evaluating saved frames would make the calculator rebuild its pair list. This changes the order of summation, and so
    the last bits of the run. Therefore a copy of the calculator evaluates saved frames.
    """
    if not callable(getattr(calculator, "descriptors", None)):
        return sorted_distances
    copies: list[Any] = []

    def descriptors(atoms: Atoms) -> np.ndarray:
        if not copies:
            copies.append(deepcopy(calculator))
        return np.asarray(copies[0].descriptors(atoms))

    return descriptors


def sorted_distances(atoms: Atoms, cutoff: float = 5.0, nearest: int = 16) -> np.ndarray:
    """A simple fingerprint of each atom: its neighbours' distances, sorted, per element.

    Parameters
    ----------
    atoms : Atoms
    cutoff : float
        Å.
    nearest : int
        Largest number of neighbours of each element.

    Returns
    -------
    numpy.ndarray
        (N, elements · nearest) of ``1/d - 1/cutoff`` in 1/Å, largest first, 0 where there is no
        neighbour: continuous at the cutoff, and the same for all orders of the neighbours.
    """
    elements, kind = np.unique(atoms.numbers, return_inverse=True)
    first, second, distance = close_pairs(atoms, cutoff)
    order = np.lexsort((distance, kind[second], first))
    first, second, distance = first[order], second[order], distance[order]
    group = first * len(elements) + kind[second]
    starts = np.searchsorted(group, group)
    rank = np.arange(len(group)) - starts
    near = (rank < nearest) & (distance > 0)
    table = np.zeros((len(atoms) * len(elements), nearest))
    table[group[near], rank[near]] = 1 / distance[near] - 1 / cutoff
    return table.reshape(len(atoms), -1)
