"""The padded graph that compiled functions see.

Padding contract: arrays have bucketed lengths, so that compiled functions are reused when atoms move or for structures
of similar size. Padding atoms have type 0 and no pairs. Padding pairs follow all others, belong to the last atom and
are a little longer than the cutoff, where all terms and their derivatives vanish exactly. No mask is needed; callers
use the first ``n_atoms`` rows.
"""

from typing import NamedTuple

import numpy as np
from jax import Array

PADDING_DISTANCE = 1.01
"""Length of a padding pair in units of the cutoff."""


class Graph(NamedTuple):
    """Atoms and their neighbours inside the cutoff; N atoms and P directed pairs, both padded.

    Attributes
    ----------
    vectors
        r_j - r_i of every pair, in Å, shape (P, 3). Both directions of a pair are listed.
    centers, neighbors
        Indices i and j, shape (P,), int32; sorted by i, then by the type of j.
    types
        Index of every atom's element in the model's list, shape (N,), int32.
    """

    vectors: Array | np.ndarray
    centers: Array | np.ndarray
    neighbors: Array | np.ndarray
    types: Array | np.ndarray


def bucket(count: int) -> int:
    """Round up to a number with three significant bits: at most 1/8 above ``count``, at least 8."""
    unit = 1 << max((max(count, 1) - 1).bit_length() - 4, 0)
    return max(-(-count // unit) * unit, 8)


def pad_graph(
    vectors: np.ndarray,
    centers: np.ndarray,
    neighbors: np.ndarray,
    types: np.ndarray,
    *,
    n_atoms: int,
    n_pairs: int,
    r_cut: float,
    dtype: np.typing.DTypeLike,
) -> Graph:
    """Copy float64 host arrays into a graph of ``n_atoms`` atoms and ``n_pairs`` pairs.

    The vectors were subtracted in float64. They are rounded to ``dtype`` only here.
    """
    padding = n_pairs - len(vectors)
    padded_vectors = np.empty((n_pairs, 3), dtype)
    padded_vectors[: len(vectors)] = vectors
    padded_vectors[len(vectors) :] = (PADDING_DISTANCE * r_cut, 0, 0)
    return Graph(
        padded_vectors,
        _padded(centers, padding, n_atoms - 1),
        _padded(neighbors, padding, n_atoms - 1),
        _padded(types, n_atoms - len(types), 0),
    )


def _padded(values: np.ndarray, count: int, fill: int) -> np.ndarray:
    padded = np.full(len(values) + count, fill, np.int32)
    padded[: len(values)] = values
    return padded
