"""The compiled core: finds the library at the first use and calls its functions through ctypes. Uses no JAX."""

import ctypes
import json
import os
import weakref
from collections.abc import Sequence
from ctypes import byref, c_double, c_int64, c_void_p
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from neuralil_ase.engine.c_interface import (
    API_VERSION,
    BAD_FILE,
    BAD_GRAPH,
    NO_MEMORY,
    UNSUPPORTED,
    Executor,
    Graph,
    Results,
    declare,
)
from neuralil_ase.errors import ModelFileError, StructureError
from neuralil_ase.model.config import ModelConfig

FOLDER = Path(__file__).parents[1] / "core"
"""Where the library is looked for."""

_NAMES = {"x86-64-v4": "AVX-512", "x86-64-v3": "AVX2", "x86-64": "SSE2"}
_PRECISIONS = {"float32": 0, "float64": 1}


@lru_cache(maxsize=1)
def compiled_library() -> ctypes.CDLL | str:
    """The library for this machine, or why there is none."""
    path = next(
        (path for path in FOLDER.glob("libneuralil.*") if path.suffix in (".so", ".dylib")), None
    )
    if path is None:
        return (
            f"the compiled core was not built when neuralil_ase was installed (nothing in {FOLDER})"
        )
    try:
        loaded = ctypes.CDLL(str(path))
        if (found := loaded.neuralil_api_version()) != API_VERSION:
            return (
                f"the compiled core {path} has interface {found} instead of {API_VERSION}; install the package "
                "again"
            )
        declare(loaded)
    except (OSError, AttributeError) as error:
        return f"the compiled core cannot be loaded: {error}"
    return loaded


def missing_reason(config: ModelConfig | None = None) -> str | None:
    """Why the compiled core cannot be used, for this architecture if one is given; None if it can be used."""
    loaded = compiled_library()
    if isinstance(loaded, str):
        return loaded
    return None if config is None else _unsupported(config)


@lru_cache(maxsize=64)
def _unsupported(config: ModelConfig) -> str | None:
    description = json.dumps({"config": config.to_dict()}).encode()
    return _message() if _library().neuralil_check(description) else None


def instruction_set() -> str:
    """The instructions that the library uses on this processor: "AVX-512", "AVX2", "SSE2" or "generic code"."""
    name = _library().neuralil_instruction_set().decode()
    return _NAMES.get(name, "generic code")


def thread_count() -> int:
    """How many threads large structures may use: OMP_NUM_THREADS, or all processors this process may use (0)."""
    setting = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(setting) if setting.isdecimal() else 0


class Evaluated(NamedTuple):
    """Results of the core in float64: M members, N centres among A atoms.

    Attributes
    ----------
    energies
        Atomic energies in eV, the energy reference included, shape (M, N).
    aleatoric_variances
        Variances that each member predicts for its own errors, of energy in eV² and of a force component in eV²/Å²,
        shape (M, N, 2); None for models without them.
    forces
        Of the mean over members, in eV/Å, shape (A, 3).
    virials
        Σ_j r_ij ⊗ dE/dr_ij in eV of the mean; each pair belongs to its centre i. Shape (N, 3, 3).
    member_forces, member_virials
        Of every member, shapes (M, A, 3) and (M, N, 3, 3), or None.
    """

    energies: np.ndarray
    aleatoric_variances: np.ndarray | None
    forces: np.ndarray
    virials: np.ndarray
    member_forces: np.ndarray | None
    member_virials: np.ndarray | None


class CoreModel:
    """A model in the compiled core. The library must exist.

    Parameters
    ----------
    content
        The bytes of a model file.
    dtype
        Precision of descriptor and networks, "float32" or "float64".

    Raises
    ------
    ModelFileError
        If the bytes are no model file, or the core has no code for the architecture.
    MemoryError
        If there is not enough memory.
    """

    def __init__(self, content: bytes, dtype: str) -> None:
        library, self._handle = _library(), c_void_p()
        _check(
            library.neuralil_load_bytes(
                content, len(content), _PRECISIONS[dtype], byref(self._handle)
            )
        )
        self._free = weakref.finalize(self, library.neuralil_free, self._handle)
        info = library.neuralil_get_info(self._handle)
        self.n_members, self.n_aleatoric = info.n_members, info.n_aleatoric

    def __call__(
        self,
        types: np.ndarray,
        centers: np.ndarray,
        neighbors: np.ndarray,
        vectors: np.ndarray,
        *,
        by_member: bool = False,
        n_centers: int | None = None,
        n_threads: int | None = None,
    ) -> Evaluated:
        """Evaluate atoms and their directed pairs.

        Parameters
        ----------
        types
            Index of every atom's element, shape (A,).
        centers, neighbors
            Of every pair, shape (P,), sorted by center.
        vectors
            Position of the neighbour minus that of the center in Å, shape (P, 3).
        by_member
            Whether to return the forces of each member.
        n_centers
            Only the first ``n_centers`` atoms have an energy; the others are only neighbours. Default: all atoms.
        n_threads
            Largest number of threads; :func:`thread_count` by default.

        Raises
        ------
        StructureError
            If pairs are not sorted, or an index is out of range.
        MemoryError
            If there is not enough memory.
        """
        n_atoms, members = len(types), self.n_members
        n = n_atoms if n_centers is None else n_centers
        inputs = [np.ascontiguousarray(array, np.int32) for array in (types, centers, neighbors)]
        inputs.append(np.ascontiguousarray(vectors, np.float64))
        results = Evaluated(
            np.empty((members, n)),
            np.empty((members, n, self.n_aleatoric)) if self.n_aleatoric else None,
            np.empty((n_atoms, 3)),
            np.empty((n, 3, 3)),
            np.empty((members, n_atoms, 3)) if by_member else None,
            np.empty((members, n, 3, 3)) if by_member else None,
        )
        graph = Graph(n_atoms, n, len(inputs[1]), *map(_address, inputs))
        energies, aleatoric, forces, virials, *by_members = map(_address, results)
        written = Results(energies, aleatoric, forces, virials, None, *by_members)
        executor = _executor(thread_count() if n_threads is None else n_threads)
        _check(
            _library().neuralil_evaluate(
                self._handle, byref(graph), byref(written), byref(executor)
            )
        )
        return results


class PairFilter:
    """Finds the candidate pairs that are closer than the cutoff. The library must exist.

    Addresses are looked up only once, because a lookup takes as long as a search. The candidates are then read-only.

    Parameters
    ----------
    candidates
        For each of R replicas: cell shifts, shape (C, 3), centers and neighbours, shape (C,), all int32.
    n_atoms
        Atoms of a replica.
    found
        Receives vectors, float64, shape (F, 3), centers and neighbours, int32, shape (F,); F is at least the
        sum of all C. Atom i of replica k of N atoms is written as k N + i.

    Raises
    ------
    IndexError
        If there is no room for all candidates.
    """

    def __init__(
        self,
        candidates: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]],
        n_atoms: int,
        found: tuple[np.ndarray, np.ndarray, np.ndarray],
    ) -> None:
        self.candidates, self.n_atoms, self.found = candidates, n_atoms, found
        for part in candidates:
            _check_arrays(part, (np.int32, np.int32, np.int32))
            for array in part:
                array.flags.writeable = False
        _check_arrays(found, (np.float64, np.int32, np.int32))
        self._counts = np.array([len(centers) for _, centers, _ in candidates], np.int64)
        if self._counts.sum() > len(found[1]):
            raise IndexError(f"{self._counts.sum()} candidates need more room than {len(found[1])}")
        self._addresses = np.array(
            [[array.ctypes.data for array in part] for part in candidates], np.int64
        )
        self._pointers = [_pointer(array) for array in (self._addresses, self._counts, *found)]

    def __reduce__(self) -> tuple[type["PairFilter"], tuple[Any, ...]]:
        # A copy has its own arrays, and so other addresses.
        return PairFilter, (self.candidates, self.n_atoms, self.found)

    def __call__(self, positions: np.ndarray, cells: np.ndarray, r_cut: float) -> int:
        """Write the pairs of one replica after another, and return the number of pairs.

        Positions and cells are those of R replicas, in Å, shapes (R, N, 3) and (R, 3, 3); the cutoff is in Å.

        Raises
        ------
        IndexError
            If positions and cells do not fit the replicas and atoms of the candidates.
        """
        positions, cells = (np.ascontiguousarray(values, float) for values in (positions, cells))
        n_replicas = len(self._counts)
        if positions.shape != (n_replicas, self.n_atoms, 3) or cells.shape != (n_replicas, 3, 3):
            raise IndexError(
                f"{n_replicas} replicas of {self.n_atoms} atoms, not {positions.shape}"
            )
        count = _library().neuralil_filter_pairs(
            *map(_pointer, (positions, cells)),
            *self._pointers,
            *map(c_int64, (n_replicas, self.n_atoms)),
            c_double(r_cut),
        )
        if count < 0:
            raise IndexError(f"candidates that are not of {self.n_atoms} atoms")
        return count


def sorted_pairs(
    pairs: np.ndarray, shifts: np.ndarray, types: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Both directions of pairs, sorted by center, then by the neighbour's type. The library must exist.

    Parameters
    ----------
    pairs, shifts
        The two atoms of each pair, and the cell shift of the second, shapes (P, 2) and (P, 3).
    types
        Of every atom, shape (N,).

    Returns
    -------
    tuple of numpy.ndarray
        Shifts, shape (2 P, 3), centers and neighbours, shape (2 P,), all int32.

    Raises
    ------
    IndexError
        If an index is out of range, or a type is negative.
    MemoryError
        If there is no room for a table of atoms and types.
    """
    arrays: list[np.ndarray] = [np.ascontiguousarray(pairs, np.uint64)]
    arrays += [np.ascontiguousarray(values, np.int32) for values in (shifts, types)]
    count, n_types = len(pairs), int(types.max(initial=0)) + 1
    found = np.empty((2 * count, 3), np.int32), *np.empty((2, 2 * count), np.int32)
    sizes = (c_int64(size) for size in (count, len(types), n_types))
    status = _library().neuralil_order_pairs(*map(_pointer, [*arrays, *found]), *sizes)
    if status == NO_MEMORY:
        raise MemoryError(f"no memory to sort {count} pairs of {len(types)} atoms")
    if status != 0:
        raise IndexError(f"pairs or types that are not of {len(types)} atoms and {n_types} types")
    return found


def _check_arrays(arrays: Sequence[np.ndarray], dtypes: Sequence[type]) -> None:
    """Raise an error unless these arrays hold three coordinates and two numbers for the same number of pairs."""
    count = len(arrays[1])
    for array, dtype, shape in zip(arrays, dtypes, ((count, 3), (count,), (count,)), strict=True):
        if array.dtype != dtype or array.shape != shape or not array.flags.c_contiguous:
            raise IndexError(f"{array.dtype} {array.shape} where {dtype} {shape} is needed")


def _library() -> ctypes.CDLL:
    loaded = compiled_library()
    assert isinstance(loaded, ctypes.CDLL)
    return loaded


def _pointer(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def _address(array: np.ndarray | None) -> int | None:
    return None if array is None else array.ctypes.data


def _executor(n_threads: int) -> Executor:
    return _library().neuralil_threads(n_threads)


def _message() -> str:
    return _library().neuralil_message().decode(errors="replace")


def _check(status: int) -> None:
    """Raise the error that a status stands for."""
    if status == 0:
        return
    errors = {BAD_FILE: ModelFileError, UNSUPPORTED: ModelFileError, BAD_GRAPH: StructureError}
    if status == NO_MEMORY:
        raise MemoryError("no memory for the compiled core; use fewer atoms or members at once")
    raise errors.get(status, RuntimeError)(f"compiled core: {_message()}")
