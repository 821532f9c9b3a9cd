"""Power spectrum of density coefficients (arXiv:2106.16220, section 2), and its pull-back, in pure JAX.

Plain: p_{ab,nl} = Σ_m c_{a,nlm} c_{b,nlm} for every unordered pair of elements. With cross terms: the same sum for
every unordered pair of (element, n) at equal l. A channel is one (n, l, m), ordered by l, then n, then m.

Triangles are taken from matrices, and matrices made from triangles, only by splitting and concatenating. These
operations are transposes of each other, so that no derivative of any order needs a scatter, which is slow. But XLA
compiles hundreds of pieces slowly. ``only_forward`` therefore picks elements instead, for results that are never
differentiated backwards.
"""

from collections.abc import Callable, Iterator

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.lax import optimization_barrier, split

from neuralil_ase.model.config import DescriptorConfig


def channels(config: DescriptorConfig) -> tuple[np.ndarray, np.ndarray]:
    """For every channel (n, l, m): the index of its radial function (n, l), and of its harmonic (l, m)."""
    radial, harmonic = [], []
    for order, count in enumerate(config.n_radial):
        m_count = 2 * order + 1
        radial.append(np.repeat(np.arange(count) + sum(config.n_radial[:order]), m_count))
        harmonic.append(np.tile(np.arange(order**2, order**2 + m_count), count))
    return np.concatenate(radial), np.concatenate(harmonic)


def power_spectrum(
    config: DescriptorConfig, density: Array, *, only_forward: bool = False
) -> Array:
    """Contract density coefficients, shape (N, elements, channels), to features, shape (N, n_features)."""
    if config.cross_terms:
        triangle = _picked_triangle if only_forward else _triangle
        grams = [jnp.einsum("npm,nqm->npq", x, x) for x in _split_orders(config, density)]
        return jnp.concatenate([triangle(optimization_barrier(g)) for g in grams], axis=-1)
    products = [density[:, a : a + 1] * density[:, a:] for a in range(len(config.elements))]
    sum_over_m = _radial_to_channels(config, density).T
    blocks = [(p.reshape(-1, p.shape[-1]) @ sum_over_m) for p in optimization_barrier(products)]
    return jnp.concatenate([b.reshape(len(density), -1) for b in blocks], axis=-1)


def summed_changes(
    config: DescriptorConfig, density: Array, changes: Array, is_element: Array
) -> Array:
    """Change of power spectra, summed over S atoms, when the density coefficients of one element change.

    Parameters
    ----------
    config
        The descriptor.
    density
        Coefficients of the S atoms, shape (N, S, elements, channels).
    changes
        K changes of the coefficients of one element, shape (N, S, K, channels).
    is_element
        1 for this element and 0 for the others, shape (N, elements).

    Returns
    -------
    Array, shape (N, K, n_features)
        Σ_s dp_s. The sum over s is part of a matrix product, which is much faster than one change after the other.
    """
    parts = zip(_by_order(config, density), _by_order(config, changes), strict=True)
    n_atoms, n_changes = len(density), changes.shape[2]
    if config.cross_terms:
        blocks = []
        for own, changed in parts:
            rows = own.reshape(*own.shape[:2], -1, own.shape[-1])
            found = jnp.einsum("nspm,nskqm->nkpq", rows, changed)
            wide = found[..., None, :] * is_element[:, None, None, :, None]
            square = wide.reshape(n_atoms, n_changes, rows.shape[2], rows.shape[2])
            blocks.append(_picked_triangle(square + square.swapaxes(-1, -2)))
        return jnp.concatenate(blocks, axis=-1)
    by_radial = [jnp.einsum("nsapm,nskpm->nkap", own, changed) for own, changed in parts]
    found = jnp.concatenate(by_radial, axis=-1)
    square = found[:, :, :, None] * is_element[:, None, None, :, None]
    first, second = np.triu_indices(len(config.elements))
    both = (square + square.swapaxes(2, 3))[:, :, first, second]
    return both.reshape(n_atoms, n_changes, -1)


def pull_back_spectrum(
    config: DescriptorConfig, density: Array, cotangents: Array, *, only_forward: bool = False
) -> Array:
    """Gradients by the density coefficients for M cotangents of :func:`power_spectrum`.

    Parameters
    ----------
    config
        The descriptor.
    density
        c_{a,nlm} in Å^(-3/2), shape (N, elements, channels).
    cotangents
        dE/dp of M energies in eV Å³, shape (M, N, n_features).
    only_forward
        Whether the result is only differentiated in forward mode, or not at all.

    Returns
    -------
    Array, shape (M, N, elements, channels)
        dE/dc in eV Å^(3/2); linear in the cotangents.
    """
    if config.cross_terms:
        symmetric = _picked_symmetric if only_forward else _symmetric
        return _pull_back_cross(config, density, cotangents, symmetric)
    return _pull_back_plain(config, density, cotangents)


def _pull_back_plain(config: DescriptorConfig, density: Array, cotangents: Array) -> Array:
    """dE/dc_a = Σ_b (1 + δ_ab) G_ab c_b."""
    elements = range(len(config.elements))
    to_channels = _radial_to_channels(config, density)
    by_pair = cotangents.reshape(*cotangents.shape[:2], -1, len(to_channels)) @ to_channels
    parts = split(optimization_barrier(by_pair), [1] * by_pair.shape[2], axis=2)
    numbers = _symmetric_numbers(len(elements))
    rows = []
    for a in elements:
        terms = (parts[numbers[a, b]] * density[:, b : b + 1] * (1 + (a == b)) for b in elements)
        rows.append(sum(terms, start=jnp.zeros((), density.dtype)))
    return jnp.concatenate(rows, axis=2)


def _pull_back_cross(
    config: DescriptorConfig,
    density: Array,
    cotangents: Array,
    symmetric: Callable[[Array, int], Array],
) -> Array:
    """dE/dc_p = Σ_q (1 + δ_pq) G_pq c_q at every l, for all members of an atom in one product."""
    by_atom = optimization_barrier(cotangents.swapaxes(0, 1))
    sizes = [size * (size + 1) // 2 for size, _ in _orders(config)]
    parts = []
    for rows, triangle in zip(
        _split_orders(config, density), split(by_atom, sizes, axis=2), strict=True
    ):
        both = optimization_barrier(symmetric(triangle, rows.shape[1]))
        moved = jnp.einsum("nspq,nqm->nspm", both, rows)
        parts.append(moved.reshape(*moved.shape[:2], len(config.elements), -1))
    return jnp.concatenate(parts, axis=-1).swapaxes(0, 1)


def _orders(config: DescriptorConfig) -> Iterator[tuple[int, int]]:
    """For every l: the number of (element, n), and the number of m."""
    for order, count in enumerate(config.n_radial):
        yield len(config.elements) * count, 2 * order + 1


def _split_orders(config: DescriptorConfig, density: Array) -> list[Array]:
    """Rows (N, elements · radial functions, 2l+1) of every order l."""
    parts = _by_order(config, density)
    return [part.reshape(len(density), -1, part.shape[-1]) for part in parts]


def _by_order(config: DescriptorConfig, coefficients: Array) -> list[Array]:
    """The coefficients of every order l, shape (..., radial functions, 2l+1)."""
    shapes = [(count, 2 * order + 1) for order, count in enumerate(config.n_radial)]
    parts = split(coefficients, [n * m for n, m in shapes], axis=coefficients.ndim - 1)
    leading = coefficients.shape[:-1]
    return [part.reshape(*leading, *shape) for part, shape in zip(parts, shapes, strict=True)]


def _triangle(matrix: Array) -> Array:
    """Upper triangle (..., n (n + 1) / 2) of (..., n, n), in the order of ``np.triu_indices``."""
    n = matrix.shape[-1]
    sizes = [size for row in range(n) for size in (row, n - row)]
    flat = matrix.reshape(*matrix.shape[:-2], n * n)
    return jnp.concatenate(split(flat, sizes, axis=flat.ndim - 1)[1::2], axis=-1)


def _picked_triangle(matrix: Array) -> Array:
    rows, columns = np.triu_indices(matrix.shape[-1])
    flat = matrix.reshape(*matrix.shape[:-2], -1)
    return flat[..., rows * matrix.shape[-1] + columns]


def _symmetric(triangle: Array, n: int) -> Array:
    """The sum of both triangles, shape (..., n, n); the diagonal counts twice."""
    upper = optimization_barrier(_upper(triangle, n))
    return upper + upper.swapaxes(-1, -2)


def _picked_symmetric(triangle: Array, n: int) -> Array:
    picked = triangle[..., _symmetric_numbers(n).ravel()]
    return picked.reshape(*triangle.shape[:-1], n, n) * jnp.asarray(1 + np.eye(n), triangle.dtype)


def _upper(triangle: Array, n: int) -> Array:
    """The inverse of :func:`_triangle`, with zeros below the diagonal."""
    parts: list[Array] = []
    for row, part in enumerate(split(triangle, range(n, 0, -1), axis=triangle.ndim - 1)):
        parts += [jnp.zeros((*triangle.shape[:-1], row), triangle.dtype), part]
    return jnp.concatenate(parts, axis=-1).reshape(*triangle.shape[:-1], n, n)


def _symmetric_numbers(n: int) -> np.ndarray:
    """Index of every entry of a symmetric matrix in its upper triangle, shape (n, n)."""
    numbers = np.zeros((n, n), int)
    numbers[np.triu_indices(n)] = np.arange(n * (n + 1) // 2)
    return np.maximum(numbers, numbers.T)


def _radial_to_channels(config: DescriptorConfig, like: Array) -> Array:
    """Matrix of zeros and ones, (radial functions, channels)."""
    radial_index, _ = channels(config)
    return jnp.asarray(np.eye(sum(config.n_radial))[:, radial_index], like.dtype)
