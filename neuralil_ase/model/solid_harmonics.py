"""Real solid harmonics r^l Y_lm as polynomials of x, y and z.

They are orthonormal on the unit sphere, without the Condon-Shortley phase. The recursion is that of Bigi, Fraux,
Browning and Ceriotti, J. Chem. Phys. 159, 064802 (2023), eq. 5-8. It does not divide by r, so that derivatives of
every order are finite everywhere, including the origin.
"""

from math import factorial, pi, sqrt

import jax.numpy as jnp
import numpy as np
from jax import Array


def solid_harmonics(vectors: Array, l_max: int) -> Array:
    """Evaluate r^l Y_lm for l = 0 … l_max.

    Parameters
    ----------
    vectors
        x, y, z in Å, shape (P, 3).
    l_max
        Largest order.

    Returns
    -------
    Array, shape ((l_max + 1)², P)
        Ordered by l, then m = -l … l; in Å^l.
    """
    x, y, z = vectors[:, 0], vectors[:, 1], vectors[:, 2]
    r_squared = x * x + y * y + z * z
    cosine, sine = _azimuthal(x, y, l_max)
    legendre = _modified_legendre(z, r_squared, l_max)
    rows = [_order(order, legendre[order], cosine, sine) for order in range(l_max + 1)]
    return jnp.stack([value for row in rows for value in row])


def _azimuthal(x: Array, y: Array, l_max: int) -> tuple[list[Array], list[Array]]:
    """Real and imaginary parts of (x + iy)^m."""
    cosine, sine = [jnp.ones_like(x)], [jnp.zeros_like(x)]
    for _ in range(l_max):
        c, s = cosine[-1], sine[-1]
        cosine.append(x * c - y * s)
        sine.append(x * s + y * c)
    return cosine, sine


def _modified_legendre(z: Array, r_squared: Array, l_max: int) -> list[list[Array]]:
    """Q_lm = r^(l-m) P_lm(z/r) / sin^m θ, polynomials of z and r², for m = 0 … l."""
    q: list[list[Array]] = [[jnp.ones_like(z)]]
    for order in range(1, l_max + 1):
        row = []
        for m in range(order):
            value = (2 * order - 1) * z * q[order - 1][m]
            if m < order - 1:
                value = value - (order + m - 1) * r_squared * q[order - 2][m]
            row.append(value / (order - m))
        row.append((2 * order - 1) * q[order - 1][order - 1])
        q.append(row)
    return q


def gradient_matrices(l_max: int) -> np.ndarray:
    """Matrices D_a with ∂_a Y = D_a Y for the column Y of all r^l Y_lm: shape (3, (l_max + 1)², (l_max + 1)²).

    Derivatives of solid harmonics are solid harmonics of one order less. They follow from the rules in the same paper
    for Q_lm and (x + iy)^m.
    """
    matrices = np.zeros((3, (l_max + 1) ** 2, (l_max + 1) ** 2))

    def put(axis: int, order: int, m: int, lower: int, factor: float) -> None:
        """Y_{order,m} has the derivative factor · Y_{order-1,lower}, before normalisation; zero beyond |m| = l."""
        if abs(lower) < order:
            norm = _norm(order, abs(m)) / _norm(order - 1, abs(lower))
            row, column = order * (order + 1) + m, (order - 1) * order + lower
            matrices[axis, row, column] += factor * norm

    for order in range(1, l_max + 1):
        put(0, order, 0, 1, -1.0)
        put(1, order, 0, -1, -1.0)
        put(2, order, 0, 0, order)
        for m in range(1, order + 1):
            down = (order + m) * (order + m - 1) / 2
            for sign in (1, -1):  # of m: cosine and sine
                put(2, order, sign * m, sign * m, order + m)
                put(0, order, sign * m, sign * (m + 1), -0.5)
                put(1, order, sign * m, -sign * (m + 1), -0.5 * sign)
                if m > 1 or sign > 0:
                    put(0, order, sign * m, sign * (m - 1), down)
                if m > 1 or sign < 0:
                    put(1, order, sign * m, -sign * (m - 1), -down * sign)
    return matrices


def _norm(order: int, m: int) -> float:
    ratio = factorial(order - m) / factorial(order + m)
    return sqrt((1 if m == 0 else 2) * (2 * order + 1) / (4 * pi) * ratio)


def _order(order: int, q: list[Array], cosine: list[Array], sine: list[Array]) -> list[Array]:
    norms = [_norm(order, m) for m in range(order + 1)]
    negative = [norms[m] * q[m] * sine[m] for m in range(order, 0, -1)]
    positive = [norms[m] * q[m] * cosine[m] for m in range(order + 1)]
    return negative + positive
