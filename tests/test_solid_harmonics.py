"""Solid harmonics against SciPy's spherical harmonics, and what makes them harmonic."""

import jax
import numpy as np
import pytest
from scipy.special import eval_legendre, sph_harm_y

from neuralil_ase.engine.jax_backend import precision
from neuralil_ase.model.solid_harmonics import gradient_matrices, solid_harmonics

L_MAX = 6
HESSIANS = jax.jit(jax.hessian(lambda v: solid_harmonics(v[None], 4)[:, 0]))
VECTORS = np.random.default_rng(0).normal(size=(20, 3))


def evaluate(vectors: np.ndarray, l_max: int = L_MAX) -> np.ndarray:
    with precision("float64"):
        return np.asarray(solid_harmonics(np.asarray(vectors, float), l_max))


def real_harmonics(vectors: np.ndarray, l_max: int) -> np.ndarray:
    """r^l Y_lm from SciPy's complex ones, the Condon-Shortley phase taken out."""
    r = np.linalg.norm(vectors, axis=1)
    polar, azimuth = np.arccos(vectors[:, 2] / r), np.arctan2(vectors[:, 1], vectors[:, 0])
    rows = []
    for order in range(l_max + 1):
        for m in range(-order, order + 1):
            y = (-1) ** m * sph_harm_y(order, abs(m), polar, azimuth)
            real = y.real if m == 0 else np.sqrt(2) * (y.real if m > 0 else y.imag)
            rows.append(r**order * real)
    return np.array(rows)


def test_values_agree_with_scipy() -> None:
    np.testing.assert_allclose(evaluate(VECTORS), real_harmonics(VECTORS, L_MAX), atol=1e-11)


def test_order_one_is_y_z_x() -> None:
    expected = np.sqrt(3 / (4 * np.pi)) * VECTORS[:, [1, 2, 0]].T
    np.testing.assert_allclose(evaluate(VECTORS, 1)[1:], expected, rtol=1e-14)


def test_addition_theorem() -> None:
    """Σ_m Y_lm(a) Y_lm(b) = (2l + 1)/4π P_l(cos), what the power spectrum rests on."""
    a, b = evaluate(VECTORS[:10]), evaluate(VECTORS[10:])
    lengths = np.linalg.norm(VECTORS, axis=1).reshape(2, 10).prod(axis=0)
    cosine = (VECTORS[:10] * VECTORS[10:]).sum(axis=1) / lengths
    for order in range(L_MAX + 1):
        rows = slice(order**2, (order + 1) ** 2)
        expected = (2 * order + 1) / (4 * np.pi) * lengths**order * eval_legendre(order, cosine)
        np.testing.assert_allclose((a[rows] * b[rows]).sum(axis=0), expected, rtol=0, atol=1e-10)


def test_orthonormal_on_the_unit_sphere() -> None:
    """Product quadrature, exact up to degree 2 l_max."""
    z, w = np.polynomial.legendre.leggauss(L_MAX + 1)
    phi = 2 * np.pi * np.arange(2 * L_MAX + 1) / (2 * L_MAX + 1)
    rho = np.sqrt(1 - z**2)
    points = np.stack(
        [np.outer(rho, np.cos(phi)), np.outer(rho, np.sin(phi)), np.outer(z, np.ones_like(phi))], -1
    ).reshape(-1, 3)
    weights = np.repeat(w, len(phi)) * 2 * np.pi / len(phi)
    y = evaluate(points)
    np.testing.assert_allclose((y * weights) @ y.T, np.eye(len(y)), rtol=0, atol=1e-13)


def test_they_solve_the_laplace_equation_and_are_homogeneous() -> None:
    with precision("float64"):
        for vector in VECTORS[:3]:
            curvature = np.asarray(HESSIANS(vector))
            assert np.abs(np.trace(curvature, axis1=1, axis2=2)).max() < 1e-12
    orders = np.repeat(np.arange(L_MAX + 1), 2 * np.arange(L_MAX + 1) + 1)
    scaled = evaluate(1.7 * VECTORS)
    np.testing.assert_allclose(scaled, evaluate(VECTORS) * 1.7 ** orders[:, None], atol=1e-11)


def test_gradient_matrices_are_the_derivatives() -> None:
    """To second order, against automatic differentiation; at order 0 nothing is left."""
    matrices = gradient_matrices(4)
    second = np.einsum("aij,bjk->abik", matrices, matrices)
    np.testing.assert_allclose(second, second.swapaxes(0, 1), rtol=0, atol=1e-13)
    with precision("float64"):
        for vector in VECTORS[:4]:
            expected = np.moveaxis(np.asarray(HESSIANS(vector)), 0, -1)
            found = second @ evaluate(vector[None], 4)[:, 0]
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * np.abs(expected).max())
    np.testing.assert_array_equal(gradient_matrices(0), np.zeros((3, 1, 1)))


@pytest.mark.parametrize("vector", [(0.0, 0.0, 0.0), (0.0, 0.0, 1.3), (0.0, 0.0, -1.3)])
def test_derivatives_are_finite_at_the_origin_and_at_the_poles(
    vector: tuple[float, float, float],
) -> None:
    with precision("float64"):
        curvature = HESSIANS(np.array(vector))
    assert np.isfinite(curvature).all()


@pytest.mark.parametrize("l_max", [0, 1, 3])
def test_shape_and_precision(l_max: int) -> None:
    found = solid_harmonics(VECTORS.astype(np.float32), l_max)
    assert found.shape == ((l_max + 1) ** 2, len(VECTORS))
    assert found.dtype == np.float32
