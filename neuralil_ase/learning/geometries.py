"""Positions and cells of the labelled frames: how far a structure is from them."""

from collections.abc import Set
from typing import NamedTuple

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers

from neuralil_ase.evaluation.dataset import Frame

STRAINED = 1e-3
"""Difference in Å from which on a lattice vector is another one."""


class _Group(NamedTuple):
    """Frames of the same atoms and periodic directions: numbers (n,), positions (n, N, 3), cells (n, 3, 3)."""

    numbers: np.ndarray
    positions: np.ndarray
    cells: np.ndarray

    def without(self, numbers: Set[int]) -> "_Group":
        """The group without the frames of these numbers."""
        if numbers.isdisjoint(self.numbers.tolist()):
            return self
        chosen = ~np.isin(self.numbers, [*numbers])
        return _Group(*(values[chosen] for values in self))


class Geometries:
    """The geometries of numbered frames."""

    def __init__(self) -> None:
        self._groups: dict[bytes, _Group] = {}

    def add(self, number: int, frame: Frame) -> None:
        """Add a frame."""
        atomic = np.array([atomic_numbers[symbol] for symbol in frame.symbols.tolist()])
        new = _Group(np.array([number]), frame.positions[None], frame.cell[None])
        key = _key(atomic, frame.pbc)
        group = self._groups.get(key)
        if group is not None:
            new = _Group(*(np.concatenate(both) for both in zip(group, new, strict=True)))
        self._groups[key] = new

    def moved(self, atoms: Atoms, without: Set[int] = frozenset()) -> float:
        """Largest displacement in Å of an atom or a lattice vector from the nearest frame of the same atoms.

        It is infinite if there is no such frame.

        Parameters
        ----------
        atoms
            The structure.
        without
            Numbers of frames that do not count.
        """
        group = self._of(atoms, without)
        if group is None:
            return np.inf
        vectors = atoms.positions - group.positions
        cell = atoms.cell.complete().array
        shifts = np.round(vectors @ np.linalg.inv(cell)) * atoms.pbc
        moved = np.linalg.norm(vectors - shifts @ cell, axis=2).max(axis=1)
        strained = np.linalg.norm(atoms.cell.array - group.cells, axis=2).max(axis=1)
        return float(np.maximum(moved, strained).min())

    def is_strained(self, atoms: Atoms, without: Set[int] = frozenset()) -> bool:
        """Whether the lattice vectors differ from those of all frames of the same atoms."""
        group = self._of(atoms, without)
        if group is None:
            return True
        return bool((np.abs(atoms.cell.array - group.cells) > STRAINED).any(axis=(1, 2)).all())

    def _of(self, atoms: Atoms, without: Set[int]) -> _Group | None:
        group = self._groups.get(_key(atoms.numbers, atoms.pbc))
        if group is None:
            return None
        group = group.without(without)
        return group if len(group.numbers) else None


def _key(numbers: np.ndarray, pbc: np.ndarray) -> bytes:
    return numbers.astype("<i8").tobytes() + np.asarray(pbc, "u1").tobytes()
