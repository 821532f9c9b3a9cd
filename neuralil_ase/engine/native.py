"""The compiled library: which file, and what of it is called without JAX. Looked for at the first use only."""

import ctypes
from collections.abc import Sequence
from functools import lru_cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import numpy as np

_FOLDER = Path(__file__).parents[1] / "core"
_LEVELS = (4, 3, 1)
"""Levels of the x86-64 instruction set with a library of their own; 1 is also built on other processors."""


@lru_cache(maxsize=1)
def compiled_library() -> ctypes.CDLL | str:
    """The library for this processor, or why there is none."""
    if _library_file(1) is None:
        return f"it was not built when neuralil_ase was installed (nothing in {_FOLDER})"
    try:
        level = ctypes.CDLL(str(_library_file(1))).neuralil_x86_level()
        loaded = ctypes.CDLL(str(_best_library(level)))
        loaded.neuralil_pairs_inside.restype = ctypes.c_int64
        loaded.neuralil_sort_pairs.restype = ctypes.c_bool
    except (OSError, AttributeError) as error:
        return f"it was built but does not load: {error}"
    return loaded


class PairFilter:
    """Finds those candidate pairs that are closer than the cutoff; the library must be there.

    Addresses are taken once, for at every step that took as long as the search.

    Parameters
    ----------
    candidates
        For each of R replicas cell shifts, shape (C, 3), centers and neighbours, shape (C,), all int32.
    found
        Receives vectors, float64, shape (F, 3), centers and neighbours, int32, shape (F,); F no less than all C
        together. Atom i of replica k of N atoms is written as k N + i.
    """

    def __init__(
        self,
        candidates: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]],
        found: tuple[np.ndarray, np.ndarray, np.ndarray],
    ) -> None:
        addresses = [[array.ctypes.data for array in part] for part in candidates]
        counts = [len(centers) for _, centers, _ in candidates]
        # Kept, so that they are alive while they are pointed to.
        self._arrays = candidates, found, np.array(addresses, np.int64), np.array(counts, np.int64)
        self._pointers = [_pointer(array) for array in (*self._arrays[2:], *found)]

    def __reduce__(self) -> tuple[type["PairFilter"], tuple[Any, ...]]:
        return PairFilter, self._arrays[:2]  # a copy has arrays of its own, and so other addresses

    def __call__(self, positions: np.ndarray, cells: np.ndarray, r_cut: float) -> int:
        """Write the pairs of one replica after another, and return how many.

        Positions and cells are those of R replicas, in Å, shapes (R, N, 3) and (R, 3, 3); the cutoff is in Å.
        """
        positions, cells = (np.ascontiguousarray(values, float) for values in (positions, cells))
        n_replicas, n_atoms, _ = positions.shape
        return _library().neuralil_pairs_inside(
            *map(_pointer, (positions, cells)),
            *self._pointers,
            *map(ctypes.c_int64, (n_replicas, n_atoms)),
            ctypes.c_double(r_cut),
        )


def sorted_pairs(
    pairs: np.ndarray, shifts: np.ndarray, types: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Both directions of pairs, sorted by center, then by the neighbour's type; the library must be there.

    Parameters
    ----------
    pairs, shifts
        Two atoms each, and the cell shift of the second, shapes (P, 2) and (P, 3).
    types
        Of every atom, shape (N,).

    Returns
    -------
    tuple of numpy.ndarray
        Shifts, shape (2 P, 3), centers and neighbours, shape (2 P,), all int32.
    """
    arrays: list[np.ndarray] = [np.ascontiguousarray(pairs, np.uint64)]
    arrays += [np.ascontiguousarray(values, np.int32) for values in (shifts, types)]
    count, n_types = len(pairs), int(types.max(initial=0)) + 1
    found = np.empty((2 * count, 3), np.int32), *np.empty((2, 2 * count), np.int32)
    sizes = (ctypes.c_int64(size) for size in (count, len(types), n_types))
    if not _library().neuralil_sort_pairs(*map(_pointer, [*arrays, *found]), *sizes):
        raise IndexError(f"pairs or types that are not of {len(types)} atoms and {n_types} types")
    return found


def _library() -> ctypes.CDLL:
    loaded = compiled_library()
    assert isinstance(loaded, ctypes.CDLL)
    return loaded


def _pointer(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def _best_library(level: int) -> Path | None:
    """The library for the best instruction set that the processor has and that was built."""
    found = [_library_file(built) for built in _LEVELS if built <= max(level, 1)]
    return next((path for path in found if path is not None), None)


def _library_file(level: int) -> Path | None:
    for suffix in EXTENSION_SUFFIXES:
        path = _FOLDER / f"evaluation_v{level}{suffix}"
        if path.exists():
            return path
    return None
