"""Pair energies against their formulas, written as loops over pairs."""

from functools import partial

import jax
import numpy as np
import pytest
from ase.data import atomic_numbers
from scipy.special import expit

from neuralil_ase.engine.jax_backend import precision
from neuralil_ase.model.graph import Graph
from neuralil_ase.model.pair_terms import SOFTENING, morse, zbl
from neuralil_ase.model.screening import COULOMB

ELEMENTS = ("H", "N", "O")
RADII = (0.7, 0.9, 1.0, 1.1, 1.2, 1.3)
"""HH, HN, HO, NN, NO, OO."""
RADIUS = {
    ("H", "H"): 0.7,
    ("H", "N"): 0.9,
    ("H", "O"): 1.0,
    ("N", "N"): 1.1,
    ("N", "O"): 1.2,
    ("O", "O"): 1.3,
}
R_CUT = 3.0


def pair(first: str, second: str, distance: float) -> Graph:
    """Two atoms, both directions of their pair, at the positions ASE would give them."""
    unit = np.array([0.6, 0.0, 0.8])
    types = np.array([ELEMENTS.index(first), ELEMENTS.index(second)], np.int32)
    indices = np.array([0, 1], np.int32)
    return Graph(distance * np.stack([unit, -unit]), indices, indices[::-1].copy(), types)


@jax.jit
def _zbl(graph: Graph) -> jax.Array:
    return zbl(graph, ELEMENTS, RADII)


@jax.jit
def _zbl_gradient(graph: Graph) -> jax.Array:
    """dE/dr of both directed pairs."""
    summed = lambda v: zbl(graph._replace(vectors=v), ELEMENTS, RADII).sum()  # noqa: E731
    return jax.grad(summed)(graph.vectors)


def screened(first: str, second: str, distance: float) -> np.ndarray:
    with precision("float64"):
        return np.asarray(_zbl(pair(first, second, distance)))


@pytest.mark.parametrize(("first", "second"), RADIUS)
@pytest.mark.parametrize("fraction", [0.02, 0.3, 0.8])
def test_zbl_is_the_screened_coulomb_repulsion(first: str, second: str, fraction: float) -> None:
    """Ziegler, Biersack, Littmark (1985), their constants in SI units; switched off by a C² polynomial."""
    z1, z2, radius = atomic_numbers[first], atomic_numbers[second], RADIUS[first, second]
    r = np.hypot(fraction * radius, SOFTENING)
    bohr = 0.529177
    x = r / (0.88534 * bohr / (z1**0.23 + z2**0.23))
    phi = 0.1818 * np.exp(-3.2 * x) + 0.5099 * np.exp(-0.9423 * x)
    phi += 0.2802 * np.exp(-0.4029 * x) + 0.02817 * np.exp(-0.2016 * x)
    t = r / radius
    expected = 14.39964 * z1 * z2 / r * phi * (1 - 10 * t**3 + 15 * t**4 - 6 * t**5)
    for found in (
        screened(first, second, fraction * radius),
        screened(second, first, fraction * radius),
    ):
        assert found.sum() == pytest.approx(expected, rel=1e-3)
        assert found[0] == pytest.approx(found[1], rel=1e-13)


def test_coulomb_constant() -> None:
    from ase.units import _c, _e, _mu0

    assert pytest.approx(_e * _mu0 * _c**2 / (4 * np.pi) * 1e10, rel=1e-8) == COULOMB


@pytest.mark.parametrize(("first", "second"), RADIUS)
def test_zbl_ends_smoothly_at_the_radius_of_its_pair(first: str, second: str) -> None:
    radius = RADIUS[first, second]
    assert screened(first, second, radius - 0.05).sum() > 0
    assert (screened(first, second, radius) == 0).all()
    with precision("float64"):
        near = np.sqrt((radius - 1e-4) ** 2 - SOFTENING**2)
        assert np.abs(_zbl_gradient(pair(first, second, near))).max() < 1e-3
        assert (np.asarray(_zbl_gradient(pair(first, second, radius + 1e-9))) == 0).all()


def test_zbl_of_two_atoms_on_one_spot_is_finite_and_forceless() -> None:
    with precision("float64"):
        gradient = np.asarray(_zbl_gradient(pair("H", "O", 0.0)))
    assert 100 < screened("H", "O", 0.0).sum() < 1e5
    assert (gradient == 0).all()


def test_zbl_falls_monotonically() -> None:
    energies = [screened("N", "O", r).sum() for r in np.linspace(0, 1.3, 60)]
    assert (np.diff(energies) <= 0).all()


EMBEDDING = np.array([[0.9, 1.1, 0.5], [1.2, 0.8, 0.7], [0.7, 1.3, 0.4]])
SWITCH = np.array([[0.3]])


def published_morse(first: str, second: str, r: float, is_repulsive: bool) -> float:
    """E_i of the first atom, from the formulas of the published code (see the docstring of ``morse``)."""

    def parameters(symbol: str) -> np.ndarray:
        v = EMBEDDING[ELEMENTS.index(symbol)]
        return 0.01 + v**2 if is_repulsive else np.log1p(np.exp(v))

    a, b, d = parameters(first)
    a2, b2, d2 = parameters(second)
    rm = (a2 * r + np.log(a * d / (a2 * d2)) / 4 + (a * b - a2 * b2) / 2) / (a + a2)
    if is_repulsive:
        phi = d * np.exp(-2 * a * (2 * rm - b))
    else:
        x = np.exp(-a * (rm - b))
        phi = d * (x**2 - 2 * x)
    on = 0.5 * (1 + expit(SWITCH[0, 0])) * R_CUT
    t = (r**2 - on**2) / (R_CUT**2 - on**2)
    if t <= 0:
        return phi / 2
    if t >= 1:
        return 0.0
    up, down = np.exp(-1 / t), np.exp(-1 / (1 - t))
    return phi / 2 * (1 - up / (up + down))


@partial(jax.jit, static_argnums=1)
def morse_and_gradient(graph: Graph, is_repulsive: bool) -> tuple[jax.Array, jax.Array]:
    """Atomic energies, and the gradient of their sum with respect to the pair vectors."""
    parameters = {"embedding": EMBEDDING, "switch": SWITCH}

    def summed(vectors: jax.Array) -> tuple[jax.Array, jax.Array]:
        energies = morse(parameters, graph._replace(vectors=vectors), R_CUT, is_repulsive)
        return energies.sum(), energies

    gradient, energies = jax.grad(summed, has_aux=True)(graph.vectors)
    return energies, gradient


@pytest.mark.parametrize("is_repulsive", [True, False])
@pytest.mark.parametrize(("first", "second"), [("H", "H"), ("H", "O"), ("O", "N")])
@pytest.mark.parametrize("r", [0.3, 1.5, 2.4, 2.9, 3.0, 3.03])
def test_morse_terms_of_the_published_files(
    is_repulsive: bool, first: str, second: str, r: float
) -> None:
    with precision("float64"):
        found = np.asarray(morse_and_gradient(pair(first, second, r), is_repulsive)[0])
    expected = [
        published_morse(first, second, r, is_repulsive),
        published_morse(second, first, r, is_repulsive),
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("is_repulsive", [True, False])
@pytest.mark.parametrize("r", [0.0, 3.0, 3.03])
def test_gradients_of_morse_terms_are_finite_everywhere(is_repulsive: bool, r: float) -> None:
    """Coincident atoms, the cutoff itself, and padding pairs, whose gradient is exactly zero."""
    with precision("float64"):
        _, gradient = map(np.asarray, morse_and_gradient(pair("H", "O", r), is_repulsive))
    assert np.isfinite(gradient).all()
    assert r == 0 or (gradient == 0).all()
