"""What stays the same from epoch to epoch, computed once per frame: descriptors and their Jacobians.

The descriptor has no trainable parameters, so that the forces of every member are linear in the derivative of its
energy with respect to the descriptor, with one Jacobian for all members and epochs. A pair (i, j) changes only those
features of atom i that involve the element of j; the Jacobian is stored for these features, in slots by neighbour
element, so that a whole microbatch is a few batched matrix products without any scatter.
"""

from dataclasses import dataclass
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from neuralil_ase.config import DescriptorConfig
from neuralil_ase.descriptors import (
    channels,
    density_coefficients,
    pair_products,
    power_spectrum,
)
from neuralil_ase.graph import Graph, pad_graph
from neuralil_ase.neighbors import Pairs


@dataclass(frozen=True)
class FrameArrays:
    """One frame as training sees it; N atoms, S slots, K features that an element takes part in.

    Attributes
    ----------
    features
        Descriptors, shape (N, n_features), float32.
    types
        Element indices, shape (N,).
    jacobian
        dD_i/dr_ij of the features that involve the element of slot s, shape (N, S, 3, K), float32; zero in
        empty slots.
    vectors
        r_ij in Å, shape (N, S, 3), float32; zero in empty slots.
    reverse
        Flat index (atom * S + slot) of the pair (j, i) for every slot, shape (N, S); an empty slot names itself.
    """

    features: np.ndarray
    types: np.ndarray
    jacobian: np.ndarray
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
    """Descriptors and Jacobians of one frame.

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
    features, jacobian = _features_and_jacobian(config, graph)
    slot = _slot_of_pairs(pairs, types, slots)
    return FrameArrays(
        np.asarray(features)[:n_atoms],
        types.astype(np.int32),
        _into_slots(np.asarray(jacobian)[:n_pairs], pairs.centers, slot, n_atoms, sum(slots)),
        _into_slots(pairs.vectors.astype(np.float32), pairs.centers, slot, n_atoms, sum(slots)),
        _reverse(pairs, slot, n_atoms, sum(slots)),
    )


@lru_cache(maxsize=16)
def columns(config: DescriptorConfig) -> np.ndarray:
    """Indices of the features that neighbours of each element take part in, shape (elements, K)."""
    n_elements, n_channels = len(config.elements), len(channels(config)[0])
    density = np.random.default_rng(0).normal(size=(1, n_elements, n_channels)).astype(np.float32)
    rows = []
    with jax.ensure_compile_time_eval():
        for element in range(n_elements):
            tangent = density * (np.arange(n_elements) == element)[:, None].astype(np.float32)
            change = jax.jvp(lambda c: power_spectrum(config, c), (density,), (tangent,))[1]
            rows.append(np.flatnonzero(np.asarray(change)[0]))
    return np.array(rows)


@jax.jit(static_argnums=0)
def _features_and_jacobian(config: DescriptorConfig, graph: Graph) -> tuple[Array, Array]:
    """Features (N, F) and, for every pair, dD_i/dr_ij of the features its element is in: (P, 3, K)."""
    density = density_coefficients(config, graph)
    element = graph.types[graph.neighbors]
    is_element = (element[:, None] == jnp.arange(len(config.elements))).astype(density.dtype)
    of_center = density[graph.centers]

    def along(direction: Array) -> Array:
        tangent = jnp.broadcast_to(direction, graph.vectors.shape)
        _, change = jax.jvp(lambda v: pair_products(config, v), (graph.vectors,), (tangent,))
        tangent = is_element[:, :, None] * change[:, None, :]
        _, moved = jax.jvp(lambda c: power_spectrum(config, c), (of_center,), (tangent,))
        return jnp.take_along_axis(moved, jnp.asarray(columns(config))[element], axis=1)

    jacobian = jnp.stack([along(direction) for direction in jnp.eye(3, dtype=jnp.float32)], axis=1)
    return power_spectrum(config, density), jacobian


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
