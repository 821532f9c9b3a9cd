"""Orthonormal spherical Bessel radial functions g_nl(r), as polynomials in r².

The functions are those of Kocer, Mason and Erturk, AIP Advances 10, 015021 (2020),
doi:10.1063/1.5111045, as used by NeuralIL (arXiv:2106.16220). Two facts make them cheap and smooth:

* j_l(x)/x^l is even and entire, so g_nl(r)/r^l is a smooth function of s = r²/r_c²;
* g_nl vanishes at the cutoff as (r_c - r)³.

Hence g_nl(r) = r^l (1 - s)³ q_nl(s) with q_nl smooth on [0, 1], which is written as a Chebyshev series. The
factor (1 - s)³, clamped at s = 1, makes the contribution of pairs at or beyond the cutoff exactly zero. The factor
r^l goes into the solid harmonics, so that no square root and no division is needed. A radial scaling (1 - s)^k of all
functions goes into the series, and costs nothing.
"""

from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import pairwise

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.lax import optimization_barrier
from numpy.polynomial import chebyshev
from scipy.optimize import brentq
from scipy.special import spherical_jn

from neuralil_ase.errors import ConfigError

MAX_DEGREE = 48


def angular_orders(n_max: int) -> np.ndarray:
    """Angular order l of every (n, l) channel, l-major: l = 0 (n = 0…n_max), l = 1 (n = 0…n_max-1), …"""
    return np.repeat(np.arange(n_max + 1), np.arange(n_max + 1, 0, -1))


def spherical_bessel_zeros(l_max: int, count: int) -> np.ndarray:
    """The first positive zeros u_ln of the spherical Bessel functions j_l.

    Parameters
    ----------
    l_max
        Largest order.
    count
        Number of zeros wanted for order ``l_max``.

    Returns
    -------
    ndarray, shape (l_max + 1, count + l_max)
        Row l is complete up to column ``count + l_max - l``; the rest is NaN.
    """
    zeros = np.full((l_max + 1, count + l_max), np.nan)
    zeros[0] = np.pi * np.arange(1, count + l_max + 1)
    for order in range(1, l_max + 1):
        # Between two neighbouring zeros of j_{l-1} there is exactly one zero of j_l.
        brackets = zeros[order - 1, : count + l_max - order + 1]
        for k, (low, high) in enumerate(pairwise(brackets)):
            zeros[order, k] = brentq(partial(spherical_jn, order), low, high, xtol=1e-15)
    return zeros


def exact_radial_functions(r: np.ndarray, n_max: int, r_cut: float) -> np.ndarray:
    """Evaluate g_nl(r) from its definition, in float64.

    This is slow and has removable singularities. The series are fitted to these values once per model.

    Parameters
    ----------
    r
        Distances in Å, shape (P,), inside the cutoff.
    n_max
        Largest radial index; order l holds n = 0 … n_max - l.
    r_cut
        Cutoff radius in Å.

    Returns
    -------
    ndarray, shape (channels, P)
        In Å^(-3/2), channels ordered as in :func:`angular_orders`. Orthonormal on [0, r_cut] with weight r².
    """
    zeros = spherical_bessel_zeros(n_max, 2)
    rows: list[np.ndarray] = []
    for order in range(n_max + 1):
        rows += _orthonormal_functions(r, order, zeros[order, : n_max - order + 2], r_cut)
    return np.array(rows)


def _orthonormal_functions(
    r: np.ndarray, order: int, u: np.ndarray, r_cut: float
) -> list[np.ndarray]:
    """g_nl of one order l, by the recursion of doi:10.1063/1.5111045."""
    j_next = spherical_jn(order + 1, u)
    j = spherical_jn(order, np.multiply.outer(u, r) / r_cut)
    g: list[np.ndarray] = []
    d_previous = 1.0
    for k in range(len(u) - 1):
        a, b = u[k], u[k + 1]
        f = np.sqrt(2 / (a**2 + b**2) / r_cut**3) * (
            b / j_next[k] * j[k] - a / j_next[k + 1] * j[k + 1]
        )
        if k == 0:
            g.append(f)
            continue
        e = u[k - 1] ** 2 * b**2 / ((u[k - 1] ** 2 + a**2) * (a**2 + b**2))
        d = 1.0 - e / d_previous
        g.append((f + np.sqrt(e / d_previous) * g[-1]) / np.sqrt(d))
        d_previous = d
    return g


@dataclass(frozen=True)
class RadialSeries:
    """g_nl(r)/r^l = (1 - s)³ Σ_k C[k, nl] T_k(2s - 1) with s = r²/r_c² (zero for s ≥ 1), scaling included.

    Attributes
    ----------
    coefficients
        C, shape (degree + 1, channels), float64, in Å^(-3/2-l).
    r_cut
        Cutoff radius in Å.
    """

    coefficients: np.ndarray
    r_cut: float

    def basis(self, r_squared: Array) -> Array:
        """(1 - s)³ T_k(2s - 1) at squared distances in Å², shape (P,): shape (degree + 1, P)."""
        s = jnp.minimum(r_squared / self.r_cut**2, 1)
        return (1 - s) ** 3 * chebyshev_basis(2 * s - 1, len(self.coefficients))

    def __call__(self, r_squared: Array) -> Array:
        """g_nl(r)/r^l at squared distances in Å², shape (P,): shape (P, (n, l) pairs)."""
        basis = self.basis(r_squared)
        return basis.T @ jnp.asarray(self.coefficients, dtype=basis.dtype)

    def derivatives(self, r_squared: Array) -> tuple[Array, Array, Array]:
        """g_nl(r)/r^l and its first and second derivative by r²: shape (P, (n, l) pairs) each."""
        s = jnp.minimum(r_squared / self.r_cut**2, 1)
        e, c = (1 - s)[:, None], self.coefficients
        series = [
            np.pad(2**k * chebyshev.chebder(c, k), ((0, k), (0, 0))) if k else c for k in range(3)
        ]
        basis = chebyshev_basis(2 * s - 1, len(c)).T
        products = basis @ jnp.asarray(np.concatenate(series, axis=1), basis.dtype)
        q, slope, bend = jnp.split(optimization_barrier(products), 3, axis=1)
        first = e**3 * slope - 3 * e**2 * q
        second = e**3 * bend - 6 * e**2 * slope + 6 * e * q
        return e**3 * q, first / self.r_cut**2, second / self.r_cut**4


def chebyshev_basis(x: Array, count: int) -> Array:
    """T_0 … T_{count-1} at x, shape (count, P)."""
    basis = [jnp.ones_like(x), x]
    for _ in range(2, count):
        basis.append(2 * x * basis[-1] - basis[-2])
    return jnp.stack(basis[:count])


@lru_cache(maxsize=32)
def radial_series(
    n_max: int, r_cut: float, tolerance: float, radial_scaling: int = 0
) -> RadialSeries:
    """Fit the series of all channels with the lowest degree that meets a tolerance.

    Parameters
    ----------
    n_max, r_cut
        As in :func:`exact_radial_functions`.
    tolerance
        Largest error of any g_nl relative to the largest value of that channel.
    radial_scaling
        The functions are multiplied by (1 - r²/r_cut²) to this power.

    Raises
    ------
    ConfigError
        If no degree up to 48 meets the tolerance.
    """
    s = (1 + np.cos(np.pi * (np.arange(4 * MAX_DEGREE) + 0.5) / (4 * MAX_DEGREE))) / 2
    r = np.sqrt(s) * r_cut
    exact = exact_radial_functions(r, n_max, r_cut) * (1 - s) ** radial_scaling
    scale = np.abs(exact).max(axis=1)
    for degree in range(4, MAX_DEGREE + 1):
        coefficients, error = _fit(s, r, exact, angular_orders(n_max), degree)
        if (error <= tolerance * scale).all():
            return RadialSeries(coefficients, r_cut)
    raise ConfigError(
        f"the radial functions of n_max={n_max} need a series of degree above {MAX_DEGREE}; choose a smaller n_max"
    )


def _fit(
    s: np.ndarray, r: np.ndarray, exact: np.ndarray, orders: np.ndarray, degree: int
) -> tuple[np.ndarray, np.ndarray]:
    """Least-squares fit of q_nl in g = r^l (1-s)³ q, without dividing by the weights r^l (1-s)³."""
    basis = chebyshev.chebvander(2 * s - 1, degree)
    coefficients = np.empty((degree + 1, len(orders)))
    errors = np.empty(len(orders))
    for channel, order in enumerate(orders):
        design = (r**order * (1 - s) ** 3)[:, None] * basis
        coefficients[:, channel] = np.linalg.lstsq(design, exact[channel], rcond=None)[0]
        errors[channel] = np.abs(design @ coefficients[:, channel] - exact[channel]).max()
    return coefficients, errors
