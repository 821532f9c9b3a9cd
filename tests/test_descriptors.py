"""The power spectrum against the double sum over neighbours of the paper (arXiv:2106.16220, section 2)."""

from functools import lru_cache

import jax
import numpy as np
import pytest
from scipy.special import eval_legendre
from systems import CONFIG, R_CUT, STRUCTURES, calculator, structure

from neuralil_ase.engine.jax_backend import precision
from neuralil_ase.engine.neighbors import NeighborList
from neuralil_ase.model.config import DescriptorConfig
from neuralil_ase.model.descriptors import (
    channels,
    descriptors,
    pair_product_derivatives,
    pair_products,
)
from neuralil_ase.model.elements import element_types
from neuralil_ase.model.graph import Graph, pad_graph
from neuralil_ase.model.radial_basis import exact_radial_functions

CROSS = DescriptorConfig(("C", "H", "N", "O"), n_max=2, r_cut=R_CUT, cross_terms=True)


@lru_cache
def compiled(config: DescriptorConfig, dtype: str):
    with precision(dtype):
        return jax.jit(lambda graph: descriptors(config, graph))


def evaluate(config: DescriptorConfig, graph: Graph, dtype: str = "float64") -> np.ndarray:
    with precision(dtype):
        return np.asarray(compiled(config, dtype)(graph))


@pytest.mark.parametrize("n_max", [0, 2])
def test_derivatives_of_pair_functions_are_those_of_automatic_differentiation(n_max: int) -> None:
    """Inside the cutoff, at it, and beyond, where all of them vanish."""
    config = DescriptorConfig(("N", "O"), n_max, R_CUT)
    vectors = np.random.default_rng(0).normal(size=(6, 3))
    vectors[4:] *= np.array([[1.0], [1.01]]) * R_CUT / np.linalg.norm(vectors[4:], axis=1)[:, None]
    with precision("float64"):

        def alone(vector: jax.Array) -> jax.Array:
            return pair_products(config, vector[None])[0]

        ways = (alone, jax.jacfwd(alone), jax.hessian(alone))
        expected = jax.jit(jax.vmap(lambda v: tuple(way(v) for way in ways)))(vectors)
        found = jax.jit(lambda v: pair_product_derivatives(config, v))(vectors)
    for ours, known in zip(found, expected, strict=True):
        order = np.moveaxis(np.asarray(known), 1, -1)
        np.testing.assert_allclose(ours, order, rtol=0, atol=1e-12 * np.abs(order).max())
        assert not np.asarray(ours)[5].any()


def graph_of(name: str, dtype: str = "float64") -> Graph:
    atoms = structure(name)
    types = element_types(atoms.numbers, CONFIG.descriptor.elements)
    pairs = NeighborList(R_CUT, 0.0).pairs(atoms.positions, atoms.cell.array, atoms.pbc, types)
    return pad_graph(*pairs, types, n_atoms=8, n_pairs=96, r_cut=R_CUT, dtype=dtype)


def double_sum(config: DescriptorConfig, graph: Graph, atom: int) -> np.ndarray:
    """p = Σ_jk (2l+1)/4π g_nl(r_j) g_n'l(r_k) P_l(cos θ_jk), element by element, straight from the formula."""
    lengths = np.linalg.norm(graph.vectors, axis=1)
    mine = (graph.centers == atom) & (lengths < config.r_cut)
    r, unit = lengths[mine], graph.vectors[mine] / lengths[mine, None]
    g = exact_radial_functions(r, config.n_max, config.r_cut)
    is_type = [graph.types[graph.neighbors[mine]] == t for t in range(len(config.elements))]
    cosines = np.clip(unit @ unit.T, -1, 1)

    def product(a: int, b: int, n: int, k: int, order: int) -> float:
        start = sum(config.n_radial[:order])
        kernel = (2 * order + 1) / (4 * np.pi) * eval_legendre(order, cosines)
        return (g[start + n] * is_type[a]) @ kernel @ (g[start + k] * is_type[b])

    elements = range(len(config.elements))
    orders = list(enumerate(config.n_radial))
    if not config.cross_terms:
        keys = [
            (a, b, n, n, o)
            for a in elements
            for b in elements
            if b >= a
            for o, c in orders
            for n in range(c)
        ]
    else:
        keys = []
        for order, count in orders:
            rows = [(a, n) for a in elements for n in range(count)]
            keys += [(a, b, n, k, order) for p, (a, n) in enumerate(rows) for b, k in rows[p:]]
    return np.array([product(*key) for key in keys])


@pytest.mark.parametrize("config", [CONFIG.descriptor, CROSS], ids=["plain", "cross"])
@pytest.mark.parametrize("name", ["molecule", "triclinic", "tiny"])
def test_features_are_the_double_sum_over_neighbours(config: DescriptorConfig, name: str) -> None:
    graph = graph_of(name)
    found = evaluate(config, graph)
    assert found.shape == (8, config.n_features)
    expected = np.array([double_sum(config, graph, k) for k in range(len(structure(name)))])
    np.testing.assert_allclose(
        found[: len(expected)], expected, rtol=0, atol=1e-11 * np.abs(expected).max()
    )


@pytest.mark.parametrize("name", STRUCTURES)
def test_calculator_shows_the_descriptors_of_real_atoms(name: str) -> None:
    found = calculator().descriptors(structure(name))
    assert found.dtype == np.float64
    expected = evaluate(CONFIG.descriptor, graph_of(name))[: len(structure(name))]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-14)


def test_float32_keeps_seven_digits() -> None:
    exact = evaluate(CONFIG.descriptor, graph_of("triclinic"))
    found = evaluate(CONFIG.descriptor, graph_of("triclinic", "float32"), "float32")
    assert found.dtype == np.float32
    assert np.abs(found - exact).max() < 2e-6 * np.abs(exact).max()


def test_padding_atoms_and_atoms_alone_have_no_features() -> None:
    features = evaluate(CONFIG.descriptor, graph_of("molecule"))
    assert (features[6:] == 0).all()


def test_every_channel_is_one_radial_function_and_one_harmonic() -> None:
    radial, harmonic = channels(CONFIG.descriptor)
    assert len(radial) == sum(
        (2 * order + 1) * n for order, n in enumerate(CONFIG.descriptor.n_radial)
    )
    assert len(set(zip(radial.tolist(), harmonic.tolist(), strict=True))) == len(radial)


def test_a_pair_fades_out_smoothly_at_the_cutoff() -> None:
    """Features and two derivatives along the pair go to zero at r_cut from inside, and are zero outside."""
    pad = graph_of("one atom")

    def along(x: jax.Array) -> jax.Array:
        vectors = jax.numpy.asarray(pad.vectors).at[0].set(jax.numpy.array([0.6, 0.0, 0.8]) * x)
        vectors = vectors.at[1].set(jax.numpy.array([1.0, 0.5, 0.2]))
        centers = jax.numpy.asarray(pad.centers).at[:2].set(0).at[2:].set(7)
        return descriptors(
            CONFIG.descriptor, pad._replace(vectors=vectors.at[2:].set(9.0), centers=centers)
        )[0]

    with precision("float64"):

        def slope(x: float) -> tuple[jax.Array, jax.Array]:
            return jax.jvp(along, (x,), (1.0,))

        three = jax.jit(lambda x: (*slope(x), jax.jvp(lambda y: slope(y)[1], (x,), (1.0,))[1]))
        inside, outside, beyond = (np.array(three(x)) for x in (R_CUT - 1e-5, R_CUT, R_CUT + 0.5))
    at_all = np.abs(outside[0]).max()
    assert at_all > 0.01, "the other neighbour must be seen"
    np.testing.assert_array_equal(outside[0], beyond[0])
    assert (outside[1] == 0).all()
    assert (beyond[1:] == 0).all()
    for k, bound in enumerate((1e-13, 1e-8, 1e-3)):
        assert np.abs(inside[k] - outside[k]).max() < bound


def test_derivatives_of_coincident_atoms_are_finite() -> None:
    graph = graph_of("molecule")
    graph.vectors[0] = 0
    with precision("float64"):
        gradient = jax.jit(
            jax.grad(lambda v: descriptors(CONFIG.descriptor, graph._replace(vectors=v)).sum())
        )(jax.numpy.asarray(graph.vectors))
    assert np.isfinite(gradient).all()
    assert np.isfinite(evaluate(CONFIG.descriptor, graph)).all()
