"""What stays the same from epoch to epoch, computed once per frame: densities and their slopes.

The descriptor has no trainable parameters. From the derivative of a member's energy with respect to the density
coefficients of an atom, forces follow by one more linear step: the slope of each pair's contribution to them, which all
members and epochs share. A pair (i, j) contributes to the coefficients of the element of j alone, so that slopes sit in
slots by neighbour element, and a whole microbatch is a few batched matrix products without any scatter.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from neuralil_ase.engine.neighbors import Pairs
from neuralil_ase.model.config import DescriptorConfig
from neuralil_ase.model.descriptors import density_coefficients, pair_products
from neuralil_ase.model.graph import Graph, pad_graph


@dataclass(frozen=True)
class FrameArrays:
    """One frame as training sees it; N atoms, S slots, C channels (n, l, m).

    Attributes
    ----------
    density
        Density coefficients of every atom, shape (N, elements, C), float32.
    types
        Element indices, shape (N,).
    slopes
        Derivative of the pair's contribution to them by r_ij, shape (N, S, 3, C), float32; zero in empty slots.
    vectors
        r_ij in Å, shape (N, S, 3), float32; zero in empty slots.
    reverse
        Flat index (atom * S + slot) of the pair (j, i) for every slot, shape (N, S); an empty slot names itself.
    """

    density: np.ndarray
    types: np.ndarray
    slopes: np.ndarray
    vectors: np.ndarray
    reverse: np.ndarray


def coarse_bucket(count: int) -> int:
    """The next power of two, at least 256: a compilation costs more here than padding, as each frame is done once."""
    return max(256, 1 << (max(count, 1) - 1).bit_length())


def neighbour_counts(pairs: Pairs, types: np.ndarray, n_elements: int) -> np.ndarray:
    """Number of neighbours of every atom by their element, shape (N, elements)."""
    flat = pairs.centers * n_elements + types[pairs.neighbors]
    return np.bincount(flat, minlength=len(types) * n_elements).reshape(len(types), n_elements)


def precompute(
    config: DescriptorConfig, pairs: Pairs, types: np.ndarray, slots: tuple[int, ...]
) -> FrameArrays:
    """Densities and slopes of one frame.

    Parameters
    ----------
    config
        The descriptor.
    pairs, types
        Its neighbours inside the cutoff, sorted by center and the neighbour's type, and its elements.
    slots
        Number of slots for every neighbour element, no smaller than the largest count.
    """
    n_atoms, n_pairs = len(types), len(pairs.centers)
    graph = pad_graph(
        *pairs,
        types,
        n_atoms=coarse_bucket(n_atoms),
        n_pairs=coarse_bucket(n_pairs),
        r_cut=config.r_cut,
        dtype=np.float32,
    )
    density, slopes = _density_and_slopes(config, graph)
    slot = _slot_of_pairs(pairs, types, slots)
    return FrameArrays(
        np.asarray(density)[:n_atoms],
        types.astype(np.int32),
        _into_slots(np.asarray(slopes)[:n_pairs], pairs.centers, slot, n_atoms, sum(slots)),
        _into_slots(pairs.vectors.astype(np.float32), pairs.centers, slot, n_atoms, sum(slots)),
        _reverse(pairs, slot, n_atoms, sum(slots)),
    )


@jax.jit(static_argnums=0)
def _density_and_slopes(config: DescriptorConfig, graph: Graph) -> tuple[Array, Array]:
    """Density coefficients (N, elements, C) and, for every pair, the derivative of its contribution: (P, 3, C)."""

    def along(direction: Array) -> Array:
        tangent = jnp.broadcast_to(direction, graph.vectors.shape)
        return jax.jvp(lambda v: pair_products(config, v), (graph.vectors,), (tangent,))[1]

    slopes = jnp.stack([along(direction) for direction in jnp.eye(3, dtype=jnp.float32)], axis=1)
    return density_coefficients(config, graph), slopes


def _slot_of_pairs(pairs: Pairs, types: np.ndarray, slots: tuple[int, ...]) -> np.ndarray:
    """Slot of every pair within its center: the block of its element, and its rank in that block."""
    n_elements = len(slots)
    segment = pairs.centers * n_elements + types[pairs.neighbors]
    starts = np.searchsorted(segment, segment, side="left")
    offsets = np.cumsum((0, *slots[:-1]))
    return offsets[types[pairs.neighbors]] + np.arange(len(segment)) - starts


def _into_slots(
    values: np.ndarray, centers: np.ndarray, slot: np.ndarray, n_atoms: int, n_slots: int
) -> np.ndarray:
    slotted = np.zeros((n_atoms, n_slots, *values.shape[1:]), values.dtype)
    slotted[centers, slot] = values
    return slotted


def _reverse(pairs: Pairs, slot: np.ndarray, n_atoms: int, n_slots: int) -> np.ndarray:
    """Where the pair (j, i) with the opposite vector sits, for every slot."""
    flat = pairs.centers.astype(np.int64) * n_slots + slot
    # Several images of j may be neighbours of i; a generic projection tells them apart.
    projection = pairs.vectors @ np.array((0.5377, 0.8339, 0.1241))
    forward = np.lexsort((projection, pairs.neighbors, pairs.centers))
    backward = np.lexsort((-projection, pairs.centers, pairs.neighbors))
    reverse = np.arange(n_atoms * n_slots, dtype=np.int32)
    reverse[flat[forward]] = flat[backward]
    return reverse.reshape(n_atoms, n_slots)
