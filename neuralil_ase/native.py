"""The compiled library: which file, and what of it is called without JAX. Looked for at the first use only."""

import ctypes
from functools import lru_cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import numpy as np

_FOLDER = Path(__file__).parent / "kernels"
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
    except (OSError, AttributeError) as error:
        return f"it was built but does not load: {error}"
    return loaded


def pairs_inside(
    positions: np.ndarray,
    cell: np.ndarray,
    candidates: tuple[np.ndarray, np.ndarray, np.ndarray],
    r_cut: float,
    found: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> int:
    """Write those pairs that are closer than the cutoff; the library must be there.

    Parameters
    ----------
    positions, cell
        In Å, float64, shapes (N, 3) and (3, 3).
    candidates
        Centers and neighbours, int32, shape (C,), and cell shifts, float64, shape (C, 3).
    r_cut
        Cutoff in Å.
    found
        Receives vectors, float64, shape (C, 3), centers and neighbours, int32, shape (C,).

    Returns
    -------
    int
        How many pairs were written.
    """
    loaded = compiled_library()
    assert isinstance(loaded, ctypes.CDLL)
    arrays = (
        np.ascontiguousarray(positions, float),
        np.ascontiguousarray(cell, float),
        *candidates,
        *found,
    )
    pointers = (ctypes.c_void_p(array.ctypes.data) for array in arrays)
    return loaded.neuralil_pairs_inside(
        *pointers, ctypes.c_int64(len(candidates[0])), ctypes.c_double(r_cut)
    )


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
