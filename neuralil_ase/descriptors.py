"""Graph → element-resolved power spectrum of every atom (arXiv:2106.16220, section 2).

The double sum over neighbours of the original is done in O(neighbours) with the addition theorem:
c_{a,nlm} = Σ_{j∈a} g_nl(r_j) Y_lm(r_j) and p_{ab,nl} = Σ_m c_{a,nlm} c_{b,nlm}.

A channel is one (n, l, m), ordered by l, then n, then m. Sums over few indices are written as products with
constant 0/1 matrices, and optimisation barriers stand around them: XLA then runs them as matrix products
instead of recomputing their inputs inside every consumer, which halves the time on a CPU.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.lax import optimization_barrier

from neuralil_ase import pair_kernel
from neuralil_ase.config import DescriptorConfig
from neuralil_ase.graph import Graph
from neuralil_ase.radial_basis import radial_series
from neuralil_ase.solid_harmonics import solid_harmonics

SERIES_TOLERANCE = {"float32": 1e-7, "float64": 1e-12}


def descriptors(config: DescriptorConfig, graph: Graph) -> Array:
    """Power spectrum of every atom, shape (N, n_features), in Å^-3.

    Features are ordered by pairs of elements (as ``np.triu_indices`` over the elements), then by l, then by n.
    With ``cross_terms`` they are ordered by l, then as ``np.triu_indices`` over (element, n).
    """
    return power_spectrum(config, density_coefficients(config, graph))


def density_coefficients(config: DescriptorConfig, graph: Graph) -> Array:
    """Expansion c_{a,nlm} of the neighbour density of every element: (N, elements, channels), in Å^(-3/2)."""
    n_atoms, n_elements = len(graph.types), len(config.elements)
    sums = jax.ops.segment_sum(
        pair_products(config, jnp.asarray(graph.vectors)),
        _segments(config, graph), n_atoms * n_elements, indices_are_sorted=True,
    )  # fmt: skip
    return optimization_barrier(sums).reshape(n_atoms, n_elements, -1)


def descriptors_with_pull_back(
    config: DescriptorConfig, graph: Graph, kernel: bool = False
) -> tuple[Array, Callable[[Array], Array]]:
    """Power spectrum, and the function from M cotangents of it to gradients by the pair vectors.

    Parameters
    ----------
    config, graph
        As in :func:`descriptors`.
    kernel
        Whether to call the compiled pair kernel; its results carry no derivatives in JAX.

    Returns
    -------
    features : Array, shape (N, n_features)
        In Å^-3.
    pull_back : callable
        From (M, N, n_features) to (M, P, 3); the members share one linearised descriptor.
    """
    if kernel:
        return _compiled_with_pull_back(config, graph)

    def describe(vectors: Array) -> Array:
        return descriptors(config, graph._replace(vectors=vectors))

    features, pull_back = jax.vjp(describe, jnp.asarray(graph.vectors))
    return features, lambda cotangents: _one_by_one(pull_back, cotangents)


def _compiled_with_pull_back(
    config: DescriptorConfig, graph: Graph
) -> tuple[Array, Callable[[Array], Array]]:
    vectors = jnp.asarray(graph.vectors)
    series = radial_series(config.n_max, config.r_cut, SERIES_TOLERANCE[vectors.dtype.name])
    n_atoms, n_elements = len(graph.types), len(config.elements)
    pairs = config, series, vectors, _segments(config, graph)
    sums = pair_kernel.sum_pairs(*pairs, n_atoms * n_elements)
    density = sums.reshape(n_atoms, n_elements, -1)
    if config.cross_terms:
        features, to_density = jax.vjp(lambda c: power_spectrum(config, c), density)
    else:
        features = pair_kernel.power_spectrum(config, density)

    def pull_back(cotangents: Array) -> Array:
        if config.cross_terms:
            by_density = _one_by_one(to_density, cotangents)
        else:
            by_density = pair_kernel.pull_back_spectrum(config, density, cotangents)
        return pair_kernel.pull_back_pairs(*pairs, by_density.reshape(-1, *sums.shape))

    return features, pull_back


def _one_by_one(pull_back: Callable[[Array], tuple[Array]], cotangents: Array) -> Array:
    """Apply the function of ``jax.vjp`` to every cotangent in turn: faster on a CPU than vmap."""
    if len(cotangents) == 1:
        return pull_back(cotangents[0])[0][None]
    return jax.lax.map(lambda cotangent: pull_back(cotangent)[0], cotangents)


def _segments(config: DescriptorConfig, graph: Graph) -> Array:
    """One number for every pair's center and neighbour element."""
    centers = jnp.asarray(graph.centers)
    return centers * len(config.elements) + jnp.asarray(graph.types)[graph.neighbors]


def pair_products(config: DescriptorConfig, vectors: Array) -> Array:
    """g_nl(r) Y_lm(r) of every pair, shape (P, channels), in Å^(-3/2)."""
    series = radial_series(config.n_max, config.r_cut, SERIES_TOLERANCE[vectors.dtype.name])
    radial_basis = series.basis(jnp.sum(vectors * vectors, axis=-1))
    harmonics = solid_harmonics(vectors, config.n_max)
    radial_basis, harmonics = optimization_barrier((radial_basis, harmonics))
    radial_index, harmonic_index = channels(config)
    pick = np.eye(len(harmonics))[:, harmonic_index]
    radial = radial_basis.T @ jnp.asarray(series.coefficients[:, radial_index], vectors.dtype)
    angular = harmonics.T @ jnp.asarray(pick, vectors.dtype)
    radial, angular = optimization_barrier((radial, angular))
    return optimization_barrier(radial * angular)


def power_spectrum(config: DescriptorConfig, density: Array) -> Array:
    """Contract density coefficients, shape (N, elements, channels), to features, shape (N, n_features)."""
    if config.cross_terms:
        return _cross_spectrum(config, density)
    radial_index, _ = channels(config)
    sum_over_m = jnp.asarray(np.eye(sum(config.n_radial))[radial_index], density.dtype)
    products = [density[:, a : a + 1] * density[:, a:] for a in range(len(config.elements))]
    blocks = [(p.reshape(-1, p.shape[-1]) @ sum_over_m) for p in optimization_barrier(products)]
    return jnp.concatenate([b.reshape(len(density), -1) for b in blocks], axis=-1)


def channels(config: DescriptorConfig) -> tuple[np.ndarray, np.ndarray]:
    """For every channel (n, l, m): its radial function among all (n, l), its harmonic among all (l, m)."""
    radial, harmonic = [], []
    for order, count in enumerate(config.n_radial):
        m_count = 2 * order + 1
        radial.append(np.repeat(np.arange(count) + sum(config.n_radial[:order]), m_count))
        harmonic.append(np.tile(np.arange(order**2, order**2 + m_count), count))
    return np.concatenate(radial), np.concatenate(harmonic)


def _cross_spectrum(config: DescriptorConfig, density: Array) -> Array:
    """Σ_m of all products of (element, n) and (element', n') at equal l, each unordered pair once."""
    blocks, start = [], 0
    for order, count in enumerate(config.n_radial):
        size = count * (2 * order + 1)
        rows = density[:, :, start : start + size].reshape(len(density), -1, 2 * order + 1)
        start += size
        gram = jnp.einsum("npm,nqm->npq", rows, rows)
        first, second = np.triu_indices(rows.shape[1])
        blocks.append(gram[:, first, second])
    return jnp.concatenate(blocks, axis=-1)
