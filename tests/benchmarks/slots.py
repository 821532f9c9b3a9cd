"""Another way from pairs to forces, without scattered sums: every atom has as many slots for each element.

Pair arrays have the shape (K, N) with atoms last. The slots of a centre's neighbours of one element are a range of
rows, so that density coefficients are sums over ranges, whose pull-back only repeats values; what neighbours feel is
read from the slot of the same pair seen from the other side. Empty slots hold pairs longer than the cutoff, as padding
pairs of ``model.graph`` do. For energies and forces of the mean, and of all members; without virials.
"""

from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from neuralil_ase.engine.derivatives import _feature_gradients
from neuralil_ase.engine.neighbors import Pairs
from neuralil_ase.model.config import DescriptorConfig, ModelConfig
from neuralil_ase.model.descriptors import series_of
from neuralil_ase.model.graph import PADDING_DISTANCE, Graph
from neuralil_ase.model.pair_terms import pair_energies
from neuralil_ase.model.potential import Params
from neuralil_ase.model.solid_harmonics import solid_harmonics
from neuralil_ase.model.spectrum import power_spectrum, pull_back_spectrum

PAIRS_FOR_ALL_MEMBERS = 1 << 20
"""Up to so many slots all members are pulled back at once, else one after another, for the sake of memory."""


class Slots(NamedTuple):
    """Neighbours of N atoms in K slots each.

    Attributes
    ----------
    vectors
        r_j - r_i in Å, shape (3, K, N).
    reverse
        Number of the slot, counted in (K, N), that holds the same pair from the other side; an empty slot's own.
    types
        Elements of atoms, shape (N,).
    """

    vectors: Array | np.ndarray
    reverse: Array | np.ndarray
    types: Array | np.ndarray


def fill_slots(
    pairs: Pairs, types: np.ndarray, n_elements: int, r_cut: float, dtype: str
) -> tuple[Slots, tuple[int, ...]]:
    """Slots of a pair list, and how many there are for every element."""
    n, centers, neighbors = len(types), pairs.centers, pairs.neighbors
    groups = centers.astype(np.int64) * n_elements + types[neighbors]  # sorted, as pairs are
    first = np.searchsorted(groups, groups)
    rank = np.arange(len(groups)) - first
    elements = types[neighbors]
    sizes = tuple(int(rank[elements == e].max(initial=-1)) + 1 for e in range(n_elements))
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    slot = (starts[elements] + rank) * n + centers
    vectors = np.empty((3, sum(sizes) * n), dtype)
    vectors[:] = np.array([PADDING_DISTANCE * r_cut, 0, 0])[:, None]
    vectors[:, slot] = pairs.vectors.T
    reverse = np.arange(sum(sizes) * n, dtype=np.int32)
    reverse[slot] = slot[_reversed(pairs)]
    shape = sum(sizes), n
    return Slots(vectors.reshape(3, *shape), reverse.reshape(shape), types.astype(np.int32)), sizes


def _reversed(pairs: Pairs) -> np.ndarray:
    """For every pair the number of the same pair from the other side: opposite vectors are opposite to the last bit."""
    v = pairs.vectors
    one = np.lexsort((*v.T, pairs.neighbors, pairs.centers))
    other = np.lexsort((*(-v).T, pairs.centers, pairs.neighbors))
    found = np.empty(len(v), np.int64)
    found[one] = other
    assert np.array_equal(v[found], -v)
    return found


def energies_and_forces(
    config: ModelConfig, sizes: tuple[int, ...], by_member: bool, params: Params, slots: Slots
) -> tuple[Array, Array]:
    """Outputs (M, N, outputs), and forces of the mean, (1, N, 3), or of all members, (M, N, 3)."""
    vectors = jnp.asarray(slots.vectors)

    def sums(vectors: Array) -> Array:
        return density_coefficients(config.descriptor, sizes, vectors)

    density, to_vectors = jax.vjp(sums, vectors)
    features = power_spectrum(config.descriptor, density)
    outputs, cotangents = _feature_gradients(
        config, by_member, params, features, Graph(vectors, vectors, vectors, slots.types)
    )
    by_density = pull_back_spectrum(config.descriptor, density, cotangents)
    at_once = len(by_density) == 1 or vectors[0].size <= PAIRS_FOR_ALL_MEMBERS
    pull_back = lambda cotangent: forces(to_vectors(cotangent)[0], slots)  # noqa: E731
    found = jax.vmap(pull_back)(by_density) if at_once else jax.lax.map(pull_back, by_density)
    if config.pair_term == "none":
        return outputs, found
    pair, gradient = _pair_term(config, sizes, params, vectors, slots)
    return outputs.at[..., 0].add(pair), found + forces(gradient, slots)


def forces(gradient: Array, slots: Slots) -> Array:
    """From dE/dr_ij, shape (3, K, N), to forces on atoms, shape (N, 3)."""
    flat = gradient.reshape(3, -1)
    return (flat - flat[:, slots.reverse.ravel()]).reshape(gradient.shape).sum(axis=1).T


def density_coefficients(config: DescriptorConfig, sizes: tuple[int, ...], vectors: Array) -> Array:
    """c_{a,nlm}, shape (N, elements, channels), of pair vectors, shape (3, K, N)."""
    flat = vectors.reshape(3, -1).T
    shape = vectors.shape[1:]
    series = series_of(config, vectors.dtype.name)
    basis = series.basis(jnp.sum(flat * flat, axis=-1))
    radial = jnp.einsum(
        "kc,kp->cp", jnp.asarray(series.coefficients, vectors.dtype), basis,
        precision=jax.lax.Precision.HIGHEST,
    )  # fmt: skip
    harmonics = solid_harmonics(flat, config.n_max)
    radial, harmonics = jax.lax.optimization_barrier((radial, harmonics))
    radial, harmonics = radial.reshape(-1, *shape), harmonics.reshape(-1, *shape)
    rows, start = [], np.concatenate([[0], np.cumsum(sizes)])
    first = 0
    for order, count in enumerate(config.n_radial):
        g = radial[first : first + count, None]
        y = harmonics[None, order**2 : (order + 1) ** 2]
        product = g * y
        sums = [product[:, :, a:b].sum(axis=2) for a, b in pairwise(start)]
        rows.append(jnp.stack(sums).reshape(len(sizes), -1, shape[1]))
        first += count
    return jnp.concatenate(rows, axis=1).transpose(2, 0, 1)


def _pair_term(
    config: ModelConfig, sizes: tuple[int, ...], params: Params, vectors: Array, slots: Slots
) -> tuple[Array, Array]:
    """Pair energies, (1, N), and their gradient, (3, K, N), by the functions for graphs: a slot is an atom there."""
    shape, n_slots = vectors.shape[1:], slots.reverse.size
    own = jnp.tile(jnp.asarray(slots.types), shape[0])
    elements = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes).repeat(shape[1])
    types = jnp.concatenate([own, jnp.arange(len(sizes), dtype=jnp.int32)])
    centers, neighbors = jnp.arange(n_slots), n_slots + jnp.asarray(elements)

    def summed(vectors: Array) -> tuple[Array, Array]:
        graph = Graph(vectors.reshape(3, -1).T, centers, neighbors, types)
        pair = pair_energies(config, params, graph)
        assert pair is not None
        assert len(pair) == 1, "pair terms that members share"
        by_atom = pair[0, :n_slots].reshape(shape).sum(axis=0)
        return by_atom.sum(), by_atom[None]

    gradient, pair = jax.grad(summed, has_aux=True)(vectors)
    return pair, gradient
