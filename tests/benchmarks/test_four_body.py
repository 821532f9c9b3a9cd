"""The four-body invariants of the benchmark: they are invariant, and their pull-back is their derivative."""

from dataclasses import replace
from functools import partial

import four_body
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from four_body import WithFourBody
from scipy.spatial.transform import Rotation

from neuralil_ase.model.solid_harmonics import solid_harmonics

CONFIG = WithFourBody(("C",), n_max=4, r_cut=4.0, cross_terms=True, mixed=2)
BLIND = WithFourBody(("C", "H"), n_max=4, r_cut=4.0, cross_terms=True, blind=True)


@jax.jit
def density(vectors: jax.Array) -> jax.Array:
    """Of atoms with some neighbours, (N, elements, channels); vectors (N, elements, neighbours, 3)."""
    shape = vectors.shape[:3]
    flat = vectors.reshape(-1, 3)
    harmonics = solid_harmonics(flat, CONFIG.n_max).T
    distances = jnp.linalg.norm(flat, axis=1)[:, None]
    parts = [
        jnp.exp(-distances / (n + 1)) * harmonics[:, order**2 : (order + 1) ** 2]
        for order, count in enumerate(CONFIG.n_radial)
        for n in range(count)
    ]
    return jnp.concatenate(parts, axis=1).reshape(*shape, -1).sum(axis=2)


def test_rotations_leave_them_alone() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(5, 1, 6, 3))
    with jax.enable_x64(True):
        before = density(vectors)
        mixing = four_body.mixing_of(CONFIG, np.asarray(before))
        after = density(vectors @ Rotation.random(rng=1).as_matrix().T)
        features = jax.jit(partial(four_body.features, CONFIG, mixing))
        expected, found = features(before), features(after)
    assert found.shape == (5, CONFIG.n_features)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9 * np.abs(expected).max())
    alone = np.asarray(found)[:, replace(CONFIG, mixed=0).n_features :]
    assert np.linalg.matrix_rank(alone) == 5  # different atoms, different invariants


@pytest.mark.parametrize("config", [CONFIG, BLIND], ids=["four bodies", "blind"])
def test_the_pull_back_is_the_derivative(config: WithFourBody) -> None:
    rng = np.random.default_rng(2)
    coefficients = density(rng.normal(size=(3, len(config.elements), 4, 3)))
    mixing = four_body.mixing_of(config, np.asarray(coefficients))
    cotangents = jnp.asarray(rng.normal(size=(2, 3, config.n_features)))
    found = jax.jit(partial(four_body.pull_back, config, mixing))(coefficients, cotangents)

    @jax.jit
    def derivative(cotangent: jax.Array) -> jax.Array:
        features = partial(four_body.features, config, mixing)
        return jax.vjp(features, coefficients)[1](cotangent)[0]

    for one, cotangent in zip(found, cotangents, strict=True):
        expected = derivative(cotangent)
        np.testing.assert_allclose(one, expected, rtol=2e-4, atol=1e-5 * np.abs(expected).max())


def test_a_blind_descriptor_is_that_of_one_element() -> None:
    coefficients = density(np.random.default_rng(3).normal(size=(3, 2, 4, 3)))
    exchanged = coefficients[:, ::-1]
    mixing = four_body.mixing_of(BLIND, np.asarray(coefficients))
    features = jax.jit(partial(four_body.features, BLIND, mixing))
    np.testing.assert_allclose(features(coefficients), features(exchanged), rtol=1e-6)
    assert BLIND.n_features == CONFIG.spectrum.n_features
