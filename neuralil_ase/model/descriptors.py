"""Graph → element-resolved power spectrum of every atom (arXiv:2106.16220, section 2).

The original double sum over neighbours is computed in O(neighbours) with the addition theorem:
c_{a,nlm} = Σ_{j∈a} g_nl(r_j) Y_lm(r_j) and p_{ab,nl} = Σ_m c_{a,nlm} c_{b,nlm}.

A channel is one (n, l, m), ordered by l, then n, then m. Sums over few indices are written as products with
constant 0/1 matrices between optimisation barriers. XLA then runs them as matrix products and does not compute
their inputs several times, which halves the time on a CPU.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.lax import optimization_barrier

from neuralil_ase.model.config import DescriptorConfig
from neuralil_ase.model.graph import Graph
from neuralil_ase.model.radial_basis import RadialSeries, radial_series
from neuralil_ase.model.solid_harmonics import gradient_matrices, solid_harmonics
from neuralil_ase.model.spectrum import channels, power_spectrum, pull_back_spectrum

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
    config: DescriptorConfig, graph: Graph
) -> tuple[Array, Callable[[Array], Array]]:
    """Power spectrum, and a function that turns M cotangents of it into gradients by the pair vectors.

    Returns
    -------
    features : Array, shape (N, n_features)
        In Å^-3.
    pull_back : callable
        Maps (M, N, n_features) to (M, P, 3). All members share one linearised descriptor.
    """

    def sums(vectors: Array) -> Array:
        return density_coefficients(config, graph._replace(vectors=vectors))

    density, to_vectors = jax.vjp(sums, jnp.asarray(graph.vectors))

    def pull_back(cotangents: Array) -> Array:
        return _one_by_one(to_vectors, pull_back_spectrum(config, density, cotangents))

    return power_spectrum(config, density), pull_back


def _one_by_one(pull_back: Callable[[Array], tuple[Array]], cotangents: Array) -> Array:
    """Apply the function of ``jax.vjp`` to one cotangent after the other: on a CPU this is faster than vmap."""
    if len(cotangents) == 1:
        return pull_back(cotangents[0])[0][None]
    return jax.lax.map(lambda cotangent: pull_back(cotangent)[0], cotangents)


def _segments(config: DescriptorConfig, graph: Graph) -> Array:
    """For every pair, one number for its center and the element of its neighbour."""
    centers = jnp.asarray(graph.centers)
    return centers * len(config.elements) + jnp.asarray(graph.types)[graph.neighbors]


def series_of(config: DescriptorConfig, dtype: str) -> RadialSeries:
    """The radial functions of a descriptor, as exact as numbers of this type are."""
    return radial_series(config.n_max, config.r_cut, SERIES_TOLERANCE[dtype], config.radial_scaling)


def pair_products(config: DescriptorConfig, vectors: Array) -> Array:
    """g_nl(r) Y_lm(r) of every pair, shape (P, channels), in Å^(-3/2)."""
    series = series_of(config, vectors.dtype.name)
    radial_basis = series.basis(jnp.sum(vectors * vectors, axis=-1))
    harmonics = solid_harmonics(vectors, config.n_max)
    radial_basis, harmonics = optimization_barrier((radial_basis, harmonics))
    radial_index, harmonic_index = channels(config)
    pick = np.eye(len(harmonics))[:, harmonic_index]
    radial = radial_basis.T @ jnp.asarray(series.coefficients[:, radial_index], vectors.dtype)
    angular = harmonics.T @ jnp.asarray(pick, vectors.dtype)
    radial, angular = optimization_barrier((radial, angular))
    return optimization_barrier(radial * angular)


def pair_product_derivatives(
    config: DescriptorConfig, vectors: Array
) -> tuple[Array, Array, Array]:
    """:func:`pair_products` φ with dφ/dr and d²φ/dr²: shapes (P, channels), (P, 3, channels), (P, 3, 3, channels).

    They are computed in closed form, as φ is a function of r² times a harmonic polynomial. Nested automatic derivatives
    would take ten times as long to compile.
    """
    series = series_of(config, vectors.dtype.name)
    radial_index, harmonic_index = channels(config)
    f, f_1, f_2 = (x[:, radial_index] for x in series.derivatives(jnp.sum(vectors**2, axis=-1)))
    # Columns: the harmonics of all channels, and their first and second derivatives by x, y, z.
    gradients = gradient_matrices(config.n_max)
    second = np.einsum("aij,bjk->abik", gradients, gradients)[:, :, harmonic_index]
    rows = [np.eye(gradients.shape[1])[harmonic_index], gradients[:, harmonic_index], second]
    matrix = np.concatenate([x.reshape(-1, gradients.shape[1]) for x in rows])
    harmonics = solid_harmonics(vectors, config.n_max).T @ jnp.asarray(matrix.T, vectors.dtype)
    y, y_1, y_2 = jnp.split(
        optimization_barrier(harmonics).reshape(len(vectors), 13, -1), [1, 4], axis=1
    )
    x = 2 * vectors[:, :, None]
    first = f_1[:, None] * y * x + f[:, None] * y_1
    turned = (f_1[:, None] * y_1)[:, :, None] * x[:, None]
    both = ((f_2[:, None] * y) * x)[:, :, None] * x[:, None] + turned + turned.swapaxes(1, 2)
    both += 2 * jnp.eye(3, dtype=vectors.dtype)[:, :, None] * (f_1[:, None] * y)[:, None]
    return f * y[:, 0], first, both + f[:, None, None] * y_2.reshape(both.shape)
