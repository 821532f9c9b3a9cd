"""The power spectrum and its pull-back in pure JAX against sums written out in NumPy, and against jax.vjp."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from neuralil_ase.model.config import DescriptorConfig
from neuralil_ase.model.spectrum import channels
from neuralil_ase.model.spectrum import power_spectrum as eager_power_spectrum
from neuralil_ase.model.spectrum import pull_back_spectrum as eager_pull_back_spectrum
from neuralil_ase.model.spectrum import summed_changes as eager_summed_changes

ELEMENTS = ("C", "F", "H", "N", "O", "S")
both = pytest.mark.parametrize("cross_terms", [False, True], ids=["plain", "cross"])
sizes = pytest.mark.parametrize(("n_elements", "n_max"), [(1, 0), (1, 4), (4, 3), (6, 1), (2, 6)])

power_spectrum = jax.jit(eager_power_spectrum, static_argnums=0)
pull_back_spectrum = jax.jit(eager_pull_back_spectrum, static_argnums=0)
summed_changes = jax.jit(eager_summed_changes, static_argnums=0)


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


def setting(n_elements: int, n_max: int, cross_terms: bool, n_members: int = 3, n_atoms: int = 5):
    """Configuration, density, cotangents, and directions for both."""
    config = DescriptorConfig(ELEMENTS[:n_elements], n_max, 3.5, cross_terms)
    rng = np.random.default_rng(n_elements + 10 * n_max)
    density = rng.normal(size=(2, n_atoms, n_elements, len(channels(config)[0])))
    cotangents = rng.normal(size=(2, n_members, n_atoms, config.n_features))
    return config, *(jnp.asarray(x) for x in (*density, *cotangents))


def written_out(config: DescriptorConfig, density: np.ndarray) -> np.ndarray:
    """Every feature as an explicit sum, in the documented order."""
    at = {}  # (element, n, l) -> (N, 2l+1)
    for element in range(len(config.elements)):
        start = 0
        for order, count in enumerate(config.n_radial):
            for n in range(count):
                at[element, n, order] = density[:, element, start : start + 2 * order + 1]
                start += 2 * order + 1
    orders, elements = range(config.n_max + 1), range(len(config.elements))
    if config.cross_terms:
        rows = {o: [(a, n, o) for a in elements for n in range(config.n_radial[o])] for o in orders}
        keys = [(p, q) for o in orders for k, p in enumerate(rows[o]) for q in rows[o][k:]]
    else:
        keys = [((a, n, o), (b, n, o)) for a in elements for b in elements[a:] for o in orders
                for n in range(config.n_radial[o])]  # fmt: skip
    return np.stack([(at[p] * at[q]).sum(axis=1) for p, q in keys], axis=1)


@both
@sizes
def test_every_feature_is_its_sum(n_elements: int, n_max: int, cross_terms: bool) -> None:
    config, density, *_ = setting(n_elements, n_max, cross_terms)
    found = power_spectrum(config, density)
    np.testing.assert_allclose(
        found, written_out(config, np.asarray(density)), rtol=1e-13, atol=1e-13
    )


@both
@sizes
def test_pull_back_is_the_transposed_derivative(
    n_elements: int, n_max: int, cross_terms: bool
) -> None:
    config, density, _, cotangents, _ = setting(n_elements, n_max, cross_terms)
    _, pull_back = jax.vjp(lambda c: power_spectrum(config, c), density)
    found = pull_back_spectrum(config, density, cotangents)
    expected = jnp.stack([pull_back(cotangent)[0] for cotangent in cotangents])
    np.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-12)


@both
@pytest.mark.parametrize(("n_elements", "n_max"), [(1, 4), (4, 3)])
def test_summed_changes_are_derivatives_one_after_the_other(
    n_elements: int, n_max: int, cross_terms: bool
) -> None:
    """Three atoms with two changes each, all of them of one element, which differs from atom to atom."""
    config, density, other, *_ = setting(n_elements, n_max, cross_terms)
    neighbours = jnp.stack([density, other, density + other], axis=1)
    rng = np.random.default_rng(0)
    changes = jnp.asarray(rng.normal(size=(len(density), 3, 2, density.shape[-1])))
    is_element = np.eye(n_elements)[rng.integers(n_elements, size=len(density))]
    found = summed_changes(config, neighbours, changes, jnp.asarray(is_element))
    for k in range(2):
        expected = 0.0
        for s in range(3):
            moved = is_element[:, :, None] * changes[:, s, k, None]
            spectrum = partial(power_spectrum, config)
            expected += jax.jvp(spectrum, (neighbours[:, s],), (moved,))[1]
        np.testing.assert_allclose(found[:, k], expected, rtol=1e-12, atol=1e-11)


@both
def test_finite_differences_agree(cross_terms: bool) -> None:
    """The spectrum is quadratic: a central difference is exact but for rounding."""
    config, density, direction, cotangents, _ = setting(3, 3, cross_terms, n_members=1)
    up, down = (power_spectrum(config, density + sign * direction) for sign in (1, -1))
    expected = ((up - down) / 2 * cotangents[0]).sum()
    found = (pull_back_spectrum(config, density, cotangents)[0] * direction).sum()
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@both
def test_derivatives_of_the_pull_back(cross_terms: bool) -> None:
    """Transposed in the cotangents it is the forward derivative; in the density it is bilinear and symmetric."""
    config, density, direction, cotangents, moved = setting(4, 3, cross_terms)
    _, transposed = jax.vjp(lambda g: pull_back_spectrum(config, density, g), cotangents)
    weights = jnp.stack([direction, density, direction - density])
    for weight, found in zip(weights, transposed(weights)[0], strict=True):
        _, expected = jax.jvp(lambda c: power_spectrum(config, c), (density,), (weight,))
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
    _, change = jax.jvp(
        lambda c, g: pull_back_spectrum(config, c, g), (density, cotangents), (direction, moved)
    )
    expected = pull_back_spectrum(config, direction, cotangents)
    expected += pull_back_spectrum(config, density, moved)
    np.testing.assert_allclose(change, expected, rtol=1e-12, atol=1e-12)
    second = jax.grad(lambda c: (pull_back_spectrum(config, c, cotangents) * weights).sum())
    expected = sum(
        pull_back_spectrum(config, w, g[None])[0] for w, g in zip(weights, cotangents, strict=True)
    )
    np.testing.assert_allclose(second(density), expected, rtol=1e-12, atol=1e-12)


@both
def test_no_derivative_contains_a_scatter(cross_terms: bool) -> None:
    config, density, direction, cotangents, _ = setting(4, 4, cross_terms)

    def energy(density: jax.Array, cotangents: jax.Array) -> jax.Array:
        moved = pull_back_spectrum(config, density, cotangents)
        return jnp.sin(moved).sum() + jnp.sin(power_spectrum(config, density)).sum()

    gradient = jax.grad(energy, argnums=(0, 1))

    def second(c: jax.Array, d: jax.Array, g: jax.Array):
        return jax.jvp(lambda c: gradient(c, g), (c,), (d,))

    assert "scatter" not in jax.jit(second).lower(density, direction, cotangents).as_text()


@both
def test_float32_keeps_its_digits_at_thousands_of_atoms(cross_terms: bool) -> None:
    config, density, _, cotangents, _ = setting(4, 4, cross_terms, n_members=2, n_atoms=3001)
    exact = pull_back_spectrum(config, density, cotangents)
    single = density.astype(jnp.float32), cotangents.astype(jnp.float32)
    found = pull_back_spectrum(config, *single)
    assert found.dtype == jnp.float32
    assert np.abs(found - exact).max() < 3e-6 * np.abs(exact).max()
    features = power_spectrum(config, single[0])
    expected = written_out(config, np.asarray(density))
    assert np.abs(features - expected).max() < 2e-6 * np.abs(expected).max()
