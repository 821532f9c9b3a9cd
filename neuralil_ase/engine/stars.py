"""Force constants of a whole structure: blocks of all centres, summed by pairs of atoms and lattice shifts.

Time, memory and the sparse result are linear in the number of atoms.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import NamedTuple

import jax
import numpy as np

from neuralil_ase.engine.force_constants import ForceConstants, summed
from neuralil_ase.engine.neighbors import Pairs
from neuralil_ase.engine.second_derivatives import (
    StarDerivatives,
    star_derivatives,
    third_derivatives,
)
from neuralil_ase.model.config import ModelConfig
from neuralil_ase.model.graph import PADDING_DISTANCE, Graph, bucket
from neuralil_ase.model.potential import Params

CENTERS_AT_ONCE = {"cpu": 8, "gpu": 512}
"""Centres computed together: few enough for the cache of a CPU, many enough to keep a GPU busy."""


def force_constants(
    config: ModelConfig,
    params: Params,
    types: np.ndarray,
    pairs: Pairs,
    positions: np.ndarray,
    cell: np.ndarray,
    *,
    by_member: bool,
    motion: np.ndarray | None = None,
) -> ForceConstants:
    """Force constants of a structure, or their slope along a motion.

    Parameters
    ----------
    config, params
        The potential. The computation has the precision of the parameters.
    types
        Element indices, shape (N,).
    pairs
        Pairs of the structure inside the cutoff.
    positions, cell
        In Å, shapes (N, 3) and (3, 3); rows of missing lattice vectors are zero.
    by_member
        Whether to return the force constants of each member.
    motion
        Derivatives of the pair vectors by a parameter t, dr_ij/dt in Å, shape (P, 3). The result is then d/dt of all
        blocks.
    """
    # Shifts are counted between atoms wrapped into the cell: in a long run atoms may be many cells apart.
    homes = np.floor(positions @ np.linalg.pinv(cell)).astype(np.int64)
    shifts = lattice_shifts(positions, cell, pairs) + homes[pairs.neighbors] - homes[pairs.centers]
    keyed = _Keys(len(types), shifts)
    found_keys, found_blocks, by_strain = [], [], 0.0
    for batch in _batches(config, types, pairs, shifts, params, motion):
        derivatives = batch.run(config, by_member, params)
        by_strain = by_strain + np.asarray(derivatives.by_strain, float).sum(axis=1)
        blocks = np.asarray(derivatives.by_position, float)
        n_members = len(blocks)
        rows = blocks.transpose(1, 2, 3, 0, 4, 5)[batch.exists].reshape(-1, n_members * 9)
        keys, sums = summed(keyed(batch.atoms, batch.shifts)[batch.exists], rows)
        found_keys.append(keys)
        found_blocks.append(sums)
    keys, sums = summed(np.concatenate(found_keys), np.concatenate(found_blocks))
    first, second, near = keyed.decode(keys)
    far = near - homes[second] + homes[first]
    values = sums.reshape(len(keys), -1, 3, 3).swapaxes(0, 1)
    strain = np.asarray(by_strain)
    if not by_member:
        values, strain = values[0], strain[0]
    return ForceConstants(len(types), first, second, far, np.ascontiguousarray(values), strain)


class _Batch(NamedTuple):
    """B centres with K slots each for neighbours, and a last slot for the centre itself."""

    stars: Graph
    motion: np.ndarray | None
    atoms: np.ndarray  # (B, K + 1)
    shifts: np.ndarray  # (B, K + 1, 3)
    is_real: np.ndarray  # (B, K + 1)

    @property
    def exists(self) -> np.ndarray:
        """Which of the (B, K + 1, K + 1) blocks belong to two atoms."""
        return self.is_real[:, :, None] & self.is_real[:, None, :]

    def run(self, config: ModelConfig, by_member: bool, params: Params) -> StarDerivatives:
        if self.motion is None:
            return _jitted(star_derivatives)(config, by_member, params, self.stars)
        return _jitted(third_derivatives)(config, by_member, params, self.stars, self.motion)


@lru_cache(maxsize=2)
def _jitted(function: Callable[..., StarDerivatives]) -> Callable[..., StarDerivatives]:
    return jax.jit(function, static_argnums=(0, 1))


def _batches(
    config: ModelConfig,
    types: np.ndarray,
    pairs: Pairs,
    shifts: np.ndarray,
    params: Params,
    motion: np.ndarray | None,
) -> Iterator[_Batch]:
    """All centres in batches, in arrays of the same lengths."""
    counts = np.bincount(pairs.centers, minlength=len(types))
    starts = np.cumsum(counts) - counts
    # Lengths are rounded up, so that similar structures share a compiled function.
    n_slots = -(-bucket(int(counts.max(initial=1))) // 4) * 4
    most = CENTERS_AT_ONCE.get(jax.default_backend(), 512)
    n_centers = min(most, max(8, 1 << (len(types) - 1).bit_length()))
    dtype = jax.tree.leaves(params)[0].dtype
    for begin in range(0, len(types), n_centers):
        centers = np.arange(begin, min(begin + n_centers, len(types)))
        slots = np.arange(n_slots) < counts[centers, None]
        rows, columns = np.nonzero(slots)
        taken = starts[centers][rows] + columns
        is_real = np.zeros((n_centers, n_slots + 1), bool)
        is_real[: len(centers), :-1] = slots
        is_real[: len(centers), -1] = True
        atoms = np.zeros((n_centers, n_slots + 1), np.int64)
        atoms[rows, columns] = pairs.neighbors[taken]
        atoms[: len(centers), -1] = centers
        far = np.zeros((n_centers, n_slots + 1, 3), np.int64)
        far[rows, columns] = shifts[taken]
        vectors = np.zeros((n_centers, n_slots, 3), dtype)
        vectors[..., 0] = PADDING_DISTANCE * config.descriptor.r_cut
        vectors[rows, columns] = pairs.vectors[taken]
        moving = None
        if motion is not None:
            moving = np.zeros((n_centers, n_slots, 3), dtype)
            moving[rows, columns] = motion[taken]
            moving = moving.reshape(-1, 3)
        # Empty slots hold the last element, so that neighbours stay sorted by element.
        n_elements = len(config.descriptor.elements)
        elements = np.full((n_centers, n_slots), n_elements - 1)
        elements[rows, columns] = types[pairs.neighbors[taken]]
        star_types = np.zeros(n_centers + n_elements, np.int32)
        star_types[: len(centers)] = types[centers]
        star_types[n_centers:] = np.arange(n_elements)
        stars = Graph(
            vectors.reshape(-1, 3),
            np.repeat(np.arange(n_centers, dtype=np.int32), n_slots),
            (n_centers + elements).astype(np.int32).ravel(),
            star_types,
        )
        yield _Batch(stars, moving, atoms, far, is_real)


class _Keys:
    """One integer for each (first atom, second atom, shift)."""

    def __init__(self, n_atoms: int, shifts: np.ndarray) -> None:
        self.n_atoms = n_atoms
        self.reach = 2 * np.abs(shifts).max(axis=0, initial=0) + 1
        self.base = 2 * self.reach + 1

    def __call__(self, atoms: np.ndarray, shifts: np.ndarray) -> np.ndarray:
        """The keys of all pairs of slots, shape (B, K + 1, K + 1)."""
        key = atoms[:, :, None] * self.n_atoms + atoms[:, None, :]
        between = shifts[:, None, :] - shifts[:, :, None] + self.reach
        for axis in range(3):
            key = key * self.base[axis] + between[..., axis]
        return key

    def decode(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        shifts = np.empty((len(keys), 3), np.int64)
        for axis in (2, 1, 0):
            keys, shifts[:, axis] = np.divmod(keys, self.base[axis])
        return keys // self.n_atoms, keys % self.n_atoms, shifts - self.reach


def lattice_shifts(positions: np.ndarray, cell: np.ndarray, pairs: Pairs) -> np.ndarray:
    """How many lattice vectors lie between atom j and the image that pair (i, j) reaches: shape (P, 3), int.

    Parameters
    ----------
    positions, cell
        In Å, shapes (N, 3) and (3, 3); rows of missing lattice vectors are zero.
    pairs
        Their pair list.
    """
    between = pairs.vectors - (positions[pairs.neighbors] - positions[pairs.centers])
    return np.rint(between @ np.linalg.pinv(cell)).astype(np.int64)
