"""Radial functions against their definition, and the series in r² against the functions."""

import jax
import numpy as np
import pytest
from scipy.special import spherical_jn

from neuralil_ase.engine.jax_backend import precision
from neuralil_ase.errors import ConfigError
from neuralil_ase.model.radial_basis import (
    RadialSeries,
    angular_orders,
    chebyshev_basis,
    exact_radial_functions,
    radial_series,
    spherical_bessel_zeros,
)


def quadrature(r_cut: float, count: int = 80) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre points on [0, r_cut], and weights times r²."""
    x, w = np.polynomial.legendre.leggauss(count)
    r = (x + 1) / 2 * r_cut
    return r, w * r_cut / 2 * r**2


def evaluate(series: RadialSeries, r: np.ndarray) -> np.ndarray:
    """g_nl/r^l in float64, shape (channels, P)."""
    with precision("float64"):
        return np.asarray(series(r**2)).T


def test_channels_run_over_n_within_each_order() -> None:
    np.testing.assert_array_equal(angular_orders(2), [0, 0, 0, 1, 1, 2])


def test_zeros_of_spherical_bessel_functions() -> None:
    """j_0 has nπ; the first ones of j_1 and j_2 are tabulated (Abramowitz and Stegun, table 10.6)."""
    zeros = spherical_bessel_zeros(6, 4)
    np.testing.assert_allclose(zeros[0], np.pi * np.arange(1, 11), rtol=1e-15)
    np.testing.assert_allclose(zeros[1, :3], [4.493409458, 7.725251837, 10.904121659], rtol=1e-9)
    np.testing.assert_allclose(zeros[2, :2], [5.763459197, 9.095011330], rtol=1e-9)
    for order in range(7):
        complete = zeros[order, : 10 - order]
        assert np.isfinite(complete).all()
        assert np.isnan(zeros[order, 10 - order :]).all()
        assert np.abs(spherical_jn(order, complete)).max() < 1e-15
        crossings = np.diff(
            np.sign(spherical_jn(order, np.linspace(1e-3, complete[-1] + 0.1, 20000)))
        )
        assert np.count_nonzero(crossings) == len(complete), "a zero was skipped"


@pytest.mark.parametrize(("n_max", "r_cut"), [(0, 2.0), (4, 3.5), (8, 6.0)])
def test_functions_are_orthonormal_within_each_order(n_max: int, r_cut: float) -> None:
    r, weights = quadrature(r_cut)
    g, orders = exact_radial_functions(r, n_max, r_cut), angular_orders(n_max)
    for order in range(n_max + 1):
        rows = g[orders == order]
        overlap = (rows * weights) @ rows.T
        np.testing.assert_allclose(overlap, np.eye(n_max + 1 - order), rtol=0, atol=1e-11)


@pytest.mark.parametrize("n_max", [3, 5])
def test_functions_are_gram_schmidt_of_two_bessel_functions_each(n_max: int) -> None:
    """f_nl combines j_l at two neighbouring zeros so that its slope at the cutoff vanishes; QR orthonormalises."""
    r_cut = 3.5
    r, weights = quadrature(r_cut)
    g, orders = exact_radial_functions(r, n_max, r_cut), angular_orders(n_max)
    zeros = spherical_bessel_zeros(n_max, 2)
    for order in range(n_max + 1):
        u = zeros[order, : n_max + 2 - order]
        slopes = u * spherical_jn(order, u, derivative=True)
        j = spherical_jn(order, np.outer(u, r / r_cut))
        f = j[:-1] * slopes[1:, None] - j[1:] * slopes[:-1, None]
        expected = np.linalg.qr((f * np.sqrt(weights)).T)[0].T
        found = g[orders == order] * np.sqrt(weights)
        signs = np.sign((expected * found).sum(axis=1))[:, None]
        np.testing.assert_allclose(found, signs * expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("n_max", "r_cut"), [(0, 1.5), (2, 3.0), (4, 3.5), (5, 5.5), (8, 6.0)])
@pytest.mark.parametrize("tolerance", [1e-7, 1e-12])
def test_series_meets_its_tolerance_between_the_points_of_the_fit(
    n_max: int, r_cut: float, tolerance: float
) -> None:
    r = np.random.default_rng(0).uniform(0, r_cut, 2000)
    exact = exact_radial_functions(r, n_max, r_cut)
    found = (
        evaluate(radial_series(n_max, r_cut, tolerance), r) * r ** angular_orders(n_max)[:, None]
    )
    error = np.abs(found - exact).max(axis=1) / np.abs(exact).max(axis=1)
    assert error.max() < 1.5 * tolerance


@pytest.mark.parametrize("scaling", [1, 3, 8])
def test_radial_scaling_multiplies_all_functions(scaling: int) -> None:
    r = np.random.default_rng(1).uniform(0, 5.0, 500)
    weight = (1 - (r / 5.0) ** 2) ** scaling
    expected = exact_radial_functions(r, 4, 5.0) * weight
    series = radial_series(4, 5.0, 1e-12, scaling)
    found = evaluate(series, r) * r ** angular_orders(4)[:, None]
    np.testing.assert_allclose(found, expected, atol=1e-11 * np.abs(expected).max())
    longer = len(series.coefficients) - len(radial_series(4, 5.0, 1e-12).coefficients)
    assert longer <= scaling  # its cost


def test_lower_tolerance_needs_a_shorter_series() -> None:
    lengths = [len(radial_series(4, 3.5, t).coefficients) for t in (1e-4, 1e-7, 1e-12)]
    assert lengths[0] < lengths[1] < lengths[2]


def test_series_and_two_derivatives_vanish_at_the_cutoff_and_beyond() -> None:
    """(1 - s)³ is C² there: nothing jumps, not even the second derivative."""
    series = radial_series(2, 3.0, 1e-12)
    r_squared = np.array([9.0 * (1 - 1e-9), 9.0, 9.1, 40.0])
    with precision("float64"):
        value = jax.jit(lambda s: series(s)[:, 3])
        slope = jax.jit(jax.vmap(jax.grad(lambda s: series(s[None])[0, 3])))
        curvature = jax.jit(jax.vmap(jax.grad(jax.grad(lambda s: series(s[None])[0, 3]))))
        for function, bound in ((value, 1e-25), (slope, 1e-15), (curvature, 1e-7)):
            found = np.abs(np.asarray(function(r_squared)))
            assert found[0] < bound
            assert (found[2:] == 0).all()


def test_all_derivatives_are_finite_for_atoms_on_one_spot() -> None:
    series = radial_series(2, 3.0, 1e-12)
    with precision("float64"):
        slope = jax.grad(lambda x: series((x * x)[None]).sum())
        function = jax.grad(jax.grad(slope))
        assert np.isfinite(jax.jit(function)(0.0))


def test_chebyshev_polynomials_of_any_count() -> None:
    x = np.linspace(-1, 1, 7)
    for count in (1, 2, 6):
        with precision("float64"):
            found = np.asarray(chebyshev_basis(x, count))
        expected = np.cos(np.arange(count)[:, None] * np.arccos(x))
        np.testing.assert_allclose(found, expected, atol=1e-14)


def test_a_series_that_would_be_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neuralil_ase.model.radial_basis.MAX_DEGREE", 8)
    with pytest.raises(
        ConfigError, match=r"n_max=7 need a series of degree above 8; choose a smaller"
    ):
        radial_series(7, 3.21, 1e-12)


@pytest.mark.parametrize(("n_max", "tolerance"), [(13, 1e-7), (13, 1e-12)])
def test_largest_n_max_of_either_precision(n_max: int, tolerance: float) -> None:
    r = np.linspace(0, 6.0, 200)[1:-1]
    found = evaluate(radial_series(n_max, 6.0, tolerance), r) * r ** angular_orders(n_max)[:, None]
    exact = exact_radial_functions(r, n_max, 6.0)
    assert (np.abs(found - exact).max(axis=1) < 2 * tolerance * np.abs(exact).max(axis=1)).all()
